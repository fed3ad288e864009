"""The recaption stage on a real local Ray: same shards, same rows, own captions kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RejectLimitError
from pipeline.recaption.job import Inputs, recaption, with_caption
from pipeline.recaption.settings import RecaptionConfig
from pipeline.settings import PROJECT_PARAMS, load
from pipeline.store.records import CaptionRecord, GroundingRecord, ImageRef
from pipeline.store.shards import list_shards, read_shard, rows_sha256, shard_name, write_shard


@pytest.fixture
def config() -> RecaptionConfig:
    return dataclasses.replace(load(PROJECT_PARAMS, RecaptionConfig), batch_size=2, num_actors=1, max_reject_share=0.5)


@pytest.fixture
def inputs(tmp_path: Path, server: Any, png: Callable[..., ImageRef]) -> Inputs:
    for number, keys in enumerate(("abc", "d")):
        rows = [
            CaptionRecord(
                key=key,
                image=png() if key != "b" else ImageRef(bytes=b"no picture"),
                height=30,
                width=40,
                caption=f"IMG {key}.",
                source="t",
            )
            for key in keys
        ]
        write_shard(tmp_path / "web" / shard_name(number), rows, CaptionRecord)
    endpoint = tmp_path / "eyes.yaml"
    endpoint.write_text(f"endpoint: {server.url}\nmodel: eyes\nrequests_per_minute: 1000000.0\n", encoding="utf-8")
    server.reply = lambda body: "a green field"
    return Inputs(tmp_path / "web", str(endpoint), tmp_path / "out")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_every_row_stays_in_its_place_with_its_own_caption_kept(
    inputs: Inputs, config: RecaptionConfig, server: Any
) -> None:
    metrics = recaption(inputs, config, 10_000)
    assert metrics == {"shards": 2, "rows": 4, "rejects": {"image_unreadable": 1}}
    found = [read_shard(shard, CaptionRecord) for shard in list_shards(inputs.out)]
    assert [[(row.key, row.caption, row.source_caption) for row in rows] for rows in found] == [
        [("a", "a green field", "IMG a."), ("b", "IMG b.", None), ("c", "a green field", "IMG c.")],
        [("d", "a green field", "IMG d.")],
    ]
    before = [(shard.stat().st_mtime_ns, rows_sha256(shard)) for shard in list_shards(inputs.out)]
    asked = len(server.asked)
    list_shards(inputs.out)[1].unlink()
    assert recaption(inputs, config, 10_000) == metrics
    after = [(shard.stat().st_mtime_ns, rows_sha256(shard)) for shard in list_shards(inputs.out)]
    assert after[0] == before[0]
    assert after[1][1] == before[1][1]
    assert len(server.asked) == asked + 1
    with pytest.raises(RejectLimitError, match="image_unreadable"):
        recaption(inputs, dataclasses.replace(config, max_reject_share=0.1), 10_000)


def test_a_caption_stands_in_place_of_another_or_behind_it(png: Callable[..., ImageRef]) -> None:
    row = CaptionRecord(key="a", image=png(), height=30, width=40, caption="A dog. ", source="t")
    assert with_caption(row, "a cat", "replace").caption == "a cat"
    behind = with_caption(row, "a cat", "append")
    assert (behind.caption, behind.source_caption) == ("A dog. a cat", "A dog. ")
    assert with_caption(dataclasses.replace(row, caption=""), "a cat", "append").caption == "a cat"
    again = with_caption(behind, "a bird", "replace")
    assert (again.caption, again.source_caption) == ("a bird", "A dog. ")


def test_labels_keep_what_the_caption_was(tmp_path: Path, png: Callable[..., ImageRef]) -> None:
    row = CaptionRecord(key="a", image=png(), height=30, width=40, caption="a dog", source="t", source_caption="IMG_1")
    record = GroundingRecord(**vars(row), phrases=())
    write_shard(tmp_path / shard_name(0), [record], GroundingRecord, extras={"source_caption"})
    assert read_shard(tmp_path / shard_name(0), GroundingRecord) == [record]
