"""The phrases stage from its command line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml

from pipeline.cli import run_stage
from pipeline.store.records import CaptionRecord, ImageRef, PhrasesRecord
from pipeline.store.shards import read_shard, shard_name, write_shard
from stages import phrases

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        run_stage(phrases.__doc__, phrases.add_arguments, phrases.run, list(map(str, words)))
    return int(ended.value.code or 0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_stage_writes_shards_metrics_and_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    captions = ["two dogs on a sofa", "a picture", ""]
    rows = [
        CaptionRecord(key=str(i), image=ImageRef(path="x"), height=1, width=1, caption=text, source="t")
        for i, text in enumerate(captions)
    ]
    write_shard(tmp_path / "web" / shard_name(0), rows, CaptionRecord)
    words = ["--records", tmp_path / "web", "--out", tmp_path / "phrases", "--metrics", tmp_path / "metrics.json"]
    with caplog.at_level(logging.INFO):
        assert run(*words, "--params", PARAMS) == 0
    records = read_shard(tmp_path / "phrases" / shard_name(0), PhrasesRecord)
    assert [[phrase.text for phrase in record.phrases] for record in records] == [["dogs", "sofa"], [], []]
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["rows"] == 3
    assert metrics["rejects"] == {"caption_empty": 1, "no_phrases": 1}
    assert "phrases: 3 captions, 2 phrases, 2 unique, 2 rejected" in caplog.text


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_missing_records_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--records", tmp_path / "web", "--out", tmp_path / "phrases", "--params", PARAMS) == 2
    assert "web: no Parquet shards" in capsys.readouterr().err


def test_misspelt_setting_exits_2_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    params["phrases"]["max_wrds"] = params["phrases"].pop("max_words")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    assert run("--records", tmp_path, "--out", tmp_path / "out", "--params", tmp_path / "params.yaml") == 2
    assert "phrases.max_wrds is not a setting; did you mean max_words?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
