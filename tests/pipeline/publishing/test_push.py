"""``glip push``: what comes to a hub is what a stranger can use, and the cards say what it is."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.predictor import GLIPPredictor
from glip_model.trained_on import TrainedOn
from pipeline.publishing.markdown import block, plain
from pipeline.publishing.model_card import results
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import read_shard, shard_name, write_shard
from stages.glip import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own way to send
TOKEN = "hf_averysecrettokenofthetests"
METRICS = {
    "dev": {"detection": {"embedded": {"all": {"AP": 1.0}}}},
    "test": {
        "detection": {"embedded": {"all": {"AP": 46.01, "AP50": 65.54}, "novel": {"AP": 32.5}}},
        "referring": {"embedded": {"all": {"P@1": 67.67}}},
    },
}


def glip(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    return int(ended.value.code or 0)


def front_matter(card: str) -> dict[str, Any]:
    _, metadata, _ = card.split("---\n", 2)
    return yaml.safe_load(metadata)  # type: ignore[no-any-return]


@pytest.fixture
def model(tiny_glip: GLIPConfig, tokenizer: Any, tmp_path: Path) -> Path:
    """A model of the graph, with its papers beside it."""
    torch.manual_seed(0)
    made = GLIP(tiny_glip)
    made.trained_on = TrainedOn({"embedded": 12_000, "web|<b>": 5}, 96, 96, "emoji scenes")
    folder = tmp_path / "run/models/round_1"
    made.save_pretrained(folder, tokenizer)
    papers = {
        "metrics/models/round_1.json": METRICS,
        "metrics/calibration/round_1.json": {"at_min_score": {"precision_all": 0.7673, "threshold": 0.28}},
    }
    for name, content in papers.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True)
        (tmp_path / "run" / name).write_text(json.dumps(content))
    (tmp_path / "run/reports").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "run/reports/side_by_side.png")
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), "green").save(buffer, "PNG")
    rows = [
        GroundingRecord(
            key=f"{i}",
            image=ImageRef(bytes=buffer.getvalue()),
            height=60,
            width=90,
            source="web",
            caption="a cat sits",
            license=("CC BY 2.0 | <b>", None, None)[i],
            phrases=(
                Phrase(
                    text="a cat",
                    char_spans=((0, 5),),
                    boxes=(ScoredBox(xyxy=(5, 5, 40, 40), score=0.5),) if i else (),
                    reject_reason=None if i else "below_min_score",
                ),
            ),
            reject_reason=None if i else "no_boxes",
        )
        for i in range(3)
    ]
    made = {
        "teacher": {"name": "round_0", "sha256": "ab" * 32},
        "parser": "en_core_web_sm==3.8.0",
        "settings": {"min_score": 0.28},
        "schema_version": "1",
    }
    folder = tmp_path / "labels"
    write_shard(folder / shard_name(0), rows, GroundingRecord, {"glip.provenance": json.dumps(made)})
    return folder


def test_a_model_comes_whole_with_code_and_a_card(
    hub: Any, model: Path, tmp_path: Path, noise: Callable[[int, int], Image.Image]
) -> None:
    assert glip("push", model, "--repo", "someone/student") == 0
    pushed = hub.repositories["someone/student"]
    assert hub.kinds["someone/student"] == ("model", False)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "modeling_glip.py"}
    assert wanted | {"README.md", "example.png", "configuration_glip.py"} <= set(pushed)
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in pushed.items():
        (arrived / name).write_bytes(content)
    picture = noise(96, 64)
    here, there = (GLIPPredictor.from_pretrained(each).predict(picture, ["cat"])[0] for each in (model, arrived))
    assert torch.equal(here.scores, there.scores)

    card = pushed["README.md"].decode()
    metadata = front_matter(card)
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "zero-shot-object-detection"
    (index,) = metadata["model-index"]
    assert index["name"] == "student"
    told = {
        (each["dataset"]["name"], each["dataset"]["split"], metric["name"], metric["value"])
        for each in index["results"]
        for metric in each["metrics"]
    }
    assert told == {
        ("embedded", "test", "AP", 46.01),
        ("embedded", "test", "AP50", 65.54),
        ("embedded", "test", "AP (novel)", 32.5),
        ("embedded", "test", "P@1", 67.67),
    }
    assert "96-px emoji scenes" in card
    assert "| web\\|\\<b\\> | 5 |" in card
    assert "precision_all: 0.767" in card
    assert "| detection, embedded | all | AP | 46.0 |" in card
    assert "round_1:" in card  # the recipe: settings of the run of this name
    assert "![What it finds](example.png)" in card


def test_pushed_again_large_files_are_not_sent_again(hub: Any, model: Path) -> None:
    assert glip("push", model, "--repo", "someone/student", "--private") == 0
    assert hub.kinds["someone/student"] == ("model", True)
    sent = [call for call in hub.calls if call.startswith("PUT")]
    hub.calls.clear()
    assert glip("push", model, "--repo", "someone/student") == 0
    assert len(sent) == 2  # weights and picture
    assert not [call for call in hub.calls if call.startswith("PUT")]


def test_a_dry_run_writes_the_folder_and_sends_nothing(hub: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "dry"
    assert glip("push", model, "--repo", "someone/student", "--dry-run", out, "--licence", "cc-by-4.0") == 0
    assert hub.calls == []
    assert front_matter((out / "README.md").read_text())["license"] == "cc-by-4.0"
    assert GLIPPredictor.from_pretrained(out).model.trained_on == GLIP.from_pretrained(model).trained_on
    assert glip("push", model, "--repo", "someone/student", "--dry-run", out) == 2


def test_the_folder_of_a_dry_run_is_apart_from_the_labels(labels: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "dry", (labels / shard_name(0)).read_bytes()
    assert glip("push", labels, "--repo", "someone/labels", "--type", "dataset", "--dry-run", out) == 0
    with (out / shard_name(0)).open("ab") as shard:
        shard.write(b"changed")
    assert (labels / shard_name(0)).read_bytes() == before


def test_the_card_of_labels_counts_the_licences_of_pictures(labels: Path, tmp_path: Path) -> None:
    words = ("push", labels, "--repo", "someone/labels", "--type", "dataset", "--dry-run")
    assert glip(*words, tmp_path / "some") == 0
    card = (tmp_path / "some/README.md").read_text().partition("## Licence")[2]
    assert "| licence of the picture | rows |" in card
    assert "| CC BY 2.0 \\| \\<b\\> | 1 |\n| unknown | 2 |" in card
    assert "| license | string | of the picture" in (tmp_path / "some/README.md").read_text()
    rows = [replace(row, license=None) for row in read_shard(labels / shard_name(0), GroundingRecord)]
    write_shard(labels / shard_name(0), rows, GroundingRecord)
    assert glip(*words, tmp_path / "none") == 0
    assert "name no licence of any picture" in (tmp_path / "none/README.md").read_text()


def test_a_model_without_papers_has_a_card_all_the_same(model: Path, tmp_path: Path) -> None:
    alone = model.rename(tmp_path / "alone")
    out = tmp_path / "dry"
    assert glip("push", alone, "--repo", "someone/alone", "--dry-run", out) == 0
    card = (out / "README.md").read_text()
    assert "model-index" not in front_matter(card)
    assert "Results" not in card
    assert not (out / "example.png").exists()


@pytest.mark.filterwarnings("ignore")  # of datasets
def test_labels_come_as_they_are_and_datasets_reads_them(hub: Any, labels: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert glip("push", labels, "--repo", "someone/labels", "--type", "dataset") == 0
    pushed = hub.repositories["someone/labels"]
    assert hub.kinds["someone/labels"] == ("dataset", False)
    assert pushed[shard_name(0)] == (labels / shard_name(0)).read_bytes()
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in pushed.items():
        (arrived / name).write_bytes(content)
    table = datasets.load_dataset(str(arrived), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.num_rows == 3
    assert isinstance(table.features["image"], datasets.Image)
    assert table[1]["image"].size == (90, 60)
    assert table[1]["phrases"][0]["boxes"] == [{"x1": 5.0, "y1": 5.0, "x2": 40.0, "y2": 40.0, "score": 0.5}]

    card = pushed["README.md"].decode()
    metadata = front_matter(card)
    assert metadata["size_categories"] == ["n<1K"]
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "part-*.parquet"}]
    for words in (
        "round\\_0",
        "abab",
        '"min_score": 0.28',
        "en\\_core\\_web\\_sm",
        "below\\_min\\_score | 1",
        "rows: 3",
    ):
        assert words in card


def test_a_refusal_is_told_without_the_token(
    hub: Any, model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    hub.refusing = 403
    with caplog.at_level(logging.DEBUG):
        assert glip("push", model, "--repo", "someone/student") == 2
    told = capsys.readouterr()
    assert "someone/student: the hub took nothing, or not all" in told.err
    assert "hf auth login" in told.err
    assert TOKEN not in told.out + told.err + caplog.text


def test_a_hub_that_does_not_answer_is_told(hub: Any, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    assert glip("push", model, "--repo", "someone/student") == 2
    assert "someone/student: the hub took nothing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["student", "a/b/c", "some one/x", "../x"])
def test_what_is_no_name_is_refused(model: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert glip("push", model, "--repo", name) == 2
    assert "expected USER/NAME" in capsys.readouterr().err


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert glip("push", tmp_path / "empty", "--repo", "a/b", "--dry-run", tmp_path / "out") == 2
    assert "no config.json" in capsys.readouterr().err
    assert glip("push", tmp_path / "empty", "--repo", "a/b", "--type", "dataset", "--dry-run", tmp_path / "out2") == 2


def test_measures_that_are_no_numbers_are_left_out() -> None:
    odd = {"test": {"detection": {"x": {"all": {"AP": 1.5, "note": "text", "none": None, "flag": True}, "odd": 3}}}}
    assert [(each.measure, each.value) for each in results(odd)] == [("AP", 1.5)]
    assert [each.split for each in results({"dev": METRICS["dev"]})] == ["dev"]
    assert results({}) == []


def test_words_of_others_are_no_markdown() -> None:
    assert plain("a|b\n# <img src=x> [x](y) `c`") == r"a\|b # \<img src=x\> \[x\](y) \`c\`"
    assert block("```\nout\n```")[0] == "````"
