"""What the report reads of other stages: whole, in part, or not there at all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import BenchmarkError
from pipeline.report import provenance
from pipeline.report.labels import read_json, read_labels


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, value in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")


def write_curves(folder: Path, text: str) -> None:
    (folder / "calibration").mkdir(exist_ok=True)
    (folder / "calibration/round_1.csv").write_text(text, encoding="utf-8")


def test_labels_are_told_by_facts_reasons_and_curves(tmp_path: Path) -> None:
    labels = {"rows": 6000, "boxes": 9718, "boxes_per_row": 1.62, "phrases": 100, "images_per_s": None}
    labels |= {"phrase_rejects": {"not_detected": 5, "below_min_score": 20}, "row_rejects": {}}
    used = {"precision_base": 0.8, "recall_base": 0.98, "precision_novel": None, "recall_novel": 0.5}
    write(
        tmp_path,
        {
            "labels/round_1": labels,
            "phrases": {"unique_phrases": 7},
            "calibration/round_1": {"min_score": 0.28, "at_min_score": used},
        },
    )
    write_curves(
        tmp_path,
        "threshold,precision_all,recall_all,precision_base,recall_base,precision_novel,recall_novel,false_alarms\n"
        "0.0,0.5,0.8,0.5,0.9,0.5,0.7,0.7\n0.5,0.9,0.4,1.0,0.6,,0.0,0.0\n",
    )
    found = read_labels(tmp_path, tmp_path, "round_1")
    assert found
    facts = dict(found.facts)
    assert (facts["web pairs"], facts["boxes a pair"], facts["different phrases"]) == ("6,000", "1.62", "7")
    assert facts["least score"] == "0.28"
    assert "pictures a second" not in facts
    assert found.rejects == [("Phrases without a box", [("below min score", 20, 20.0), ("not detected", 5, 5.0)])]
    assert found.chosen == [("base", 80, 98)]
    precision, recall = found.plots
    assert precision.mark == recall.mark == 0.28
    assert {line.name: line.points for line in precision.lines} == {
        "base": ((0, 50), (0.5, 100)),
        "novel": ((0, 50),),
        "named, but not there": ((0, 70), (0.5, 0)),
    }
    assert [line.name for line in recall.lines] == ["base", "novel"]


def test_data_without_novel_concepts_have_one_curve(tmp_path: Path) -> None:
    write_curves(tmp_path, "threshold,precision_all,precision_base,precision_novel\n0.0,0.5,,\n1.0,0.9,,\n")
    (plot,) = read_labels(tmp_path, tmp_path, "round_1").plots
    assert [line.name for line in plot.lines] == ["all"]


@pytest.mark.parametrize("text", ["", "threshold\n", "threshold,precision_all\n", "a,b\n1,2\n"])
def test_empty_curves_are_no_curves(tmp_path: Path, text: str) -> None:
    write_curves(tmp_path, text)
    assert not read_labels(tmp_path, tmp_path, "round_1")


def test_phrases_alone_tell_of_themselves(tmp_path: Path) -> None:
    write(tmp_path, {"phrases": {"rows": 10, "phrases": 30, "rejects": {"no_phrases": 2}}})
    found = read_labels(tmp_path, tmp_path / "nowhere", "round_1")
    assert found.facts == [("phrases", "30")]
    assert found.rejects == [("Captions without phrases", [("no phrases", 2, 20.0)])]
    assert not read_labels(tmp_path / "nowhere", tmp_path, "round_1")
    assert read_json(tmp_path / "nothing.json") == {}


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"'])
def test_what_is_no_json_object_says_what_to_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "phrases.json").write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"phrases\.json: no JSON .*older version or broken; run: dvc repro"):
        read_labels(tmp_path, tmp_path, "round_1")


def test_stages_tell_how_long_they_took_where_they_know(tmp_path: Path) -> None:
    write(tmp_path, {"train/teacher": {"steps": 1200, "seconds": 5423.27}, "labels/round_1": {"rows": 4}})
    write(tmp_path, {"train/round_1": {"steps": 2, "seconds": 12.345}})
    write(tmp_path, {"train/control": {"steps": 3, "images_per_s": 1234.5}})
    found = provenance.collect(tmp_path / "params.yaml", tmp_path / "dvc.lock", tmp_path)
    assert dict(found.speeds) == {
        "train teacher": {"steps": "1,200", "seconds": "5,423"},
        "train round_1": {"steps": "2", "seconds": "12.35"},
        "train control": {"steps": "3", "images per s": "1,234"},
        "labels round_1": {"rows": "4"},
    }


def test_origin_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "params.yaml").write_text("seed: 0\n", encoding="utf-8")
    for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    outs = [
        {"path": "models/teacher", "md5": "abc.dir", "size": 106_000_000, "nfiles": 4},
        {"path": "metrics/x.json", "md5": "def", "size": 4},
        {"path": "data/x.txt", "md5": "0123", "size": 999},
    ]
    (tmp_path / "dvc.lock").write_text(
        yaml.safe_dump({"stages": {"train": {"outs": outs}, "plan": {}}}), encoding="utf-8"
    )
    train = {"steps": 600, "images_per_s": 55.9, "losses": {"loss": 1.2}}
    write(tmp_path, {"train/teacher": train, "train/empty": {}, "other": {"steps": 1}})
    found = provenance.collect(tmp_path / "params.yaml", tmp_path / "dvc.lock", tmp_path)
    assert len(found.code["commit"]) == 40
    assert found.code["tree"].startswith("clean")  # files that git does not track are none of its
    assert found.params == "seed: 0\n"
    assert found.data == [("data/x.txt", "0123", "999 B", "1"), ("models/teacher", "abc.dir", "106 MB", "4")]
    assert found.speeds == [("train teacher", {"steps": "600", "images per s": "55.9"})]
    assert {"date", "system", "cores", "memory"} <= set(found.machine)
    assert {"python", "torch", "ray", "transformers"} <= set(found.versions)
    (tmp_path / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert provenance.collect(Path("params.yaml"), Path("none"), tmp_path).code["tree"] == "dirty: params.yaml"
    subprocess.run([*git, "add", "train/teacher.json", "dvc.lock"], check=True)
    outs.append({"path": "train/teacher.json", "md5": "456"})
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"train": {"outs": outs}}}), encoding="utf-8")
    tree = provenance.collect(Path("params.yaml"), Path("dvc.lock"), tmp_path).code["tree"]
    assert tree == "dirty: params.yaml"  # what the run writes is no change of its code


def test_origin_of_what_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = provenance.collect(tmp_path / "params.yaml", tmp_path / "dvc.lock", tmp_path / "metrics")
    assert found.code == {"code": "not a git checkout"}
    assert (found.params, found.data, found.speeds) == ("", [], [])
    monkeypatch.setenv("PATH", "")
    assert provenance.collect(tmp_path, tmp_path, tmp_path).code == {"code": "not a git checkout"}
