"""Pseudo-labelled boxes count by their score, or by how often boxes of their score were right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glip_model.losses import focal_loss
from pipeline.errors import MissingInputError, TrainingError
from pipeline.training.settings import SamplesConfig
from pipeline.training.weights import weigher


def test_boxes_weigh_their_score_or_their_hit_rate(samples_config: SamplesConfig, tmp_path: Path) -> None:
    assert weigher(replace(samples_config, pseudo_weight="one"), None) is None
    by_score = weigher(replace(samples_config, pseudo_weight="score"), None)
    assert by_score is not None
    assert by_score(0.35) == 0.35
    table = tmp_path / "calibration.csv"
    table.write_text("threshold,hit_rate\n0.0,0.1\n0.5,0.6\n1.0,0.9\n", encoding="utf-8")
    by_rate = weigher(replace(samples_config, pseudo_weight="precision"), table)
    assert by_rate is not None
    assert [round(by_rate(score), 3) for score in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.1, 0.35, 0.6, 0.75, 0.9]


def test_a_calibration_that_says_nothing_is_refused(samples_config: SamplesConfig, tmp_path: Path) -> None:
    config = replace(samples_config, pseudo_weight="precision")
    with pytest.raises(TrainingError, match="pass --calibration FILE"):
        weigher(config, None)
    with pytest.raises(MissingInputError, match="no such file; run: dvc repro calibrate"):
        weigher(config, tmp_path / "none.csv")
    table = tmp_path / "calibration.csv"
    for text, message in (
        ("threshold,precision_all\n0.0,0.5\n", "expected the columns threshold and hit_rate"),
        ("threshold,hit_rate\n0.0,x\n", "expected the columns threshold and hit_rate"),
        ("threshold,hit_rate\n0.0,\n", "no box was compared with human ones"),
    ):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(TrainingError, match=message):
            weigher(config, table)


def test_the_positives_of_an_anchor_count_as_its_weight_says() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 4), (torch.rand(2, 5, 4) > 0.6).float()
    mask, weights = torch.ones(2, 4, dtype=torch.bool), torch.rand(2, 5)
    found = focal_loss(logits, targets, mask, 0.25, 2.0, weights)
    slow = 0.0
    for b, a, t in torch.cartesian_prod(torch.arange(2), torch.arange(5), torch.arange(4)).tolist():
        p = float(logits[b, a, t].sigmoid())
        if targets[b, a, t]:
            slow -= 0.25 * float(weights[b, a]) * (1 - p) ** 2 * float(torch.tensor(p).log())
        else:
            slow -= 0.75 * p**2 * float(torch.tensor(1 - p).log())
    assert float(found) == pytest.approx(slow, rel=1e-4)
    assert torch.equal(
        focal_loss(logits, targets, mask, 0.25, 2.0, torch.ones(2, 5)), focal_loss(logits, targets, mask, 0.25, 2.0)
    )
