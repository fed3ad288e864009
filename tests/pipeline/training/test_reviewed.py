"""Rows that people reviewed: a source of their own, rejected phrases as hard negatives, all other rows as before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import TrainingError
from pipeline.store.records import NOT_THERE, NOTHING_FOUND, GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.row_groups import RowGroups
from pipeline.store.shards import VERSION_KEY, shard_name, write_shard
from pipeline.training.batches import BatchMaker, Worker
from pipeline.training.counting import count_rows
from pipeline.training.prompts import DetectionPrompter, Sample
from pipeline.training.rows import Rows, make_sources
from pipeline.training.settings import RunConfig, SamplesConfig, TrainConfig

SEEDS = range(20)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def count_words(text: str) -> int:
    return len(text.split())


def row(key: str, *phrases: Phrase, reviewed: bool, reason: str | None = None) -> GroundingRecord:
    return GroundingRecord(
        key=key,
        image=ImageRef(bytes=b"x"),
        height=64,
        width=64,
        caption="an apple by a plum",
        source="web",
        phrases=phrases,
        reject_reason=reason,
        reviewed=reviewed,
    )


def phrase(text: str, score: float | None = None, reason: str | None = None, is_said: bool = True) -> Phrase:
    start = "an apple by a plum".index(text) if is_said else 0
    spans = ((start, start + len(text)),) if is_said else ()
    boxes = () if score is None else (ScoredBox(xyxy=(1, 2, 30, 40), score=score),)
    return Phrase(text=text, char_spans=spans, boxes=boxes, reject_reason=reason)


APPLE = phrase("apple", 1.0)
MADE = row("made", phrase("apple", 0.5), phrase("plum", reason="below_min_score"), reviewed=False)
JUDGED = row("judged", APPLE, phrase("plum", reason=NOT_THERE), reviewed=True)
EMPTY = row("empty", phrase("apple", reason=NOT_THERE), reviewed=True, reason=NOTHING_FOUND)
ADDED = row("added", APPLE, phrase("coal", 1.0, is_said=False), reviewed=True)
OPEN = row("open", phrase("plum", reason="below_min_score"), reviewed=True, reason=NOTHING_FOUND)
WITH_REVIEWED = {"pseudo": 0.5, "reviewed": 0.5}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    rows = [MADE, JUDGED, replace(MADE, key="made 2"), EMPTY, ADDED, OPEN]
    write_shard(tmp_path / "labels" / shard_name(0), rows, GroundingRecord)
    return tmp_path / "labels"


def keys(source: Rows) -> list[str]:
    return [sample.key for i in range(len(source)) if (sample := source.sample(i, rng(0))) is not None]


def samples(source: Rows, key: str) -> list[Sample]:
    found = [source.sample(i, rng(seed)) for i in range(len(source)) for seed in SEEDS]
    return [sample for sample in found if sample is not None and sample.key == key]


def test_reviewed_rows_are_a_source_where_they_have_weight(
    labels: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    sources = make_sources(labels, labels, WITH_REVIEWED, samples_config, tokenizer)
    assert {name: keys(source) for name, source in sources.items()} == {
        "pseudo": ["made", "made 2"],
        "reviewed": ["judged", "empty", "added"],
    }
    assert count_rows(labels, labels, WITH_REVIEWED) == {"pseudo": 2, "reviewed": 3}
    (together,) = make_sources(labels, labels, {"pseudo": 1.0}, samples_config, tokenizer).values()
    assert keys(together) == ["made", "judged", "made 2", "empty", "added"]
    assert count_rows(labels, labels, {"pseudo": 1.0}) == {"pseudo": 5}


def test_people_s_boxes_count_whole_whatever_the_weights_of_labels(
    labels: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    config = replace(samples_config, pseudo_weight="score")
    sources = make_sources(labels, labels, WITH_REVIEWED, config, tokenizer)
    assert all(sample.box_weights is None for sample in samples(sources["reviewed"], "judged"))
    assert all(sample.box_weights == (0.5,) for sample in samples(sources["pseudo"], "made"))


def test_what_was_rejected_is_asked_for_and_has_no_box(
    labels: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    source = make_sources(labels, labels, WITH_REVIEWED, samples_config, tokenizer)["reviewed"]
    for key, nowhere, boxes in (("judged", "plum", 1), ("empty", "apple", 0)):
        for sample in samples(source, key):
            place = sample.prompt.phrases.index(nowhere)
            assert place not in sample.ignored_phrases
            assert all(place not in phrases for phrases in sample.box_phrases)
            assert len(sample.boxes) == boxes
    # In rows that nobody reviewed a phrase without a box is unknown.
    made = make_sources(labels, labels, WITH_REVIEWED, samples_config, tokenizer)["pseudo"]
    captions = [sample for sample in samples(made, "made") if "plum" in sample.prompt.phrases]
    assert captions
    assert all(sample.prompt.phrases.index("plum") in sample.ignored_phrases for sample in captions)


def test_phrases_that_the_caption_does_not_have_are_shown_as_a_list(
    labels: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    source = make_sources(labels, labels, WITH_REVIEWED, samples_config, tokenizer)["reviewed"]
    for sample in samples(source, "added"):
        named = {sample.prompt.phrases[i] for phrases in sample.box_phrases for i in phrases}
        assert named == {"apple", "coal"}


def test_rejected_categories_come_before_other_negatives(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig
) -> None:
    config = replace(samples_config, max_negatives=1, full_negatives=0.0)
    record = replace(tiny.detection_record("a", ["apple"]), negative_category_ids=(50, 60))  # sea, coal
    shown = {}
    for reviewed in (False, True):
        folder = tiny.write_detection(tmp_path / str(reviewed), [replace(record, reviewed=reviewed)])
        source = Rows(folder, DetectionPrompter(config, count_words))
        shown[reviewed] = [set(sample.prompt.phrases) for seed in SEEDS if (sample := source.sample(0, rng(seed)))]
    assert all(names >= {"apple", "sea", "coal"} for names in shown[True])
    assert not all(names >= {"apple", "sea", "coal"} for names in shown[False])


def test_shards_of_version_1_give_the_same_samples_to_the_bit(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    rows = [replace(MADE, key=str(i)) for i in range(5)]
    write_shard(tmp_path / "new" / "grounding" / shard_name(0), rows, GroundingRecord)
    tiny.write_detection(
        tmp_path / "new" / "detection", [tiny.detection_record(str(i), ["apple", "sea"]) for i in range(5)]
    )
    for path in (tmp_path / "new").rglob("*.parquet"):
        old = tmp_path / "old" / path.relative_to(tmp_path / "new")
        old.parent.mkdir(parents=True)
        table = pq.read_table(path).drop_columns(["reviewed"])
        metadata = {**table.schema.metadata, VERSION_KEY.encode(): b"1"}
        pq.write_table(table.replace_schema_metadata(metadata), old)
    weights = {"detection": 1.0, "grounding": 1.0}
    for config in (samples_config, replace(samples_config, shuffle_window=8)):
        new, old = (make_sources(tmp_path / name, None, weights, config, tokenizer) for name in ("new", "old"))
        for name in weights:
            assert len(new[name]) == len(old[name]) == 5
            for i in range(5):
                for seed in SEEDS:
                    one, other = rng(seed), rng(seed)
                    assert new[name].sample(i, one) == old[name].sample(i, other)
                    assert one.random() == other.random()
    (pseudo_new,), (pseudo_old,) = (
        make_sources(tmp_path, tmp_path / name / "grounding", {"pseudo": 1.0}, samples_config, tokenizer).values()
        for name in ("new", "old")
    )
    assert [pseudo_new.sample(i, rng(i)) for i in range(5)] == [pseudo_old.sample(i, rng(i)) for i in range(5)]


def test_shards_of_both_versions_may_lie_in_one_folder(
    tmp_path: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    for number in range(2):
        write_shard(tmp_path / shard_name(number), [replace(MADE, key=str(number))], GroundingRecord)
    path = tmp_path / shard_name(0)
    pq.write_table(pq.read_table(path).drop_columns(["reviewed"]), path)
    (source,) = make_sources(tmp_path, tmp_path, {"pseudo": 1.0}, samples_config, tokenizer).values()
    assert keys(source) == ["0", "1"]
    assert source.digest()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Write labels in five shards, of which the second and the last hold rows that were reviewed."""
    for number in range(5):
        rows = [replace(MADE, key=f"{number} {i}", image=ImageRef(path="a.png")) for i in range(4)]
        if number in (1, 4):
            rows[1:3] = [replace(row, key=f"{number} {row.key}") for row in (JUDGED, ADDED)]
        write_shard(tmp_path / "many" / shard_name(number), rows, GroundingRecord)
    old = tmp_path / "many" / shard_name(0)
    pq.write_table(pq.read_table(old).drop_columns(["reviewed"]), old)
    return tmp_path / "many"


