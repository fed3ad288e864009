"""The training loop in plain PyTorch: it runs the same in one process, under Ray Train, and in a test."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glip_model.glip import GLIP
from glip_model.losses import GroundingCriterion
from glip_model.structures import GroundingBatch
from glip_model.text_encoder import TextStateCache
from pipeline.config import RunConfig, TrainConfig
from pipeline.errors import TrainingError
from pipeline.training.batches import MODEL_STREAM, BatchMaker, TrainingBatch, Worker, chance
from pipeline.training.checkpoints import load_checkpoint, save_checkpoint
from pipeline.training.optim import (
    WeightAverage,
    make_optimizer,
    make_scheduler,
    set_weight_decay,
    weight_decay_factor,
)
from pipeline.training.samples import SampleSource

logger = logging.getLogger(__name__)

LOSS_NAMES = ("loss_token", "loss_box", "loss_centerness")
MAX_SKIPPED_IN_A_ROW = 10
"""Steps with a gradient that is not finite before training gives up."""


@dataclass(frozen=True)
class Progress:
    """What the loop reports now and then, over the steps since its last report."""

    step: int
    losses: Mapping[str, float]
    """Means over steps and workers; NaN when every step was skipped."""
    learning_rate: float
    """Of the next step, for weights that are neither biases nor of backbone or text encoder."""
    images_per_s: float
    data_wait_share: float
    """Share of the time in which this worker waited for data."""
    skipped_steps: int
    """Since the beginning: steps left out because their gradient was not finite."""
    unreadable_pictures: int
    """Since the beginning, over all workers: pictures that could not be read, each replaced by another row."""


class Trainer:
    """One training: model, data order, optimiser, and where its checkpoints rest.

    Args:
        model: with its starting weights; its device is where training runs.
        tokenizer: of the model.
        sources: by the names of the mixture.
        config: shared settings.
        run: steps and mixture.
        seed: of data order and augmentation.
        checkpoints: folder for resuming; None keeps none.
        worker: this process among its equals; torch.distributed must run when there are several.
    """

    def __init__(
        self,
        model: GLIP,
        tokenizer: Any,
        sources: Mapping[str, SampleSource],
        config: TrainConfig,
        run: RunConfig,
        seed: int,
        checkpoints: Path | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.model, self.config, self.run_config, self.seed = model, config, run, seed
        self.checkpoints, self.worker = checkpoints, worker or Worker()
        self._batches = BatchMaker(sources, config, run, model.config, tokenizer, seed, self.worker)
        self._criterion = GroundingCriterion(model.config)
        is_text_frozen = not any(parameter.requires_grad for parameter in model.text_encoder.parameters())
        self._text_states = TextStateCache(model.text_encoder, tokenizer) if is_text_frozen else None
        self._wrapped: nn.Module = model if self.worker.world_size == 1 else DistributedDataParallel(model)
        self._optimizer = make_optimizer(model, config.optim)
        self._scheduler = make_scheduler(self._optimizer, config.optim, run.steps)
        self._average = WeightAverage(model, config.optim.ema_decay) if config.optim.ema_decay else None
        self._fingerprint = _fingerprint(config, run, seed, sources, model)
        self._history: list[Progress] = []
        self._skipped = self._skipped_in_a_row = 0

    def run(self, report: Callable[[Progress], None] | None = None) -> None:
        """Train to the end, from the newest checkpoint where there is one.

        Args:
            report: called every ``log_every`` steps and after the last one; a resumed training first repeats the
                reports of the steps that it need not do again.

        Raises:
            TrainingError: the gradient was not finite, or pictures were unreadable, too many times in a row.
        """
        start = self._resume()
        report = report or (lambda entry: None)
        for entry in self._history:
            report(entry)
        self._wrapped.train()
        for part in self.model.children():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        window = _Window(start)
        batches = self._batches.ahead(start)
        for step in range(start + 1, self.run_config.steps + 1):
            asked = time.monotonic()
            batch = next(batches)
            window.waited += time.monotonic() - asked
            # A stream per step and worker instead of a saved state: a resumed step draws what it would have drawn.
            torch.manual_seed(int(chance(self.seed, MODEL_STREAM, step, self.worker.rank).integers(2**63)))
            window.add(self._step(batch))
            is_last = step == self.run_config.steps
            if step % self.config.log_every == 0 or is_last:
                self._history.append(self._progress(step, window))
                report(self._history[-1])
                window = _Window(step)
            if step % self.config.checkpoint_every == 0 and not is_last:
                self._save(step)
        if self.config.optim.saved_weights == "average":
            self.take_average()

    def take_average(self) -> bool:
        """Give the model the moving average of its weights; return False where there is none."""
        if self._average is not None:
            self._average.copy_to(self.model)
        return self._average is not None

    def _step(self, made: TrainingBatch) -> dict[str, float] | None:
        """Make one optimiser step and return the losses by name; None when the step was skipped."""
        device = next(self.model.parameters()).device
        self._optimizer.zero_grad(set_to_none=True)
        losses = self._backward(self._with_text_states(made).to(device))
        norm = nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self.config.optim.max_grad_norm or math.inf
        )
        # Gradients are averaged over the workers already, so a bad one is seen by all of them alike.
        is_finite = bool(torch.isfinite(norm))
        if not is_finite:
            self._optimizer.zero_grad(set_to_none=True)  # the optimiser passes over parameters without gradients
        done, steps = self._scheduler.last_epoch, self.run_config.steps
        set_weight_decay(self._optimizer, weight_decay_factor(self.config.optim, done, steps))
        self._optimizer.step()
        self._scheduler.step()
        if not is_finite:
            self._skip(made.keys)
            return None
        self._skipped_in_a_row = 0
        if self._average is not None:
            self._average.update(self.model)
        return {name: float(value) for name, value in losses.items()}

    def _backward(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Compute gradients, part by part where they are accumulated; return the losses, means over the parts."""
        parts = batch.split(self.config.optim.accumulate)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            with self._gradients_exchanged(is_last=number == len(parts)):
                with torch.autocast(part.pixel_values.device.type, torch.bfloat16, self.config.optim.bf16):
                    output = self._wrapped(part)
                losses = self._criterion(output, part)
                total = torch.stack(list(losses.values())).sum() / len(parts)
                torch.autograd.backward(total)
            for name, value in {**losses, "loss": total * len(parts)}.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(parts)
        return sums

    def _gradients_exchanged(self, is_last: bool) -> AbstractContextManager[None]:
        """Let workers exchange their gradients once a step, after its last part."""
        if is_last or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def _skip(self, keys: Sequence[str]) -> None:
        self._skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"the gradient was not finite {self._skipped_in_a_row} steps in a row; lower train.optim.learning_rate "
                f"or look at these samples: {', '.join(keys)}"
            )

    def _with_text_states(self, made: TrainingBatch) -> GroundingBatch:
        """Add the states of a frozen text encoder, which encodes every string once."""
        if self._text_states is None:
            return made.inputs
        return replace(made.inputs, text_states=nn.utils.rnn.pad_sequence(self._text_states(made.segments), True))

    def _progress(self, step: int, window: _Window) -> Progress:
        steps, seconds = step - window.start, time.monotonic() - window.began
        # Every worker counts the same skipped steps; the sums and the unreadable pictures are its own.
        sums = self._mean_over_workers([*window.sums.values(), float(self._batches.unreadable)])
        means = [total / window.counted if window.counted else math.nan for total in sums[:-1]]
        return Progress(
            step=step,
            losses=dict(zip(window.sums, means, strict=True)),
            learning_rate=self.config.optim.learning_rate * self._scheduler.lr_lambdas[0](self._scheduler.last_epoch),
            images_per_s=steps * self.config.optim.batch_size / seconds,
            data_wait_share=window.waited / seconds,
            skipped_steps=self._skipped,
            unreadable_pictures=round(sums[-1] * self.worker.world_size),
        )

    def _mean_over_workers(self, values: list[float]) -> list[float]:
        if self.worker.world_size == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=next(self.model.parameters()).device)
        dist.all_reduce(summed)
        return [float(value) / self.worker.world_size for value in summed]

    def _save(self, step: int) -> None:
        if self.checkpoints is None or self.worker.rank:
            return
        state: dict[str, Any] = {
            "model": _trained_state(self.model),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "history": [asdict(entry) for entry in self._history],
            "skipped": self._skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "unreadable": self._batches.unreadable,
        }
        save_checkpoint(self.checkpoints, step, self._fingerprint, state)

    def _resume(self) -> int:
        state = None if self.checkpoints is None else load_checkpoint(self.checkpoints, self._fingerprint)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"], strict=False)  # a frozen text encoder is not among it
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._history = [Progress(**entry) for entry in state["history"]]
        self._skipped, self._skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self._batches.unreadable = state["unreadable"] if self.worker.rank == 0 else 0
        logger.info("resuming after step %d of %d", state["step"], self.run_config.steps)
        return int(state["step"])


