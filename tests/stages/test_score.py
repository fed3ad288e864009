"""``glip score`` from its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages import glip

LVIS = Path(__file__).resolve().parents[3] / "shared" / "data" / "lvis_100"
TRUTH: dict[str, Any] = {
    "images": [{"id": 3, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
    "categories": [{"id": 7, "name": "cup", "frequency": "f"}],
    "annotations": [{"id": 1, "image_id": 3, "category_id": 7, "bbox": [0, 0, 50, 50], "area": 2400.5, "iscrowd": 0}],
}
FOUND = [
    {"image_id": 3, "category_id": 7, "bbox": [80, 80, 50, 50], "score": 0.9},
    {"image_id": 3, "category_id": 8, "bbox": [0, 0, 50, 50], "score": 0.8},
    {"image_id": 3, "category_id": 7, "bbox": [0, 0, 50, 36], "score": 0.7},
]


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH), encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps(FOUND), encoding="utf-8")
    return ["--annotations", tmp_path / "truth.json", "--predictions", tmp_path / "found.json"]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        glip.main(["score", *map(str, words)])
    return int(ended.value.code or 0)


def test_coco_prints_twelve_numbers_and_writes_them_as_fractions(
    files: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--protocol", "coco", *files, "--json", tmp_path / "out.json") == 0
    assert capsys.readouterr().out.splitlines() == [
        "AP       25.00",
        "AP50     50.00",
        "AP75      0.00",
        "APs          –",
        "APm      25.00",
        "APl          –",
        "AR@1      0.00",
        "AR@10    50.00",
        "AR@100   50.00",
        "ARs          –",
        "ARm      50.00",
        "ARl          –",
    ]
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["AP50"] == pytest.approx(0.5)
    assert written["APs"] is None
    assert run("--protocol", "coco", *files, "--max-detections", 1) == 0
    assert "AR@1    0.00" in capsys.readouterr().out


def test_lvis_limits_are_options(files: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for words, name, recall in (
        (["lvis"], "AR@300", 0.5),
        (["lvis", "--max-detections", 2], "AR@2", 0),
        (["lvis", "--max-detections", -1], "AR@-1", 0.5),
        (["lvis", "--per-category", 1], "AR@300", 0),
        (["lvis-fixed"], "AR@-1", 0.5),
        (["lvis-fixed", "--per-category", 1], "AR@-1", 0),
        (["lvis-fixed", "--per-category", -1, "--max-detections", 300], "AR@300", 0.5),
    ):
        assert run("--protocol", *words, *files, "--json", out) == 0
        assert json.loads(out.read_text(encoding="utf-8"))[name] == pytest.approx(recall), words


@pytest.mark.skipif(not LVIS.is_dir(), reason=f"the annotations are not here: {LVIS}")
def test_real_lvis_annotations_score_as_by_the_reference_evaluator(tmp_path: Path) -> None:
    expected = json.loads((LVIS / "expected.json").read_text(encoding="utf-8"))
    files = ["--annotations", LVIS / "lvis_val_100.json", "--predictions", LVIS / "predictions.json"]
    for words, block in (
        (["lvis"], "standard_top300_per_image"),
        (["lvis-fixed"], "fixed_ap_top10000_per_category"),
        (["lvis-fixed", "--per-category", 25], "fixed_ap_top25_per_category"),
    ):
        assert run("--protocol", *words, *files, "--json", tmp_path / "out.json") == 0
        assert json.loads((tmp_path / "out.json").read_text()) == pytest.approx(expected[block], abs=1e-9)


def test_nonsense_is_a_message(files: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--protocol", "coco", *files, "--max-detections", 0) == 2
    assert "--max-detections is 0; expected at least 1" in capsys.readouterr().err
    assert run("--protocol", "lvis", *files, "--per-category", -2) == 2
    assert "--per-category is -2; expected at least 1, or -1 for all" in capsys.readouterr().err
    assert run("--protocol", "coco", *files, "--per-category", 5) == 2
    assert "--per-category goes with --protocol lvis or lvis-fixed" in capsys.readouterr().err
    (tmp_path / "found.json").write_text('[{"image_id": 4}]', encoding="utf-8")
    assert run("--protocol", "coco", *files) == 2
    assert "error: " in capsys.readouterr().err


def test_an_annotation_with_id_0_counts_as_for_the_evaluators_and_a_warning_says_what_is_lost(
    files: list[object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """pycocotools marks a match by the annotation's id, so that a match of id 0 reads as none."""
    for annotation_id, expected in ((1, 0.5), (0, 0)):
        truth = {**TRUTH, "annotations": [{**TRUTH["annotations"][0], "id": annotation_id}]}
        (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
        for protocol in ("coco", "lvis"):
            assert run("--protocol", protocol, *files, "--json", tmp_path / "out.json") == 0
            assert json.loads((tmp_path / "out.json").read_text())["AP50"] == pytest.approx(expected)
            warning = caplog.text
            caplog.clear()
            assert ("truth.json: an annotation has id 0" in warning) == (annotation_id == 0)
            assert ("AP50 50.00" in warning) == (annotation_id == 0)
    (tmp_path / "found.json").write_text("[]", encoding="utf-8")
    assert run("--protocol", "coco", *files) == 0
    assert "they would be the same here" in caplog.text


def test_what_the_annotations_do_not_list_is_counted(
    files: list[object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = TRUTH["annotations"][0]
    truth = {**TRUTH, "annotations": [box, {**box, "id": 77, "category_id": 99}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    found = [{**box, "score": 0.5}, {**box, "score": 0.5, "category_id": str(box["category_id"])}]
    (tmp_path / "found.json").write_text(json.dumps(found), encoding="utf-8")
    assert run("--protocol", "coco", *files) == 0
    assert "truth.json: annotations: 1 of 2 are left out" in caplog.text
    assert "id 77" in caplog.text
    told = "found.json: 1 of 2 detections are left out, of categories that the annotations do not list, such as"
    assert f"{told} '{box['category_id']}'" in caplog.text
