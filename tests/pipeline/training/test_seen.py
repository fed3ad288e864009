"""What a training writes down of the data that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from glip_model.trained_on import TrainedOn
from pipeline.store.records import GroundingRecord, ImageRef
from pipeline.store.shards import shard_name, write_shard
from pipeline.training.seen import seen


def rows(source: str, *sizes: tuple[int, int]) -> list[GroundingRecord]:
    return [
        GroundingRecord(
            key=f"{source}{i}",
            image=ImageRef(bytes=b""),
            height=height,
            width=width,
            source=source,
            caption="a cat",
            phrases=(),
        )
        for i, (height, width) in enumerate(sizes)
    ]


def test_sources_rows_and_sides_of_what_has_weight_are_told(tmp_path: Path) -> None:
    human, pseudo = tmp_path / "human", tmp_path / "pseudo"
    write_shard(human / "grounding" / shard_name(0), rows("embedded", (96, 96), (40, 90)), GroundingRecord)
    write_shard(human / "grounding" / shard_name(1), [], GroundingRecord)
    write_shard(pseudo / shard_name(0), [*rows("cc3m", (600, 400)), *rows("embedded", (96, 96))], GroundingRecord)
    told = seen(human, pseudo, {"grounding": 1.0, "detection": 0.0, "pseudo": 2.0})
    assert told == TrainedOn({"cc3m": 1, "embedded": 3}, 90, 600, "cc3m, emoji scenes")
    assert seen(human, pseudo, {"grounding": 1.0}) == TrainedOn({"embedded": 2}, 90, 96, "emoji scenes")


def test_of_many_shards_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.seen.LOOKED_AT", 2)
    for number in range(5):
        place = tmp_path / "grounding" / shard_name(number)
        write_shard(place, rows("embedded", (96, 96), (96, 50 + number)), GroundingRecord)
    told = seen(tmp_path, None, {"grounding": 1.0})
    assert told == TrainedOn({"embedded": 10}, 96, 96, "emoji scenes")  # shards 0 and 3: 4 rows of 2 shards, for 5
