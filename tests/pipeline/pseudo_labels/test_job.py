"""The pseudo_label stage on a real local Ray with a small random teacher: whole, interrupted, with broken inputs."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import MissingInputError, RejectLimitError, ShardError
from pipeline.pseudo_labels import job, manifest
from pipeline.pseudo_labels.decoding import PictureDecoder
from pipeline.pseudo_labels.job import Inputs, pseudo_label
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import open_teacher
from pipeline.store.provenance import FINGERPRINT, file_sha256, modules_behind
from pipeline.store.records import CaptionRecord, GroundingRecord, ImageRef, PhrasesRecord
from pipeline.store.resume import MANIFEST_FILE
from pipeline.store.shards import (
    PROVENANCE_KEY,
    list_shards,
    read_metadata,
    read_shard,
    rows_sha256,
    shard_name,
    write_shard,
)

NUM_SHARDS = 3
MAX_PIXELS = 10_000


@pytest.fixture(scope="module")
def config(label_config: PseudoLabelConfig) -> PseudoLabelConfig:
    # A random teacher scores low and draws anything.
    return dataclasses.replace(label_config, min_score=0.01, min_box_side=0.5, max_area_share=1.0, num_actors=1)


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    random_teacher: Path,
    pair: Callable[..., CaptionRecord],
    parsed: Callable[..., PhrasesRecord],
    picture: Callable[..., bytes],
) -> Inputs:
    """Three shards of three pairs, the last pair of each with a broken picture."""
    folder = tmp_path_factory.mktemp("job")
    for number in range(NUM_SHARDS):
        rows = [
            pair(f"{number}-0", picture(red=(2, 3, 12, 13)), "a red hat on a dog"),
            pair(f"{number}-1", picture((20, 40), blue=(number, 3, 18, 36)), "two dogs"),
            pair(f"{number}-2", b"broken", "a cat"),
        ]
        phrases = [parsed(rows[0], "red hat", "dog"), parsed(rows[1], "dogs"), parsed(rows[2], "cat")]
        write_shard(folder / "web" / shard_name(number), rows, CaptionRecord)
        write_shard(
            folder / "phrases" / shard_name(number), phrases, PhrasesRecord, {PROVENANCE_KEY: '{"parser": "spacy==1"}'}
        )
    return Inputs(records=folder / "web", phrases=folder / "phrases", teacher=str(random_teacher), out=folder / "out")


@pytest.fixture(scope="module")
def metrics(inputs: Inputs, config: PseudoLabelConfig, ray_running: None) -> dict[str, object]:
    """Label everything once; ``inputs.out`` stays as it is then."""
    return pseudo_label(inputs, config, MAX_PIXELS)


@pytest.fixture
def copy(inputs: Inputs, metrics: dict[str, object], tmp_path: Path) -> Inputs:
    """A finished output of one's own, and inputs that may be broken."""
    for name in ("records", "phrases", "out"):
        shutil.copytree(getattr(inputs, name), tmp_path / name)
    return dataclasses.replace(inputs, records=tmp_path / "records", phrases=tmp_path / "phrases", out=tmp_path / "out")


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in list_shards(folder)}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in list_shards(folder)}


@pytest.mark.ray
def test_every_pair_comes_back_in_its_shard_and_place(inputs: Inputs, metrics: dict[str, object]) -> None:
    for number in range(NUM_SHARDS):
        records = read_shard(inputs.out / shard_name(number), GroundingRecord)
        assert [record.key for record in records] == [f"{number}-{i}" for i in range(3)]
        assert [record.reject_reason for record in records] == [None, None, "image_unreadable"]
        assert [len(record.phrases) for record in records] == [2, 1, 1]
    assert sorted(path.name for path in inputs.out.iterdir()) == [MANIFEST_FILE, *map(shard_name, range(NUM_SHARDS))]


