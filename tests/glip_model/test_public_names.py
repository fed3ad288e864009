"""What ``import glip_model`` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import glip_model


def test_every_public_name_is_there() -> None:
    for name in glip_model.__all__:
        assert getattr(glip_model, name).__name__ == name if name != "PRESETS" else glip_model.PRESETS


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="GLIPv2"):
        _ = glip_model.GLIPv2


def test_reading_settings_does_not_load_torch() -> None:
    code = "import sys, pipeline.training.settings; print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
