"""Parameter groups, schedules and the moving average."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from glip_model.glip import GLIP
from pipeline.settings import load_all
from pipeline.training.optim import (
    Plateau,
    WeightAverage,
    learning_rate_factor,
    make_optimizer,
    make_scheduler,
    set_weight_decay,
    weight_decay_factor,
)
from pipeline.training.settings import OptimConfig


@pytest.mark.parametrize("frozen_text", [True, False])
def test_every_trained_parameter_is_in_one_group_with_its_rate_and_decay(
    make_model: Callable[..., GLIP], optim_config: OptimConfig, frozen_text: bool
) -> None:
    model = make_model(frozen_text=frozen_text)
    model.backbone.requires_grad_(True)
    found: dict[int, tuple[float, float]] = {}
    for group in make_optimizer(model, optim_config).param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group["lr"], group["weight_decay"]
    expected = {}
    for name, parameter in model.named_parameters():
        rate = 1e-3 if name.startswith("backbone.") else 1e-4 if name.startswith("text_encoder.") else 2e-3
        if parameter.requires_grad:
            expected[id(parameter)] = (2 * rate, 0.0) if "bias" in name else (rate, 0.01)
    assert found == expected
    assert (1e-4 in {rate for rate, _ in found.values()}) is not frozen_text


def test_head_biases_count_as_biases(make_model: Callable[..., GLIP], optim_config: OptimConfig) -> None:
    """The published rule looks for "bias" anywhere in the name."""
    model = make_model()
    group = next(
        group
        for group in make_optimizer(model, optim_config).param_groups
        if any(parameter is model.head.bias_lang for parameter in group["params"])
    )
    assert (group["lr"], group["weight_decay"]) == (4e-3, 0.0)
    assert any(parameter is model.head.bias0 for parameter in group["params"])


def rates(config: OptimConfig, total: int) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    scheduler = make_scheduler(optimizer, config, total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_schedule_warms_up_and_drops_twice(optim_config: OptimConfig) -> None:
    found = rates(replace(optim_config, schedule="steps", warmup_steps=10, decay_at=(0.67, 0.89)), 100)
    expected = [min(1.0, (i + 1) / 10) * (1.0 if i < 67 else 0.1 if i < 89 else 0.01) for i in range(100)]
    assert found == pytest.approx(expected)


def test_cosine_schedule_falls_from_one_towards_its_floor(optim_config: OptimConfig) -> None:
    found = rates(replace(optim_config, schedule="cosine", warmup_steps=0), 100)
    assert found == pytest.approx([0.01 + 0.99 * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(100)])
    assert found[0] == 1.0
    assert found[-1] < 0.011


def test_published_schedule(optim_config: OptimConfig) -> None:
    config = replace(optim_config, schedule="steps", warmup_steps=2000, warmup_from=0.001, decay_at=(0.67, 0.89))
    total = 1_000_000
    expected = {
        0: 0.001,
        1: 0.001 + 0.999 / 2000,
        1999: 0.001 + 0.999 * 1999 / 2000,
        2000: 1.0,
        669_999: 1.0,
        670_000: 0.1,
        889_999: 0.1,
        890_000: 0.01,
        999_999: 0.01,
    }
    assert {step: learning_rate_factor(config, step, total) for step in expected} == pytest.approx(expected)


def test_weight_decay_drops_before_the_learning_rate_does(
    make_model: Callable[..., GLIP], optim_config: OptimConfig
) -> None:
    config = replace(optim_config, schedule="steps", decay_at=(0.67, 0.89), weight_decay_drops=0.667)
    found = [weight_decay_factor(config, step, 1_000_000) for step in (0, 446_889, 446_891, 593_629, 593_631)]
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])
    assert weight_decay_factor(optim_config, 999_999, 1_000_000) == 1.0
    optimizer = make_optimizer(make_model(), config)
    for factor in (0.1, 0.1, 1.0):  # of the first value, however often it is set
        set_weight_decay(optimizer, factor)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01 * factor}


def test_average_follows_its_definition() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, decay=0.5)
    expected = 1.0
    for n, value in enumerate([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0], 1):
        model.weight.data.fill_(value)
        average.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert float(average.shadow["weight"]) == pytest.approx(expected)
    assert decay == 0.5  # warmed up by now
    average.copy_to(model)
    assert float(model.weight.detach()) == pytest.approx(expected)


def test_average_survives_a_round_trip_and_passes_over_frozen_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    average = WeightAverage(model, 0.9)
    assert set(average.shadow) == {"1.weight", "1.bias"}
    model[1].weight.data += 1
    average.update(model)
    other = WeightAverage(model, 0.9)
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
    assert torch.equal(other.shadow["1.weight"], average.shadow["1.weight"])


def plateau_config(**settings: Any) -> OptimConfig:
    return replace(
        load_all(Path(__file__).resolve().parents[3] / "params.yaml").train.optim,
        batch_size=1,
        learning_rate=1.0,
        text_learning_rate=0.0,
        backbone_learning_rate=0.0,
        weight_decay=0.0,
        decay_at=(),
        schedule="plateau",
        max_grad_norm=0.0,
        ema_decay=0.0,
        bf16=False,
        **{"warmup_steps": 0, **settings},
    )


scores = st.lists(st.floats(0.1, 100), min_size=1, max_size=40)


@given(scores, st.integers(0, 4))
def test_plateau_is_torchs(given: list[float], patience: int) -> None:
    config = plateau_config(plateau_patience=patience, plateau_min_rate=1e-6)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.1, patience=patience, min_lr=1e-6, eps=0.0
    )
    plateau = Plateau(config)
    for step, score in enumerate(given):
        torchs.step(score)
        plateau.step(score, step)
        assert plateau.lower(1.0) == pytest.approx(optimizer.param_groups[0]["lr"])


@given(st.lists(st.one_of(st.just(math.nan), st.floats(0, 100)), max_size=40), st.integers(0, 4))
def test_training_stops_after_so_many_scores_below_the_best(given: list[float], stop: int) -> None:
    plateau = Plateau(plateau_config(plateau_stop=stop))
    for number, score in enumerate(given):
        counted = [each for each in given[: number + 1] if not math.isnan(each)]
        below = [each < max(counted[: i + 1]) for i, each in enumerate(counted)]
        tail = len(below) - (max((i for i, is_below in enumerate(below) if not is_below), default=-1) + 1)
        assert plateau.step(score, number) is (not math.isnan(score) and 0 < stop <= tail)


def test_plateau_waits_for_the_warm_up_and_goes_on_where_it_was() -> None:
    config = plateau_config(warmup_steps=5, plateau_patience=0)
    plateau = Plateau(config)
    for step in range(1, 5):
        plateau.step(50.0 - step, step)
    assert plateau.drops == 0
    plateau.step(30.0, 5)
    plateau.step(30.0, 6)
    assert plateau.drops == 1
    other = Plateau(config)
    other.load_state_dict(plateau.state_dict())
    plateau.step(20.0, 7)
    other.step(20.0, 7)
    assert vars(other) == vars(plateau)
    assert other.drops == 2