@pytest.mark.ray
def test_metrics_and_manifest_say_what_was_made(inputs: Inputs, metrics: dict[str, object]) -> None:
    records = [record for path in list_shards(inputs.out) for record in read_shard(path, GroundingRecord)]
    boxes = sum(len(phrase.boxes) for record in records for phrase in record.phrases)
    assert boxes > 0
    assert metrics["images_per_s"] > 0  # type: ignore[operator]
    assert {name: value for name, value in metrics.items() if name not in ("images_per_s", "phrase_rejects")} == {
        "shards": 3,
        "rows": 9,
        "rows_labelled": 6,
        "row_rejects": {"image_unreadable": 3},
        "phrases": 12,
        "boxes": boxes,
        "boxes_per_row": round(boxes / 9, 3),
    }
    manifest = json.loads((inputs.out / MANIFEST_FILE).read_text(encoding="utf-8"))
    assert {shard["name"]: shard["sha256"] for shard in manifest["shards"]} == hashes(inputs.out)
    assert sum(shard["rows"] for shard in manifest["shards"]) == 9
    assert sum(shard["boxes"] for shard in manifest["shards"]) == boxes


@pytest.mark.ray
def test_every_shard_says_what_made_it(inputs: Inputs, metrics: dict[str, object], config: PseudoLabelConfig) -> None:
    for path in list_shards(inputs.out):
        provenance = json.loads(read_metadata(path)[PROVENANCE_KEY])
        assert provenance["teacher"]["name"] == "teacher"
        assert provenance["teacher"]["sha256"] == file_sha256(Path(inputs.teacher) / "model.safetensors")
        assert provenance["parser"] == "spacy==1"
        assert provenance["settings"]["min_score"] == config.min_score
        assert provenance["settings"]["max_image_pixels"] == MAX_PIXELS
        assert provenance["input"] == {
            "pairs": rows_sha256(inputs.records / path.name),
            "phrases": rows_sha256(inputs.phrases / path.name),
        }


@pytest.mark.ray
def test_finished_shards_are_kept(copy: Inputs, config: PseudoLabelConfig, metrics: dict[str, object]) -> None:
    before = times(copy.out)
    free = dataclasses.replace(config, num_actors=7, max_reject_share=0.9)  # neither changes a row
    again = pseudo_label(copy, free, MAX_PIXELS)
    assert times(copy.out) == before
    assert again == {**metrics, "images_per_s": None}