class _Window:
    """What adds up between two reports."""

    def __init__(self, start: int) -> None:
        self.start, self.began = start, time.monotonic()
        self.waited = 0.0
        self.counted = 0
        self.sums = dict.fromkeys((*LOSS_NAMES, "loss"), 0.0)

    def add(self, losses: Mapping[str, float] | None) -> None:
        """Take in the losses of a step; a skipped step has none."""
        if losses is not None:
            self.counted += 1
            for name, value in losses.items():
                self.sums[name] += value


def _trained_state(model: GLIP) -> dict[str, Tensor]:
    """Return parameters and buffers without a frozen text encoder, which never changes."""
    frozen = "text_encoder." if model.config.text.frozen else "\0"
    return {name: value for name, value in model.state_dict().items() if not name.startswith(frozen)}


def _fingerprint(
    config: TrainConfig, run: RunConfig, seed: int, sources: Mapping[str, SampleSource], model: GLIP
) -> str:
    """Hash what a checkpoint depends on: settings, data, model shape and starting weights."""
    settings = {"optim": asdict(config.optim), "samples": asdict(config.samples), "run": asdict(run)}
    digests = {name: source.digest() for name, source in sources.items()}
    text = json.dumps([settings, seed, digests, model.config.to_dict()], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(_trained_state(model).items()):
        digest.update(f"{name}{float(value.double().sum()):.9e}".encode())
    return digest.hexdigest()
