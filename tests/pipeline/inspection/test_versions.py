"""Two versions of labels: what became of every box."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import MissingInputError
from pipeline.inspection.versions import compare, draw_both, format_comparison
from pipeline.store.records import GroundingRecord, Phrase, ScoredBox
from pipeline.store.shards import shard_name, write_shard


def test_the_same_labels_differ_in_nothing(folder: Path) -> None:
    found = compare(folder, folder, 5)
    assert (found.rows_in_both, found.rows_changed, found.boxes_gained, found.boxes_lost) == (5, 0, 0, 0)
    assert found.most_changed == []


def test_every_box_is_kept_gained_or_lost(folder: Path, rows: list[list[GroundingRecord]], tmp_path: Path) -> None:
    first, second, third, fourth, _ = (row for shard in rows for row in shard)
    dog, cat = first.phrases
    moved = dataclasses.replace(dog, boxes=(ScoredBox(xyxy=(1.1, 2, 3, 4), score=0.5),))  # one kept, one lost
    found_cat = dataclasses.replace(cat, boxes=(ScoredBox(xyxy=(5, 5, 9, 9), score=0.7),), reject_reason=None)
    bird = third.phrases[1]
    elsewhere = dataclasses.replace(bird, boxes=(ScoredBox(xyxy=(15, 5, 19, 9), score=0.7),))
    new = [
        dataclasses.replace(fourth, reject_reason="image_missing"),
        dataclasses.replace(first, phrases=(moved, found_cat)),
        dataclasses.replace(third, phrases=(third.phrases[0], elsewhere)),
        dataclasses.replace(second, key="new"),
    ]
    write_shard(tmp_path / "after" / shard_name(0), new, GroundingRecord)
    found = compare(folder, tmp_path / "after", 5)
    assert (found.rows_in_both, found.rows_only_before, found.rows_only_after) == (3, 2, 1)
    assert (found.rows_changed, found.boxes_kept, found.boxes_gained, found.boxes_lost) == (3, 2, 2, 2)
    assert found.reasons == {("below_min_score", None): 1, ("no_boxes", "image_missing"): 1}
    assert [change.key for change in found.most_changed] == ["apple-1", "berry-1", "berry-2"]
    assert (found.most_changed[0].gained, found.most_changed[0].lost) == (["cat"], ["Dog"])
    json.dumps(found.to_dict())
    text = format_comparison(found, ("old", "new"))
    assert "3 rows changed: 2 boxes gained, 2 lost, 2 kept" in text
    assert "apple-1  + cat  - Dog" in text
    assert "no_boxes → image_missing  1" in text


def test_phrases_that_are_new_or_gone_count_their_boxes(
    folder: Path, rows: list[list[GroundingRecord]], tmp_path: Path
) -> None:
    third = rows[1][0]
    wolf = Phrase(text="wolf", char_spans=((4, 8),), boxes=(ScoredBox(xyxy=(1, 1, 5, 5), score=0.9),))
    write_shard(tmp_path / "after" / shard_name(0), [dataclasses.replace(third, phrases=(wolf,))], GroundingRecord)
    (change,) = compare(folder, tmp_path / "after", 5).most_changed
    assert change.gained == ["wolf"]
    assert change.lost == ["dog", "bird"]


def test_missing_versions_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="none: no Parquet shards"):
        compare(folder, tmp_path / "none", 5)


def test_both_versions_are_drawn_side_by_side(rows: list[list[GroundingRecord]]) -> None:
    picture = Image.new("RGB", (40, 30), "teal")
    drawn = draw_both(picture, rows[0][0], rows[1][0])
    assert drawn.width >= 2 * 40
    left = drawn.crop((0, 0, drawn.width // 2, drawn.height))
    right = drawn.crop((drawn.width // 2, 0, drawn.width, drawn.height))
    assert left.tobytes() != right.tobytes()
