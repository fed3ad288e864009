"""Rows of labels in a notebook."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from pipeline.inspection.notebook import label_rows
from pipeline.inspection.search import Filter
from pipeline.store.records import (
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), "green").save(buffer, "PNG")
    return buffer.getvalue()


def grounding(key: str, image: ImageRef, reason: str | None = None) -> GroundingRecord:
    boxes = () if reason else (ScoredBox(xyxy=(5, 5, 40, 40), score=0.5),)
    phrase = Phrase(text="<i>a cat</i>", char_spans=((0, 5),), boxes=boxes)
    return GroundingRecord(
        key=key,
        image=image,
        height=60,
        width=90,
        source="test",
        caption="a cat sits",
        phrases=(phrase,),
        reject_reason=reason,
    )


def test_rows_show_picture_boxes_and_reasons(tmp_path: Path) -> None:
    rows = [grounding("a", ImageRef(bytes=png())), grounding("b", ImageRef(bytes=png()), "no_boxes")]
    write_shard(tmp_path / shard_name(0), rows, GroundingRecord)
    with_box, without = label_rows(tmp_path)
    page = with_box._repr_html_()
    assert "data:image/jpeg;base64," in page
    assert "<td>&lt;i&gt;a cat&lt;/i&gt;</td><td>1</td><td>0.50</td>" in page
    assert "<p>no_boxes</p>" in without._repr_html_()
    assert [row.record.key for row in label_rows(tmp_path, wanted=Filter(reason="no_boxes"))] == ["b"]
    assert len(label_rows(tmp_path, count=1)) == 1


def test_a_picture_elsewhere_is_not_read_unless_it_is_allowed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(png())
    labels = tmp_path / "labels"
    labels.mkdir()
    write_shard(labels / shard_name(0), [grounding("a", ImageRef(path=str(elsewhere / "a.png")))], GroundingRecord)
    (row,) = label_rows(labels)
    assert "<img" not in row._repr_html_()
    assert "image_outside_folder" in row._repr_html_()
    (row,) = label_rows(labels, roots=[str(elsewhere)])
    assert "<img" in row._repr_html_()


def test_detection_records_come_as_phrases(tmp_path: Path) -> None:
    item = DetectedObject(category_id=3, xyxy=(5, 5, 40, 40), score=0.25)
    row = DetectionRecord(key="a", image=ImageRef(bytes=png()), height=60, width=90, source="test", objects=(item,))
    metadata = categories_to_metadata([Category(id=3, name="forklift")])
    write_shard(tmp_path / shard_name(0), [row], DetectionRecord, metadata)
    (shown,) = label_rows(tmp_path)
    assert "<td>forklift</td><td>1</td><td>0.25</td>" in shown._repr_html_()


@pytest.mark.parametrize("name", ["nothing", ""])
def test_no_labels_are_an_error(tmp_path: Path, name: str) -> None:
    from pipeline.errors import MissingInputError

    with pytest.raises(MissingInputError):
        label_rows(tmp_path / name)
