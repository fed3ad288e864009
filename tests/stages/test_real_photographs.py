"""The stages of the reproduction on real photographs: 50 COCO pictures, their boxes and their captions."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.store.records import CaptionRecord, DetectionRecord, GroundingRecord, PhrasesRecord
from pipeline.store.shards import PROVENANCE_KEY, list_shards, read_categories, read_metadata, read_shard
from stages import evaluate, inspect, phrases, prepare, pseudo_label, train

ROOT = Path(__file__).resolve().parents[2]
COCO = ROOT.parent / "shared" / "data" / "coco_tiny"

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not COCO.is_dir(), reason=f"the photographs are not here: {COCO}"),
    pytest.mark.filterwarnings("ignore"),
]


SHOWN = 35
"""Pictures of the fifty that training sees."""


def make_params(folder: Path) -> Path:
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    pictures = str(COCO / "train2017")
    boxes = {
        "reader": "coco_detection",
        "annotations": str(COCO / "annotations/instances_train2017.json"),
        "images": pictures,
    }
    captions = {
        "reader": "coco_captions",
        "annotations": str(COCO / "annotations/captions_train2017.json"),
        "images": pictures,
    }
    # The last pictures are for evaluation; they are in the files for training too, and must be found there.
    truth = json.loads((COCO / "annotations/instances_train2017.json").read_text(encoding="utf-8"))
    truth["images"] = truth["images"][SHOWN:]
    (folder / "dev.json").write_text(json.dumps(truth), encoding="utf-8")
    judged = {**boxes, "annotations": str(folder / "dev.json")}
    params["prepare"].update(human=[boxes], web=[captions], dev=[judged], test=[], rows_per_shard=20)
    params["train"].update(num_workers=1, log_every=1, checkpoint_every=100)
    params["train"]["optim"]["batch_size"] = 4
    params["train"]["runs"]["teacher"].update(steps=3, mixture={"detection": 1.0})
    params["train"]["runs"]["round_1"].update(steps=2, mixture={"detection": 0.5, "pseudo": 0.5})
    params["pseudo_label"].update(min_score=0.05, max_area_share=1.0)
    params["evaluate"].update(splits=["dev"], num_actors=1)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return path


def call(stage: Any, params: Path | None, *words: object) -> None:
    parser = argparse.ArgumentParser()
    stage.add_arguments(parser)
    stage.run(parser.parse_args([*map(str, words), *(["--params", str(params)] if params else [])]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_running: None) -> Path:
    """Run every stage once, a few steps each."""
    out = tmp_path_factory.mktemp("photographs")
    params = make_params(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        human, labels = out / "records/human", out / "pseudo_labels"
        call(prepare, params, "--out", out / "records", "--metrics", out / "prepare.json")
        call(train, params, "teacher", "--human", human, "--out", out / "teacher", "--metrics", out / "t.json")
        call(phrases, params, "--records", out / "records/web", "--out", out / "phrases")
        words = ["--records", out / "records/web", "--phrases", out / "phrases", "--teacher", out / "teacher"]
        call(pseudo_label, params, *words, "--out", labels, "--metrics", out / "labels.json")
        words = ["--human", human, "--pseudo-labels", labels, "--teacher", out / "teacher", "--out", out / "student"]
        call(train, params, "round_1", *words)
        words = ["--model", out / "student", "--records", out / "records", "--out", out / "predictions"]
        call(evaluate, params, *words, "--metrics", out / "student.json")
    return out


def read_all(folder: Path, kind: type) -> list[Any]:
    return [record for path in list_shards(folder) for record in read_shard(path, kind)]


def test_detection_records_hold_the_coco_boxes(run: Path) -> None:
    truth = json.loads((COCO / "annotations/instances_train2017.json").read_text(encoding="utf-8"))
    shown = {image["id"] for image in truth["images"][:SHOWN]}
    expected = [row for row in truth["annotations"] if row["image_id"] in shown]
    records = read_all(run / "records/human/detection", DetectionRecord)
    assert len(records) == SHOWN
    assert sum(len(record.objects) for record in records) == len(expected)
    assert len(read_categories(list_shards(run / "records/human/detection")[0])) == 80
    for record in records:
        for item in record.objects:
            x1, y1, x2, y2 = item.xyxy
            assert 0 <= x1 < x2 <= record.width
            assert 0 <= y1 < y2 <= record.height


def test_pictures_of_evaluation_are_kept_out_of_training(run: Path) -> None:
    judged = {record.image.bytes for record in read_all(run / "records/dev/detection", DetectionRecord)}
    assert len(judged) == 50 - SHOWN
    for folder, kind in (("human/detection", DetectionRecord), ("web", CaptionRecord)):
        shown = {record.image.bytes for record in read_all(run / "records" / folder, kind)}
        assert len(shown) == SHOWN
        assert not shown & judged
    metrics = json.loads((run / "prepare.json").read_text(encoding="utf-8"))
    assert metrics["human/detection"]["rejects"] == {"held_out": 50 - SHOWN}


def test_every_caption_is_a_web_pair_with_its_phrases(run: Path) -> None:
    pairs = read_all(run / "records/web", CaptionRecord)
    parsed = read_all(run / "phrases", PhrasesRecord)
    assert len(pairs) >= 5 * SHOWN
    assert [pair.key for pair in pairs] == [row.key for row in parsed]
    assert len({pair.key for pair in pairs}) == len(pairs)
    for row in parsed:
        for phrase in row.phrases:
            said = [row.caption[start:end] for start, end in phrase.char_spans]
            assert said[0] == phrase.text
            assert len({again.casefold().replace("-", " ").rstrip("s") for again in said}) == 1
    assert sum(len(row.phrases) for row in parsed) > 2 * len(parsed)


def test_pseudo_labels_describe_themselves_and_account_for_every_pair(run: Path) -> None:
    pairs = read_all(run / "records/web", CaptionRecord)
    labelled = read_all(run / "pseudo_labels", GroundingRecord)
    assert [row.key for row in labelled] == [pair.key for pair in pairs]
    for row in labelled:
        assert (row.reject_reason is None) == any(phrase.boxes for phrase in row.phrases)
        for phrase in row.phrases:
            assert bool(phrase.boxes) == (phrase.reject_reason is None) or row.reject_reason == "no_phrases"
            for box in phrase.boxes:
                assert 0 <= box.xyxy[0] < box.xyxy[2] <= row.width
                assert 0 <= box.xyxy[1] < box.xyxy[3] <= row.height
                assert 0.05 <= box.score <= 1
    provenance = json.loads(read_metadata(list_shards(run / "pseudo_labels")[0])[PROVENANCE_KEY])
    assert provenance["teacher"]["name"] == "teacher"
    assert provenance["parser"].startswith("en_core_web_sm")
    manifest = json.loads((run / "pseudo_labels/_manifest.json").read_text(encoding="utf-8"))
    assert sum(shard["rows"] for shard in manifest["shards"]) == len(pairs)


def test_the_student_is_evaluated_on_detection_alone(run: Path) -> None:
    metrics = json.loads((run / "student.json").read_text(encoding="utf-8"))
    assert set(metrics["dev"]) == {"detection"}
    (found,) = metrics["dev"]["detection"].values()
    assert 0 <= found["all"]["AP"] <= 100
    assert found["all"]["AR@100"] <= 100


def test_a_second_run_keeps_finished_shards(run: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in list_shards(run / "pseudo_labels")}
    words = ["--records", run / "records/web", "--phrases", run / "phrases", "--teacher", run / "teacher"]
    call(pseudo_label, run / "params.yaml", *words, "--out", run / "pseudo_labels")
    assert {path.name: path.stat().st_mtime_ns for path in list_shards(run / "pseudo_labels")} == before


def test_inspect_draws_a_pair(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in read_all(run / "pseudo_labels", GroundingRecord) if row.reject_reason is None)
    words = [run / "pseudo_labels", "--row", row.key, "--save", run / "pair.png"]
    call(inspect, None, *words)
    assert row.caption in capsys.readouterr().out
    assert (run / "pair.png").stat().st_size > 1000
