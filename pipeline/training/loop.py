"""The training loop in plain PyTorch: it runs the same in one process, under Ray Train, and in a test."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glip_model.glip import GLIP
from glip_model.losses import GroundingCriterion
from glip_model.preprocess import collate
from glip_model.structures import GroundingBatch
from glip_model.text_encoder import TextStateCache
from pipeline.config import RunConfig, TrainConfig
from pipeline.errors import TrainingError
from pipeline.training.augment import prepare_sample
from pipeline.training.checkpoints import load_checkpoint, save_checkpoint
from pipeline.training.optim import WeightAverage, make_optimizer, make_scheduler
from pipeline.training.samples import SampleSource, plan_samples

MAX_SKIPPED_IN_A_ROW = 10
"""Steps with a loss that is not finite before training gives up."""
PREFETCHED_BATCHES = 3


@dataclass(frozen=True)
class Progress:
    """What the loop reports after a step."""

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    images_per_s: float
    data_wait_share: float
    """Share of the time spent waiting for data since the last report."""
    skipped_steps: int


@dataclass(frozen=True)
class Worker:
    """Which of how many equal processes this one is."""

    rank: int = 0
    world_size: int = 1


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
        self.model, self.tokenizer, self.sources = model, tokenizer, sources
        self.config, self.run_config, self.seed = config, run, seed
        self.checkpoints, self.worker = checkpoints, worker or Worker()
        batch_size, world_size = config.optim.batch_size, self.worker.world_size
        if batch_size % world_size:
            raise TrainingError(f"train.optim.batch_size (={batch_size}) must be divisible by {world_size} workers")
        sizes = {name: len(source) for name, source in sources.items()}
        self._plan = plan_samples(sizes, run.mixture, run.steps * batch_size, seed)
        self._criterion = GroundingCriterion(model.config)
        self._text_states = TextStateCache(model.text_encoder, tokenizer) if model.config.text.frozen else None
        self._wrapped: nn.Module = model if world_size == 1 else DistributedDataParallel(model)
        self._optimizer = make_optimizer(model, config.optim)
        self._scheduler = make_scheduler(self._optimizer, config.optim, run.steps)
        self._average = WeightAverage(model, config.optim.ema_decay) if config.optim.ema_decay else None
        self._fingerprint = _fingerprint(config, run, seed, sizes, model)
        self._skipped = self._skipped_in_a_row = 0

    def run(self, report: Callable[[Progress], None] | None = None) -> None:
        """Train to the end, from the newest checkpoint where there is one.

        Args:
            report: called every ``log_every`` steps and after the last one.

        Raises:
            TrainingError: the loss was not finite too many times in a row.
        """
        start = self._resume()
        self._wrapped.train()
        sums: dict[str, float] = {}
        began, waited, since = time.monotonic(), 0.0, start
        batches = self._batches(start)
        for step in range(start + 1, self.run_config.steps + 1):
            asked = time.monotonic()
            batch, keys = next(batches)
            waited += time.monotonic() - asked
            for name, value in self._step(batch, keys).items():
                sums[name] = sums.get(name, 0.0) + value
            is_last = step == self.run_config.steps
            if step % self.config.log_every == 0 or is_last:
                seconds, steps = time.monotonic() - began, step - since
                if report is not None:
                    report(self._progress(step, steps, seconds, waited, sums))
                sums, began, waited, since = {}, time.monotonic(), 0.0, step
            if step % self.config.checkpoint_every == 0 and not is_last:
                self._save(step)
        if self._average is not None:
            self._average.copy_to(self.model)

    def _step(self, batch: GroundingBatch, keys: list[str]) -> dict[str, float]:
        device = next(self.model.parameters()).device
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.config.optim.bf16):
            output = self._wrapped(batch)
        losses = self._criterion(output, batch)
        total = torch.stack(list(losses.values())).sum()
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self.config.optim.max_grad_norm or math.inf
        )
        # Gradients are averaged over the ranks already, so a bad one is seen by all of them alike.
        if torch.isfinite(norm):
            self._optimizer.step()
            self._skipped_in_a_row = 0
            if self._average is not None:
                self._average.update(self.model)
        else:
            self._skip(keys)
        self._scheduler.step()
        return {**{name: float(value) for name, value in losses.items()}, "loss": float(total)}

    def _skip(self, keys: list[str]) -> None:
        self._skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"the gradient was not finite {self._skipped_in_a_row} steps in a row; lower train.optim.learning_rate "
                f"or look at these samples: {', '.join(keys)}"
            )

    def _batches(self, start: int) -> Iterator[tuple[GroundingBatch, list[str]]]:
        """Yield the batches of the steps after ``start``, made ahead in a thread."""
        with ThreadPoolExecutor(1) as pool:
            pending = [
                pool.submit(self._make_batch, step)
                for step in range(start, min(start + PREFETCHED_BATCHES, self.run_config.steps))
            ]
            for step in range(start, self.run_config.steps):
                batch, keys, segments = pending.pop(0).result()
                if step + PREFETCHED_BATCHES < self.run_config.steps:
                    pending.append(pool.submit(self._make_batch, step + PREFETCHED_BATCHES))
                yield self._with_text_states(batch, segments), keys

    def _make_batch(self, step: int) -> tuple[GroundingBatch, list[str], list[tuple[str, ...]]]:
        share = self.config.optim.batch_size // self.worker.world_size
        first = step * self.config.optim.batch_size + self.worker.rank * share
        samples_config = self.config.samples
        # One size for all ranks of a step, so that none waits for a larger picture.
        sides = samples_config.short_sides
        short_side = sides[int(np.random.default_rng([self.seed, 1, step]).integers(len(sides)))]
        images, prompts, targets, keys = [], [], [], []
        for number in range(first, first + share):
            name, row = self._plan[number]
            rng = np.random.default_rng([self.seed, 2, number])
            sample = self.sources[name].sample(row, rng)
            image, prompt, target = prepare_sample(
                sample, rng, short_side, samples_config, self.model.config, self.tokenizer
            )
            images.append(image)
            prompts.append(prompt)
            targets.append(target)
            keys.append(sample.key)
        batch = collate(images, prompts, size_divisor=self.model.config.size_divisor, targets=targets)
        return batch, keys, [prompt.prompt.segments for prompt in prompts]

    def _with_text_states(self, batch: GroundingBatch, segments: list[tuple[str, ...]]) -> GroundingBatch:
        if self._text_states is None:
            return batch
        states = self._text_states(segments)
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)
        return replace(batch, text_states=padded)

    def _progress(
        self, step: int, steps: int, seconds: float, waited: float, sums: Mapping[str, float]
    ) -> Progress:
        return Progress(
            step=step,
            losses={name: value / steps for name, value in sums.items()},
            learning_rate=self._scheduler.get_last_lr()[0],
            images_per_s=steps * self.config.optim.batch_size / seconds,
            data_wait_share=waited / seconds,
            skipped_steps=self._skipped,
        )

    def _save(self, step: int) -> None:
        if self.checkpoints is None or self.worker.rank:
            return
        state: dict[str, Any] = {
            "model": _trained_state(self.model),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "skipped": self._skipped,
        }
        save_checkpoint(self.checkpoints, step, self._fingerprint, state)

    def _resume(self) -> int:
        state = None if self.checkpoints is None else load_checkpoint(self.checkpoints, self._fingerprint)
        if state is None:
            torch.manual_seed(self.seed + self.worker.rank)
            return 0
        self.model.load_state_dict(state["model"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        torch.set_rng_state(state["torch_rng"])
        self._skipped = state["skipped"]
        return int(state["step"])


def _trained_state(model: GLIP) -> dict[str, Tensor]:
    """Return parameters and buffers without a frozen text encoder, which never changes."""
    frozen = "text_encoder." if model.config.text.frozen else "\0"
    return {name: value for name, value in model.state_dict().items() if not name.startswith(frozen)}


def _fingerprint(
    config: TrainConfig, run: RunConfig, seed: int, sizes: Mapping[str, int], model: GLIP
) -> str:
    """Hash what a checkpoint depends on: settings, data sizes, model shape and starting weights."""
    settings = {"optim": asdict(config.optim), "samples": asdict(config.samples), "run": asdict(run)}
    text = json.dumps([settings, seed, dict(sizes), model.config.to_dict()], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(_trained_state(model).items()):
        digest.update(f"{name}{float(value.double().sum()):.9e}".encode())
    return digest.hexdigest()
