"""``python -m stages.train --dry-run``, as it is called."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from stages import train

ROOT = Path(__file__).resolve().parents[2]


def call(*words: object) -> None:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    train.run(parser.parse_args([*map(str, words)]))


def test_dry_run_prints_what_a_recipe_comes_to(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ROOT / "pipeline/training/recipes/glip_l.yaml"
    call("pretrain", "--params", recipe, "--dry-run", "--images-per-s", "0.88")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "model 430,401,824 parameters, 429,199,508 of them trained" in lines
    assert "text_encoder 108,789,504 1e-05 0.01" in lines
    assert "data pseudo: rows unknown without --human" in lines
    assert "length 1,000,000 steps, 64,000,000 pictures; 64 pictures a step on 64 workers" in lines
    assert "step 670,000: learning rate 1e-05, weight decay 0.0001" in lines
    assert "time 315.7 h, 13.2 days, at 0.88 images/s a worker" in lines
    [memory] = [line for line in lines if line.startswith("memory")]
    assert memory.endswith("GB of activations a worker, kept from forward to backward pass")
    assert 5 < float(memory.split()[1]) < 80  # a picture a worker, in bf16
    assert 'model.preset: "glip_l" instead of "glip_t"' in lines


def test_dry_run_of_params_itself_has_no_differences(capsys: pytest.CaptureFixture[str]) -> None:
    call("teacher", "--dry-run")
    assert "instead of" not in capsys.readouterr().out


def test_training_asks_for_its_folders() -> None:
    with pytest.raises(ConfigError, match="training needs --human and --out"):
        call("teacher")
    with pytest.raises(
        ConfigError, match=r"train\.runs has no 'pretrain'; runs: teacher, round_1, round_2, control, one_round"
    ):
        call("pretrain", "--dry-run")


def test_dry_run_says_what_evaluations_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ROOT / "pipeline/training/recipes/odinw_full.yaml"
    call("tune", "--params", recipe, "--dry-run")
    assert "may end training earlier" in capsys.readouterr().out
