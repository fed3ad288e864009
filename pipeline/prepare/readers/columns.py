"""What the columns and fields of pairs are called where no option names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LICENSE_COLUMNS = ("license", "LICENSE", "License")
CAPTION_COLUMNS = ("caption", "text", "TEXT")
IMAGE_FIELDS = ("file_name", "image", "path")
URL_COLUMNS = ("url", "URL")
IMAGE_COLUMNS = ("image", "img", "picture", "jpg")


def first_value(values: Any, names: Sequence[str]) -> Any:
    """Return the first of some columns or fields that has a value: a null beside a filled one says nothing."""
    found = (values.get(name) for name in names) if isinstance(values, dict) else iter(())
    return next((value for value in found if value is not None and value != ""), None)
