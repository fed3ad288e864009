"""Which shards count as finished: whole, and made of exactly what is asked for now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import MissingInputError
from pipeline.pseudo_labels.manifest import (
    NAME_REJECTS_KEY,
    ShardSummary,
    describe_labelling,
    finished_summary,
    read_manifest,
    write_manifest,
)
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import describe_teacher
from pipeline.store.provenance import FINGERPRINT, file_sha256, fingerprint
from pipeline.store.records import DetectedObject, DetectionRecord, GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.resume import MANIFEST_FILE
from pipeline.store.shards import PROVENANCE_KEY, categories_to_metadata, write_shard
from pipeline.store.vocabulary import Vocabulary, read_names

WHOLE = Phrase(text="dog", char_spans=((0, 3),), boxes=(ScoredBox(xyxy=(0, 0, 5, 5), score=0.9),) * 2)
BARE = Phrase(text="cat", char_spans=((4, 7),), reject_reason="below_min_score")


def record(key: str, *phrases: Phrase, reason: str | None = None, image: bytes = b"picture") -> GroundingRecord:
    return GroundingRecord(
        key=key,
        image=ImageRef(bytes=image),
        height=10,
        width=10,
        caption="dog cat",
        source="test",
        phrases=phrases,
        reject_reason=reason,
    )


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "part-00000.parquet"
    # Incompressible bytes, so that a flipped one among them breaks no decompressor.
    rows = [
        record("a", WHOLE, BARE, image=bytes(range(256)) * 40),
        record("b", BARE, reason="no_boxes"),
        record("c", reason="image_unreadable"),
    ]
    write_shard(path, rows, GroundingRecord, {PROVENANCE_KEY: json.dumps({FINGERPRINT: "f1"})})
    return path


def test_summary_counts_rows_phrases_boxes_and_reasons(shard: Path) -> None:
    summary = finished_summary(shard, "f1")
    assert summary is not None
    assert summary == ShardSummary(
        name="part-00000.parquet",
        rows=3,
        phrases=3,
        boxes=2,
        row_rejects={"image_unreadable": 1, "no_boxes": 1},
        phrase_rejects={"below_min_score": 2},
        fingerprint="f1",
        bytes=shard.stat().st_size,
        sha256=file_sha256(shard),
    )
    assert ShardSummary(**json.loads(json.dumps(summary.to_dict()))) == summary


def test_a_manifest_that_says_what_cannot_be_says_nothing(shard: Path, tmp_path: Path) -> None:
    summary = finished_summary(shard, "f1")
    assert summary is not None
    write_manifest(tmp_path, {}, [summary])
    assert read_manifest(tmp_path) == {shard.name: summary}
    manifest = tmp_path / MANIFEST_FILE
    sound = json.loads(manifest.read_text())
    for name, value in (
        ("rows", -1),
        ("rows", "many"),
        ("boxes", None),
        ("row_rejects", [1]),
        ("phrase_rejects", {"a": -1}),
    ):
        lying = {**sound, "shards": [{**sound["shards"][0], name: value}]}
        manifest.write_text(json.dumps(lying))
        assert read_manifest(tmp_path) == {}
    for text in ("", "[]", '{"shards": 3}', '{"shards": [3]}', '{"shards": {"a": 1}}', "[" * 100_000):
        manifest.write_text(text)
        assert read_manifest(tmp_path) == {}


def test_other_missing_or_foreign_shards_are_not_finished(shard: Path, tmp_path: Path) -> None:
    assert finished_summary(shard, "f2") is None
    assert finished_summary(tmp_path / "part-00001.parquet", "f1") is None
    for metadata in ({}, {PROVENANCE_KEY: "{not json"}, {PROVENANCE_KEY: "[]"}):
        write_shard(shard, [], GroundingRecord, metadata)
        assert finished_summary(shard, "f1") is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_cut_off_shard_is_not_finished(shard: Path, share: float) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * share)])
    assert finished_summary(shard, "f1") is None


def test_a_flipped_bit_in_a_picture_is_noticed(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[data.index(bytes(range(100, 140)))] ^= 1
    shard.write_bytes(data)
    assert finished_summary(shard, "f1") is None


def test_fingerprint_depends_on_values_and_not_on_their_order() -> None:
    first = fingerprint({"teacher": "t", "settings": {"a": 1, "b": 2}})
    assert first == fingerprint({"settings": {"b": 2, "a": 1}, "teacher": "t"})
    assert first != fingerprint({"teacher": "t", "settings": {"a": 1, "b": 3}})


def test_teacher_is_its_weights_its_config_and_its_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    files = ("model.safetensors", "config.json", "tokenizer.json")
    for name in files:
        (folder / name).write_text(name)
    before = describe_teacher(str(folder))
    assert before["name"] == "teacher"
    assert before["sha256"] == file_sha256(folder / "model.safetensors")
    for name in files:
        (folder / name).write_text(name + " changed")
        after = describe_teacher(str(folder))
        assert after != before
        before = after
    (folder / "training_log.csv").write_text("1,2")
    assert describe_teacher(str(folder)) == before


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_missing_teacher_is_named(tmp_path: Path, missing: str) -> None:
    for name in {"model.safetensors", "config.json"} - {missing}:
        (tmp_path / name).write_text("x")
    with pytest.raises(MissingInputError, match=f"{missing}: no such model; run: dvc repro train"):
        describe_teacher(str(tmp_path))


def test_pictures_labelled_with_names_are_summed_up_from_their_shard(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    head = {"image": ImageRef(bytes=b"x"), "height": 10, "width": 10, "source": "test"}
    boxes = (DetectedObject(category_id=1, xyxy=(0, 0, 5, 5), score=0.5),) * 2
    rows = [
        DetectionRecord(key="a", objects=boxes, **head),
        DetectionRecord(key="b", objects=(), reject_reason="no_boxes", **head),
        DetectionRecord(key="c", objects=(), reject_reason="image_unreadable", **head),
    ]
    names = read_names("cat, dog")
    metadata = {PROVENANCE_KEY: json.dumps({FINGERPRINT: "f1"}), NAME_REJECTS_KEY: '{"below_min_score": 3}'}
    write_shard(path, rows, DetectionRecord, metadata | categories_to_metadata(names.categories))
    summary = finished_summary(path, "f1")
    assert summary is not None
    assert (summary.rows, summary.phrases, summary.boxes) == (3, 4, 2)
    assert summary.row_rejects == {"image_unreadable": 1, "no_boxes": 1}
    assert summary.phrase_rejects == {"below_min_score": 3}
    write_shard(path, rows, DetectionRecord, metadata | {NAME_REJECTS_KEY: "[]"})
    assert finished_summary(path, "f1") is None


def test_labels_depend_on_names_prompts_and_thresholds(random_teacher: Path, label_config: PseudoLabelConfig) -> None:
    asked = [
        None,
        read_names("cat, dog"),
        read_names("dog, cat"),
        read_names("cat, dog").with_min_scores({"dog": 0.5}, 0.3),
        Vocabulary.of({"tom": "cat", "dog": "dog"}),
    ]
    found = [fingerprint(describe_labelling(str(random_teacher), label_config, 100, names)) for names in asked]
    assert len(set(found)) == len(asked)
