"""``glip review_gain`` in miniature: labels of a dozen pairs are corrected, students learn from them and are judged."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from pipeline.prepare.embedded.tables import web_truth
from pipeline.settings import load_all
from pipeline.store.records import GroundingRecord, ScoredBox
from pipeline.store.shards import read_shard, shard_name, write_shard
from stages import review_gain
from stages.glip import main

ROOT = Path(__file__).resolve().parents[2]
PAIRS, REVIEWED = 12, 4
EMBEDDED = {"base_concepts": 4, "novel_concepts": 2, "image_size": 64, "human_detection": 8, "human_grounding": 2}
EMBEDDED |= {"web": PAIRS, "dev": 6, "test": 1}
SMALL = {
    "extends": str(ROOT / "params.yaml"),
    "prepare": {"embedded": EMBEDDED},
    "train": {
        "optim": {"batch_size": 2, "warmup_steps": 0},
        "samples": {
            "short_sides": [64],
            "long_side": 64,
            "max_prompt_tokens": 64,
            "max_negatives": 2,
            "caption_negatives": 0,
        },
        "runs": {"round_1": {"init": "teacher", "steps": 2, "mixture": {"detection": 0.5, "pseudo": 0.5}}},
        "num_workers": 0,
        "log_every": 1,
    },
    "evaluate": {"splits": ["dev"], "num_actors": 1, "batch_size": 2, "precision": "float32"},
}


def glip(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    return int(ended.value.code or 0)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Run the stages that the command drives in this process, whose Ray is up; give those that were, and for whom."""
    seen: list[tuple[str, Path]] = []

    def run_here(words: Sequence[object], what: Any) -> None:
        name, *given = map(str, words)
        stage = importlib.import_module(name)
        parser = argparse.ArgumentParser()
        stage.add_arguments(parser)
        stage.run(parser.parse_args(given))
        seen.append((name, what))

    monkeypatch.setattr(review_gain, "run_module", run_here)
    return seen


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    monkeypatch.setattr(review_gain, "BASE", path)
    return path


@pytest.fixture
def labels(params: Path, tmp_path: Path) -> Path:
    """Give labels of all pairs in which every phrase has one box, in the same corner."""
    settings, box = load_all(params), ScoredBox(xyxy=(0, 0, 12, 12), score=0.5)
    rows = []
    for number in range(PAIRS):
        truth = web_truth(settings.prepare.embedded, settings.seed, number)
        rows.append(replace(truth, phrases=tuple(replace(p, split=None, boxes=(box,)) for p in truth.phrases)))
    write_shard(tmp_path / "labels" / shard_name(0), rows, GroundingRecord)
    return tmp_path / "labels"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_running")
@pytest.mark.filterwarnings("ignore")
def test_students_of_corrected_labels_are_trained_judged_and_told_of(
    labels: Path, params: Path, ran: list[tuple[str, Path]], tiny_glip: GLIPConfig, tokenizer: Any, tmp_path: Path
) -> None:
    records, teacher, out, table = (tmp_path / name for name in ("records", "teacher", "out", "plots/review_gain.csv"))
    assert glip("prepare", "--params", params, "--out", records) == 0
    torch.manual_seed(0)
    GLIP(replace(tiny_glip, score_threshold=0.0)).save_pretrained(teacher, tokenizer)
    places = ["--labels", labels, "--records", records, "--teacher", teacher, "--out", out, "--table", table]
    words = ["review_gain", *places, "--params", params, "--orders", "random", "--error-rate", 0]
    assert glip(*words, "--reviewed", 0, REVIEWED) == 0
    students = [out / "none_0", out / f"random_{REVIEWED}"]
    assert ran == [(stage, each) for each in students for stage in ("stages.train_only", "stages.evaluate")]

    mixture = load_all(students[1] / "settings.yaml").train.runs["round_1"].mixture
    assert mixture["reviewed"] == pytest.approx(0.5 * 3 * REVIEWED / (3 * REVIEWED + PAIRS - REVIEWED), abs=1e-3)
    assert mixture["detection"] == 0.5
    merged = list(read_shard(students[1] / "labels" / shard_name(0), GroundingRecord))
    assert sum(row.reviewed for row in merged) == REVIEWED
    with table.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["order"], line["reviewed"], line["rows"]) for line in lines] == [
        ("none", "0", "0"),
        ("random", str(REVIEWED), str(REVIEWED)),
    ]
    assert float(lines[0]["precision_all"]) < float(lines[1]["precision_all"])
    for line, student in zip(lines, students, strict=True):
        (judged,) = json.loads((student / "model.json").read_text(encoding="utf-8"))["dev"]["detection"].values()
        assert float(line["novel_ap"]) == pytest.approx(judged["novel"]["AP"])
        assert float(line["base_ap"]) == pytest.approx(judged["base"]["AP"])
        assert GLIP.from_pretrained(student / "model").trained_on is not None
    ran.clear()
    before = table.read_bytes()
    assert glip(*words, "--reviewed", 0, REVIEWED) == 0  # what is finished stays
    assert (ran, table.read_bytes()) == ([], before)
    assert glip(*words, "--reviewed", 0, 1, "--labels-only") == 0  # beside lines without a student
    with table.open(encoding="utf-8") as file:
        again = list(csv.DictReader(file))
    assert again[0] == lines[0]
    assert (again[1]["reviewed"], again[1]["novel_ap"]) == ("1", "")
