"""One optimiser step after another: gradients over parts and workers, clipping, what is skipped, the moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from glip_model.glip import GLIP
from glip_model.losses import GroundingCriterion
from glip_model.structures import GroundingBatch
from pipeline.errors import TrainingError
from pipeline.training.adapters import merged
from pipeline.training.distillation import LOSS, Distillation
from pipeline.training.distribution import (
    compile_layers,
    distribute,
    exchange_gradients,
    gather,
    is_spread,
    spread,
    spread_optimizer,
)
from pipeline.training.divergence import SkippedStep, write_divergence
from pipeline.training.optim import (
    Plateau,
    WeightAverage,
    make_optimizer,
    make_scheduler,
    set_weight_decay,
    weight_decay_factor,
)

if TYPE_CHECKING:  # as in ``optim``
    from pipeline.store.storage import Place
    from pipeline.training.settings import OptimConfig

MAX_SKIPPED_IN_A_ROW = 10
"""Steps with a gradient that is not finite before training gives up."""


class Updater:
    """Moves the weights of a model, batch by batch.

    Args:
        model: with its starting weights; its device is where training runs.
        config: of the optimiser.
        steps: of the whole training.
        distribution: what the processes of torch.distributed share, where it runs.
        compiled: compile the layers of the model.
        diverged: JSON file for the samples of the last skipped steps, written when training gives up.
        distillation: adds a loss of its own.
    """

    def __init__(
        self,
        model: GLIP,
        config: OptimConfig,
        steps: int,
        distribution: Literal["ddp", "fsdp"] = "ddp",
        compiled: bool = False,
        diverged: Place | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        self.model, self._config, self._steps, self._diverged = model, config, steps, diverged
        self._distillation = distillation
        self.criterion = GroundingCriterion(model.config)
        self._half = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
        if compiled:
            compile_layers(model)
        self.wrapped = distribute(model, distribution, self._half)
        self.optimizer = make_optimizer(model, config)
        self._scheduler = make_scheduler(self.optimizer, config, steps)
        self._scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=config.fp16)
        self._plateau = Plateau(config) if config.schedule == "plateau" else None
        self._average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        self.skipped = self._skipped_in_a_row = 0
        self._last_skipped: list[SkippedStep] = []

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step, for weights that are neither biases nor of backbone or text encoder."""
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
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self._config.max_grad_norm or math.inf
        )
        whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # All figures at once: a GPU is waited for a single time a step.
        norm_value, *values = torch.stack([whole_norm, *losses.values()]).tolist()
        # Gradients are averaged over the workers already, so a bad one is seen by all of them alike.
        is_finite, found = math.isfinite(norm_value), dict(zip(losses, values, strict=True))
        if not is_finite:
            self.optimizer.zero_grad(set_to_none=True)  # the optimiser passes over parameters without gradients
            skipped = SkippedStep(self._scheduler.last_epoch + 1, self.learning_rate, keys, found)
        set_weight_decay(self.optimizer, weight_decay_factor(self._config, self._scheduler.last_epoch, self._steps))
        self.optimizer.step()
        self._scheduler.step()
        self._lower_rates()
        if not is_finite:
            self._skip(skipped)
            return None
        self._scaler.update()
        self._skipped_in_a_row = 0
        self._last_skipped.clear()
        if self._average is not None:
            self._average.update(self.model)
        return found

    def backward(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Compute gradients, part by part where they are accumulated; return the losses, means over the parts."""
        parts = batch.split(self._config.accumulate)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            exchange_gradients(self.wrapped, wanted=number == len(parts))
            with torch.autocast(part.pixel_values.device.type, self._half, self._half is not None):
                output = self.wrapped(part)
                kept = None if self._distillation is None else self._distillation(output, part)
            losses = self.criterion(output, part)
            losses |= {} if kept is None else {LOSS: kept}
            total = torch.stack(list(losses.values())).sum() / len(parts)
            # A loss that is not finite leaves no gradient finite, on no worker: all of them skip the step.
            total = total * torch.where(total.isfinite(), 1.0, math.nan)
            torch.autograd.backward(self._scaler.scale(total))
            for name, value in {**losses, "loss": total * len(parts)}.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(parts)
        return sums

    def step_plateau(self, score: float) -> bool:
        """Step the plateau schedule with an evaluation's score, NaN for none; return whether training shall stop."""
        if self._plateau is None:
            return False
        is_over = self._plateau.step(score, self._scheduler.last_epoch)
        self._lower_rates()
        return is_over

    def model_to_judge(self) -> GLIP | None:
        """Return a copy of the model as it would be saved now on the first worker; all workers must call it."""
        average = self._average if self._config.saved_weights == "average" else None
        shadow = {} if average is None else average.state_dict()["shadow"]
        whole = self.whole_model()
        if whole is None or (dist.is_initialized() and dist.get_rank() > 0):
            return None
        judged = copy.deepcopy(whole) if whole is self.model else whole
        judged.load_state_dict(shadow, strict=False)
        return merged(judged).to(next(self.model.parameters()).device)

    def load_average(self) -> bool:
        """Load the moving average of the weights into the model; return False where there is none."""
        if self._average is not None:
            self._average.copy_to(self.model)
        return self._average is not None

    def whole_model(self) -> GLIP | None:
        """Return the model with all of its weights; all workers must call it.

        Where the weights are spread over the workers, that is a copy on the first worker's CPU, and None elsewhere.
        """
        if not is_spread(self.model):
            return self.model
        state = gather(self.model.state_dict())
        if dist.get_rank() > 0:
            return None
        whole = GLIP(self.model.config)
        whole.load_state_dict(state)
        whole.trained_on = self.model.trained_on
        return whole

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` takes, however many workers there are and whatever they share.

        All workers must call it; where weights are spread over them, the first one gets the state.
        """
        return {
            "model": gather(trained_state(self.model)),
            "optimizer": gather(self.optimizer.state_dict()),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state; every worker passes all of it."""
        own = self.model.state_dict()
        weights = {name: spread(value, own[name]) for name, value in state["model"].items()}
        self.model.load_state_dict(weights, strict=False)  # a frozen text encoder is not among it
        self.optimizer.load_state_dict(spread_optimizer(state["optimizer"], self.optimizer))
        self._scheduler.load_state_dict(state["scheduler"])
        self._scaler.load_state_dict(state["scaler"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.skipped, self._skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]

    def _lower_rates(self) -> None:
        if self._plateau is not None:
            for group, rate in zip(self.optimizer.param_groups, self._scheduler.get_last_lr(), strict=True):
                group["lr"] = self._plateau.lower(float(rate))

    def _skip(self, step: SkippedStep) -> None:
        self.skipped += 1
        # While the loss scale is above 1, overflows belong to its search for a value and do not count as divergence.
        if self._scaler.get_scale() <= 1:
            self._skipped_in_a_row += 1
            self._last_skipped.append(step)
        self._scaler.update()
        if self._skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
            return
        samples = f"these samples: {', '.join(step.keys)}"
        if self._diverged is not None:
            write_divergence(self._diverged, self._last_skipped)
            samples = f"the samples in {self._diverged}"
        raise TrainingError(
            f"the gradient was not finite {self._skipped_in_a_row} steps in a row; lower train.optim.learning_rate "
            f"or look at {samples}"
        )


def trained_state(model: GLIP) -> dict[str, Tensor]:
    """Return parameters and buffers without a frozen text encoder, which never changes."""
    frozen = "text_encoder." if model.config.text.frozen else "\0"
    return {name: value for name, value in model.state_dict().items() if not name.startswith(frozen)}
