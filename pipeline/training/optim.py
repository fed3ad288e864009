"""Parameter groups, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.training.distribution import gather, local, spread

if TYPE_CHECKING:  # a machine that measures steps alone needs no reader of settings
    from pipeline.training.settings import OptimConfig

BIAS_LEARNING_RATE_FACTOR = 2.0
"""Everything with "bias" in its name learns twice as fast and does not decay, as published."""
DECAY_FACTOR = 0.1
GAIN = 1e-4
"""Relative margin by which a score must exceed the best to count as a gain."""
COSINE_FLOOR = 0.01
"""Share of the learning rate that the cosine schedule ends with."""


def parameter_groups(model: nn.Module, config: OptimConfig) -> dict[tuple[float, float], dict[str, nn.Parameter]]:
    """Return all parameters that train by name, grouped by learning rate and weight decay."""
    groups: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = _learning_rate(name, config)
            is_bias = "bias" in name
            key = (rate * BIAS_LEARNING_RATE_FACTOR, 0.0) if is_bias else (rate, config.weight_decay)
            groups.setdefault(key, {})[name] = parameter
    return groups


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over all parameters that train, in groups by learning rate and decay."""
    return torch.optim.AdamW(
        [
            {"params": list(group.values()), "lr": rate, "weight_decay": decay, "initial_weight_decay": decay}
            for (rate, decay), group in parameter_groups(model, config).items()
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=next(model.parameters()).is_cuda or None,  # one kernel in place of a dozen
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimConfig, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the schedule of the learning rate; stepped once per optimiser step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(config, step, total_steps))


class Plateau:
    """Lowers the learning rate when evaluations stop improving, and decides when to stop.

    A score counts as gain when it is above the best by one part in 10,000, as in ``ReduceLROnPlateau``, of which the
    published schedule is one. Evaluations during warm-up do not count, nor do scores of 0.
    """

    def __init__(self, config: OptimConfig) -> None:
        self._config = config
        self.drops = self._without_gain = self._worse = 0
        self._best = self._highest = 0.0

    def step(self, score: float, step: int) -> bool:
        """Take in the score of an evaluation after ``step`` steps, NaN for none; return whether training shall stop."""
        if math.isnan(score):
            return False
        if step >= self._config.warmup_steps and score > 0:
            is_gain = score > self._best * (1 + GAIN)
            self._best = score if is_gain else self._best
            self._without_gain = 0 if is_gain else self._without_gain + 1
            if self._without_gain > self._config.plateau_patience:
                self.drops, self._without_gain = self.drops + 1, 0
        self._worse = self._worse + 1 if score < self._highest else 0
        self._highest = max(self._highest, score)
        return 0 < self._config.plateau_stop <= self._worse

    def lower(self, rate: float) -> float:
        """Return what remains of the learning rate that the schedule gives."""
        return max(rate * DECAY_FACTOR**self.drops, min(rate, self._config.plateau_min_rate))

    def state_dict(self) -> dict[str, float]:
        """Return what ``load_state_dict`` takes."""
        return {name: value for name, value in vars(self).items() if name != "_config"}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state."""
        vars(self).update(state)


def learning_rate_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the share of the learning rate at a step, counted from 0: linear warm-up, then step or cosine decay.

    The factor of ``Plateau`` depends on scores and is not included.
    """
    warmup = _warmup(step, config)
    done = step / max(total_steps, 1)
    if config.schedule == "plateau":
        return warmup
    if config.schedule == "steps":
        return warmup * DECAY_FACTOR ** sum(done >= share for share in config.decay_at)
    return warmup * (COSINE_FLOOR + (1 - COSINE_FLOOR) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def weight_decay_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the share of the weight decay at a step, counted from 0, see ``weight_decay_drops``."""
    if not config.weight_decay_drops:
        return 1.0
    return DECAY_FACTOR ** sum(step >= share * config.weight_decay_drops * total_steps for share in config.decay_at)


def set_weight_decay(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the weight decay of every group to a share of what it began with."""
    for group in optimizer.param_groups:
        group["weight_decay"] = group["initial_weight_decay"] * factor


class WeightAverage:
    """Exponential moving average of all floating-point weights that train.

    The decay warms up as (1 + n) / (10 + n), so that short runs do not remember their random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self._shadows = [local(value) for value in self.shadow.values()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [local(parameter.detach()) for name, parameter in model.named_parameters() if name in self.shadow]
        get_ema_multi_avg_fn(decay)(self._shadows, weights, None)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Replace the weights of ``model`` by the average."""
        for name, parameter in model.named_parameters():
            if name in self.shadow:
                parameter.copy_(self.shadow[name])

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` takes; all workers must call it, see ``gather``."""
        return {"updates": self.updates, "shadow": gather(self.shadow)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average."""
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(spread(value, self.shadow[name]))


def _warmup(step: int, config: OptimConfig) -> float:
    if step >= config.warmup_steps:
        return 1.0
    if config.warmup_from is None:
        return (step + 1) / config.warmup_steps
    return config.warmup_from + (1 - config.warmup_from) * step / config.warmup_steps


def _learning_rate(name: str, config: OptimConfig) -> float:
    name = name.removeprefix("module.")
    if name.startswith("text_encoder."):
        return config.text_learning_rate
    return config.backbone_learning_rate if name.startswith("backbone.") else config.learning_rate
