"""One optimiser step after another: gradients over parts and workers, clipping, what is skipped, the moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glip_model.glip import GLIP
from glip_model.losses import GroundingCriterion
from glip_model.structures import GroundingBatch
from pipeline.config import OptimConfig
from pipeline.errors import TrainingError
from pipeline.training.optim import (
    Plateau,
    WeightAverage,
    make_optimizer,
    make_scheduler,
    set_weight_decay,
    weight_decay_factor,
)

MAX_SKIPPED_IN_A_ROW = 10
"""Steps with a gradient that is not finite before training gives up."""


class Updater:
    """Moves the weights of a model, batch by batch.

    Args:
        model: with its starting weights; its device is where training runs.
        config: of the optimiser.
        steps: of the whole training.
        world_size: processes that train this model together; torch.distributed must run when there are several.
    """

    def __init__(self, model: GLIP, config: OptimConfig, steps: int, world_size: int = 1) -> None:
        self.model, self._config, self._steps = model, config, steps
        self.criterion = GroundingCriterion(model.config)
        self.wrapped: nn.Module = model if world_size == 1 else DistributedDataParallel(model)
        self.optimizer = make_optimizer(model, config)
        self._scheduler = make_scheduler(self.optimizer, config, steps)
        self._plateau = Plateau(config) if config.schedule == "plateau" else None
        self._average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        self.skipped = self._skipped_in_a_row = 0

    @property
    def learning_rate(self) -> float:
        """Of the next step, for weights that are neither biases nor of backbone or text encoder."""
        rate = self._config.learning_rate * self._scheduler.lr_lambdas[0](self._scheduler.last_epoch)
        return rate if self._plateau is None else self._plateau.lower(rate)

    def step(self, batch: GroundingBatch, keys: Sequence[str]) -> dict[str, float] | None:
        """Make one optimiser step and return the losses by name; None when the step was skipped.

        Args:
            batch: on the model's device.
            keys: of its rows, to name them when training gives up.

        Raises:
            TrainingError: the gradient was not finite too many times in a row.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.backward(batch)
        norm = nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self._config.max_grad_norm or math.inf
        )
        # Gradients are averaged over the workers already, so a bad one is seen by all of them alike.
        is_finite = bool(torch.isfinite(norm))
        if not is_finite:
            self.optimizer.zero_grad(set_to_none=True)  # the optimiser passes over parameters without gradients
        set_weight_decay(self.optimizer, weight_decay_factor(self._config, self._scheduler.last_epoch, self._steps))
        self.optimizer.step()
        self._scheduler.step()
        self._lower_rates()
        if not is_finite:
            self._skip(keys)
            return None
        self._skipped_in_a_row = 0
        if self._average is not None:
            self._average.update(self.model)
        return {name: float(value) for name, value in losses.items()}

    def backward(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Compute gradients, part by part where they are accumulated; return the losses, means over the parts."""
        parts = batch.split(self._config.accumulate)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            with self._gradients_exchanged(is_last=number == len(parts)):
                with torch.autocast(part.pixel_values.device.type, torch.bfloat16, self._config.bf16):
                    output = self.wrapped(part)
                losses = self.criterion(output, part)
                total = torch.stack(list(losses.values())).sum() / len(parts)
                torch.autograd.backward(total)
            for name, value in {**losses, "loss": total * len(parts)}.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(parts)
        return sums

    def take_score(self, score: float) -> bool:
        """Let the schedule follow the score of an evaluation, NaN for none; return whether training shall stop."""
        if self._plateau is None:
            return False
        is_over = self._plateau.take(score, self._scheduler.last_epoch)
        self._lower_rates()
        return is_over

    def model_to_judge(self) -> GLIP:
        """Return a copy of the model as it would be saved now; the one that trains is not touched."""
        judged = copy.deepcopy(self.model)
        if self._average is not None and self._config.saved_weights == "average":
            self._average.copy_to(judged)
        return judged

    def take_average(self) -> bool:
        """Give the model the moving average of its weights; return False where there is none."""
        if self._average is not None:
            self._average.copy_to(self.model)
        return self._average is not None

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` takes."""
        return {
            "model": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self.model.load_state_dict(state["model"], strict=False)  # a frozen text encoder is not among it
        self.optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.skipped, self._skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]

    def _gradients_exchanged(self, is_last: bool) -> AbstractContextManager[None]:
        """Let workers exchange their gradients once a step, after its last part."""
        if is_last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()

    def _lower_rates(self) -> None:
        if self._plateau is not None:
            for group, rate in zip(self.optimizer.param_groups, self._scheduler.get_last_lr(), strict=True):
                group["lr"] = self._plateau.lower(float(rate))

    def _skip(self, keys: Sequence[str]) -> None:
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"the gradient was not finite {self._skipped_in_a_row} steps in a row; lower train.optim.learning_rate "
                f"or look at these samples: {', '.join(keys)}"
            )


def trained_state(model: GLIP) -> dict[str, Tensor]:
    """Return parameters and buffers without a frozen text encoder, which never changes."""
    frozen = "text_encoder." if model.config.text.frozen else "\0"
    return {name: value for name, value in model.state_dict().items() if not name.startswith(frozen)}
