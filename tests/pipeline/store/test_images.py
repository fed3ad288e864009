"""Pictures that records refer to."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glip_model.images import ImageError
from pipeline.store.images import load_image
from pipeline.store.records import ImageRef

LIMIT = 10_000


def gradient() -> Image.Image:
    return Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8))


def encode(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_reference_is_read_from_bytes_or_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(gradient()))
    by_path = load_image(ImageRef(path=str(path)), LIMIT)
    by_bytes = load_image(ImageRef(bytes=path.read_bytes()), LIMIT)
    assert by_path.tobytes() == by_bytes.tobytes() == gradient().tobytes()


@pytest.mark.parametrize("name", ["absent.png", ".", "nul\0.png", "x" * 5000])
def test_a_reference_to_nothing_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(ImageRef(path=str(tmp_path / name)), LIMIT)
    assert caught.value.reason == "image_missing"


def test_an_empty_reference_is_missing() -> None:
    with pytest.raises(ImageError, match="neither bytes nor a path"):
        load_image(ImageRef(), LIMIT)
