"""JSON that every program reads: what it has no word for is null or text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON to print, in which numbers that are not finite are null, and what JSON does not know is text."""
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent, default=str)


def finite(value: Any) -> Any:
    """Return plain values with None for every number that is not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value