REVIEWED_KEYS = ["1 judged", "1 added", "4 judged", "4 added"]


def test_where_labels_stream_reviewed_rows_are_in_memory(
    many: Path, samples_config: SamplesConfig, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = RowGroups.read

    def counted(self: RowGroups, group: int, columns: Any = None) -> Any:
        read.append(int(self.first_rows[group]))
        return whole(self, group, columns)

    monkeypatch.setattr(RowGroups, "read", counted)
    streamed = replace(samples_config, shuffle_window=8)
    sources = make_sources(many, many, WITH_REVIEWED, streamed, tokenizer)
    assert len(read) == 2  # of five groups
    assert (sources["pseudo"].is_streamed, sources["reviewed"].is_streamed) == (True, False)
    assert keys(sources["reviewed"]) == REVIEWED_KEYS
    assert len(sources["pseudo"]) == 20  # of which the reviewed ones are not shown
    assert len(keys(sources["pseudo"])) == 16
    held = make_sources(many, many, WITH_REVIEWED, replace(samples_config, shuffle_window=0), tokenizer)["reviewed"]
    assert held.digest() == sources["reviewed"].digest()
    for i in range(4):
        assert held.sample(i, rng(i)) == sources["reviewed"].sample(i, rng(i))


def test_more_reviewed_rows_than_the_window_has_are_refused(
    many: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    with pytest.raises(TrainingError, match=r"people reviewed 4 rows, .*shuffle_window \(=3\) .*raise it, or leave"):
        make_sources(many, many, WITH_REVIEWED, replace(samples_config, shuffle_window=3), tokenizer)
    assert make_sources(many, many, WITH_REVIEWED, replace(samples_config, shuffle_window=4), tokenizer)


def test_labels_that_nobody_reviewed_have_no_such_rows(
    tmp_path: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    write_shard(tmp_path / shard_name(0), [MADE], GroundingRecord)
    for window in (0, 8):
        config = replace(samples_config, shuffle_window=window)
        assert len(make_sources(tmp_path, tmp_path, WITH_REVIEWED, config, tokenizer)["reviewed"]) == 0


@pytest.mark.parametrize("lanes", [1, 2])
def test_reviewed_rows_come_once_a_pass_in_every_lane_s_turn(
    many: Path, train_config: TrainConfig, tiny: SimpleNamespace, tokenizer: Any, lanes: int
) -> None:
    samples = replace(train_config.samples, shuffle_window=8, shuffle_lanes=lanes, group_by_orientation=True)
    config = replace(train_config, samples=samples, optim=replace(train_config.optim, batch_size=4))
    run = RunConfig(init="teacher", steps=8, mixture=WITH_REVIEWED)
    sources = make_sources(many, many, WITH_REVIEWED, samples, tokenizer)
    maker = BatchMaker(sources, config, run, tiny.model_config(), tokenizer, 0, Worker())
    shown = [row for number in range(256) for name, row in [maker.plan[number]] if name == "reviewed"]
    counts = Counter(shown)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) - min(counts.values()) <= lanes + 1
    assert abs(len(shown) - 128) <= lanes
