"""Pictures for raw data sets, and what readers make of the same one in two formats."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from PIL import Image

from pipeline.prepare.raw import RawTable
from pipeline.store.records import DetectionRecord

Boxes: TypeAlias = list[tuple[str, tuple[int, ...]]]
"""Names of categories, and boxes in whole pixels."""


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Encodes a picture of one colour."""

    def encode(size: tuple[int, int] = (40, 30), colour: str = "red", kind: str = "JPEG") -> bytes:
        out = io.BytesIO()
        Image.new("RGB", size, colour).save(out, kind)
        return out.getvalue()

    return encode


@pytest.fixture
def boxes_by_picture(read_rows: Callable[..., list[Any]]) -> Callable[[RawTable], dict[str, Boxes]]:
    """Returns by the names of pictures what a table of detection data has on them."""

    def boxes(table: RawTable) -> dict[str, Boxes]:
        names = {category.id: category.name for category in table.categories}
        records = [row for row in read_rows(table, pictures="unread") if isinstance(row, DetectionRecord)]
        return {
            (record.image.path or "").rpartition("/")[2]: sorted(
                (names[item.category_id], tuple(round(side) for side in item.xyxy)) for item in record.objects
            )
            for record in records
        }

    return boxes