@pytest.mark.ray
def test_only_what_is_missing_broken_or_foreign_is_made_anew(
    inputs: Inputs, copy: Inputs, config: PseudoLabelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (copy.out / shard_name(0)).unlink()
    broken = copy.out / shard_name(1)
    broken.write_bytes(broken.read_bytes()[:-100])
    shutil.copy(copy.out / shard_name(2), copy.out / shard_name(7))  # of a web set with more shards
    (copy.out / f".{shard_name(0)}.4711").write_bytes(b"half")  # of a process that was killed
    (copy.out / MANIFEST_FILE).unlink()
    before = times(copy.out)
    with caplog.at_level(logging.INFO):
        pseudo_label(copy, config, MAX_PIXELS)
    assert times(copy.out)[shard_name(2)] == before[shard_name(2)]
    # The very same bytes as in one go.
    assert hashes(copy.out) == hashes(inputs.out)
    assert (copy.out / MANIFEST_FILE).read_bytes() == (inputs.out / MANIFEST_FILE).read_bytes()
    assert sorted(path.name for path in copy.out.iterdir()) == [MANIFEST_FILE, *map(shard_name, range(NUM_SHARDS))]
    assert "1 of 3 shards were finished already" in caplog.text
    assert "removed 2 shards" in caplog.text


@pytest.mark.ray
def test_another_threshold_makes_everything_anew_and_says_so(
    copy: Inputs, config: PseudoLabelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        metrics = pseudo_label(copy, dataclasses.replace(config, min_score=1.0), MAX_PIXELS)
    assert metrics["boxes"] == 0
    assert metrics["row_rejects"] == {"image_unreadable": 3, "no_boxes": 6}
    assert "removed 3 shards" in caplog.text
    for path in list_shards(copy.out):
        assert json.loads(read_metadata(path)[PROVENANCE_KEY])["settings"]["min_score"] == 1.0


@pytest.mark.ray
def test_labels_of_another_precision_are_made_anew(inputs: Inputs, copy: Inputs, config: PseudoLabelConfig) -> None:
    before = times(copy.out)
    pseudo_label(copy, dataclasses.replace(config, precision="auto"), MAX_PIXELS)
    if not torch.cuda.is_available():
        assert times(copy.out) == before  # which are of float32
    pseudo_label(copy, dataclasses.replace(config, precision="bf16"), MAX_PIXELS)
    for path in list_shards(copy.out):
        assert json.loads(read_metadata(path)[PROVENANCE_KEY])["settings"]["precision"] == "bf16"
        assert scores(path) != scores(inputs.out / path.name)


def scores(path: Path) -> list[float | None]:
    phrases = [phrase for record in read_shard(path, GroundingRecord) for phrase in record.phrases]
    return [box.score for phrase in phrases for box in phrase.boxes]


@pytest.mark.ray
def test_broken_inputs_are_named_after_the_others_are_done(copy: Inputs, config: PseudoLabelConfig) -> None:
    shutil.rmtree(copy.out)
    for folder, number in ((copy.records, 0), (copy.phrases, 1)):
        path = folder / shard_name(number)
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ShardError) as caught:
        pseudo_label(copy, config, MAX_PIXELS)
    assert "2 shards cannot be labelled, the others are done:" in str(caught.value)
    assert f"{copy.records / shard_name(0)}: not a readable Parquet file" in str(caught.value)
    assert f"{copy.phrases / shard_name(1)}: not a readable Parquet file" in str(caught.value)
    assert [path.name for path in list_shards(copy.out)] == [shard_name(2)]
    assert not (copy.out / MANIFEST_FILE).exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_broken_teacher_is_a_message(copy: Inputs, config: PseudoLabelConfig, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(copy.teacher, teacher)
    (teacher / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ShardError, match=r"teacher: not a usable teacher .*; run: dvc repro train_baseline@teacher"):
        pseudo_label(dataclasses.replace(copy, teacher=str(teacher)), config, MAX_PIXELS)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_a_teacher_that_finds_nothing_is_told(
    copy: Inputs, config: PseudoLabelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = dataclasses.replace(config, min_score=1.0)
    told = r"out: the teacher .* found nothing that is kept in 4 pictures; .*'below_min_score': 6.*min_score \(=1.0\)"
    monkeypatch.setattr(job, "PICTURES_THAT_TELL", 7)
    assert pseudo_label(copy, blind, MAX_PIXELS)["boxes"] == 0  # of six pictures: too few to tell
    monkeypatch.setattr(job, "PICTURES_THAT_TELL", 4)
    with pytest.raises(ShardError, match="found nothing that is kept in 6 pictures"):
        pseudo_label(copy, blind, MAX_PIXELS)  # nor is a finished run of before taken for good
    shutil.rmtree(copy.out)
    with pytest.raises(ShardError, match=told):
        pseudo_label(copy, blind, MAX_PIXELS)
    assert 2 <= len(list_shards(copy.out)) <= NUM_SHARDS


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_pictures_outside_of_what_is_allowed_are_labelled_once_they_are(
    copy: Inputs, config: PseudoLabelConfig, tmp_path: Path
) -> None:
    path = list_shards(copy.records)[0]
    rows = read_shard(path, CaptionRecord)
    (tmp_path / "elsewhere").mkdir()
    for i, row in enumerate(rows):
        (tmp_path / f"elsewhere/{i}.png").write_bytes(row.image.bytes or b"")
    moved = [
        dataclasses.replace(row, image=ImageRef(path=f"{tmp_path}/elsewhere/{i}.png")) for i, row in enumerate(rows)
    ]
    write_shard(path, moved, CaptionRecord)
    limited = dataclasses.replace(config, max_reject_share=0.4)
    told = r"5 of 9 rows are broken .*image_outside_folder: .* add the folder or URL above it to image_roots"
    with pytest.raises(RejectLimitError, match=told):
        pseudo_label(copy, limited, MAX_PIXELS)
    before = times(copy.out)
    allowing = dataclasses.replace(copy, allowed=(str(tmp_path / "elsewhere"),))
    assert pseudo_label(allowing, limited, MAX_PIXELS)["row_rejects"] == {"image_unreadable": 3}
    assert {name for name, time in times(copy.out).items() if time != before[name]} == {path.name}


@pytest.mark.ray
def test_too_many_broken_rows_stop_the_stage_with_its_shards_kept(copy: Inputs, config: PseudoLabelConfig) -> None:
    before = times(copy.out)
    with pytest.raises(RejectLimitError, match=r"3 of 9 rows are broken .*max_reject_share = 0\.1; mend the data"):
        pseudo_label(copy, dataclasses.replace(config, max_reject_share=0.1), MAX_PIXELS)
    assert times(copy.out) == before


def test_missing_phrases_are_named_before_anything_is_removed(inputs: Inputs, config: PseudoLabelConfig) -> None:
    with pytest.raises(MissingInputError, match=r"no phrases for .*part-00000\.parquet; run: dvc repro phrases"):
        pseudo_label(dataclasses.replace(inputs, phrases=inputs.phrases / "none"), config, MAX_PIXELS)


def test_missing_teacher_is_named(inputs: Inputs, config: PseudoLabelConfig) -> None:
    with pytest.raises(
        MissingInputError, match=r"no such folder; .*; to make one run: dvc repro train_baseline@teacher"
    ):
        pseudo_label(dataclasses.replace(inputs, teacher=f"{inputs.teacher}/none"), config, MAX_PIXELS)


def fingerprints(inputs: Inputs, config: PseudoLabelConfig, max_pixels: int = MAX_PIXELS) -> list[str]:
    entries = job._plan(inputs, config, max_pixels, list_shards(inputs.records))
    return [entries[inputs.out / shard_name(number)][FINGERPRINT] for number in range(NUM_SHARDS)]


def test_fingerprint_follows_all_that_decides_a_row(
    inputs: Inputs, config: PseudoLabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprints(inputs, config)
    assert len(set(before)) == NUM_SHARDS
    free = dataclasses.replace(config, num_actors=config.num_actors + 1, max_reject_share=0.01)
    assert fingerprints(inputs, free) == before
    for name, value in (("min_score", 0.7), ("one_box_per_singular", False), ("batch_size", 3), ("precision", "bf16")):
        assert not set(fingerprints(inputs, dataclasses.replace(config, **{name: value}))) & set(before)
    assert not set(fingerprints(inputs, config, MAX_PIXELS + 1)) & set(before)

    phrases = tmp_path / "phrases"
    shutil.copytree(inputs.phrases, phrases)
    write_shard(phrases / shard_name(1), [], PhrasesRecord)
    after = fingerprints(dataclasses.replace(inputs, phrases=phrases), config)
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]

    teacher = tmp_path / "teacher"
    shutil.copytree(inputs.teacher, teacher)
    (teacher / "config.json").write_text("{}")
    assert not set(fingerprints(dataclasses.replace(inputs, teacher=str(teacher)), config)) & set(before)

    monkeypatch.setattr(manifest, "code_sha256", lambda roots: "changed")
    assert not set(fingerprints(inputs, config)) & set(before)


def test_labelling_code_names_the_files_that_decide_a_row() -> None:
    names = set(modules_behind([PictureDecoder, PseudoLabeller, open_teacher]))
    assert {"pipeline.pseudo_labels.selection", "pipeline.pseudo_labels.labeller", "pipeline.store.images"} <= names
    assert {"glip_model.postprocess", "glip_model.preprocess", "glip_model.glip"} <= names
    assert "pipeline.pseudo_labels.open_set_teachers" in names  # imported inside of a function
    assert not names & {"pipeline.cli", "pipeline.ray_session", "pipeline.pseudo_labels.job", "glip_model.losses"}
