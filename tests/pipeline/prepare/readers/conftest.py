"""Pictures for raw data sets."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Encodes a picture of one colour."""

    def encode(size: tuple[int, int] = (40, 30), colour: str = "red", kind: str = "JPEG") -> bytes:
        out = io.BytesIO()
        Image.new("RGB", size, colour).save(out, kind)
        return out.getvalue()

    return encode
