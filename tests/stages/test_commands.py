"""All commands, both ways to call them: help that costs nothing, mistakes, extras that are not installed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.inspection.exports import EXPORTS
from pipeline.report.compose import BASELINES
from pipeline.store.records import CaptionRecord
from pipeline.store.shards import shard_name, write_shard
from pipeline.submission.job import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from pipeline.training.finetune import BATCH_SIZE, RATES
from stages import glip

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem not in ("__init__", "glip"))
HEAVY = (
    "dvc",
    "duckdb",
    "fsspec",
    "jinja2",
    "numpy",
    "PIL",
    "pyarrow",
    "pydantic",
    "ray",
    "spacy",
    "timm",
    "torch",
    "tqdm",
    "transformers",
    "upath",
    "yaml",
)
"""Packages that ``--help`` has no use for."""
SECONDS = 0.6
"""Of processor time that ``--help`` may take, twice what it is meant to: machines are busy."""
WATCHED = f"""
import atexit, json, os, runpy, sys
def tell():
    imported = sorted(set({HEAVY!r}) & set(sys.modules))
    print(json.dumps([sum(os.times()[:2]), imported]), file=sys.stderr)
atexit.register(tell)
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def python(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", MODULES)
def test_help_of_every_module_answers_at_once(name: str) -> None:
    done = python("-c", WATCHED, f"stages.{name}", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m stages.{name} ")
    seconds, imported = json.loads(done.stderr)
    assert imported == []
    assert seconds < SECONDS


@pytest.mark.parametrize("name", glip.COMMANDS)
def test_help_of_every_command_answers_at_once(name: str, tmp_path: Path) -> None:
    done = python("-c", WATCHED, "stages.glip", name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: glip {name} ")
    seconds, imported = json.loads(done.stderr)
    assert imported == []
    assert seconds < SECONDS


def test_every_module_is_a_command_but_those_that_others_call() -> None:
    assert set(MODULES) - set(glip.COMMANDS) == {"in_round", "submitted", "train_only"}


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        glip.main(["--help"])
    assert ended.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [name for name in listed if name in glip.COMMANDS] == list(glip.COMMANDS)


def test_names_may_be_written_with_hyphens(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        glip.main(["pseudo-label", "--help"])
    assert ended.value.code == 0
    assert "usage: glip pseudo-label" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evalaute"], "evalaute is no command; did you mean evaluate?"),
        (["qqq", "--help"], "qqq is no command; see glip --help"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_mistyped_commands_exit_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        glip.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_command_names_the_extra_that_it_misses(tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError('No module named pyarrow', name='pyarrow')")
    words = ("-m", "stages.manifest", "--shards", "x", "--out", "y")
    done = python(*words, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 2
    assert done.stderr == (
        "error: pyarrow is not installed; this needs the extra: pip install 'glip-self-training[pipeline]'\n"
    )


def test_calibrate_names_the_records_that_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "web" / shard_name(0), [], CaptionRecord)
    words = ["calibrate", "--records", f"{tmp_path}/web", "--teacher", "t", "--out", "curves.csv"]
    with pytest.raises(SystemExit) as ended:
        glip.main(words)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "holds caption records; expected human grounding or detection data" in message
    assert "such as data/records/dev" in message


def test_what_help_says_is_what_the_rooms_have() -> None:
    """Help repeats some names and numbers of rooms that are too heavy to import for it."""
    parsers = {}
    for name in ("finetune", "inspect", "jobs", "report", "score"):
        parsers[name] = argparse.ArgumentParser()
        importlib.import_module(f"stages.{name}").add_arguments(parsers[name])
    options = {(name, action.dest): action for name, parser in parsers.items() for action in parser._actions}
    assert set(options["finetune", "tuning"].choices or ()) == set(RATES)
    assert options["finetune", "batch_size"].default == BATCH_SIZE
    assert options["finetune", "learning_rate"].help == (
        f"(default: {RATES['full']:g}, of prompt {RATES['prompt']:g}, of lora {RATES['lora']:g})"
    )
    assert set(options["inspect", "export"].choices or ()) == set(EXPORTS)
    assert f"{ADDRESS_VARIABLE}, else {DEFAULT_ADDRESS}" in str(options["jobs", "address"].help)
    assert ", ".join(BASELINES) in str(options["report", "models"].help)
