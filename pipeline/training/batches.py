"""The batches of a training: what every step shows, made ahead in a thread.

Every choice is a function of the seed and of the step's or the sample's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from glip_model.alignment import TokenizedPrompt
from glip_model.config import GLIPConfig
from glip_model.images import ImageError
from glip_model.preprocess import collate
from glip_model.structures import GroundingBatch, GroundingTarget
from pipeline.config import RunConfig, TrainConfig
from pipeline.errors import TrainingError
from pipeline.training.augment import prepare_sample
from pipeline.training.plan import group_by_orientation, plan_samples, sample_weights
from pipeline.training.samples import SampleSource

MAX_UNREADABLE_IN_A_ROW = 20
"""Rows tried in place of one whose picture cannot be read."""
PREFETCHED_BATCHES = 3
# What is random gets a stream of its own, so that none shifts when another draws more.
SIZE_STREAM, SAMPLE_STREAM, MODEL_STREAM = 1, 2, 3


@dataclass(frozen=True)
class Worker:
    """Which of how many equal processes this one is."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class TrainingBatch:
    """One worker's share of a step."""

    inputs: GroundingBatch
    keys: tuple[str, ...]
    """Of the rows that are shown."""
    segments: tuple[tuple[str, ...], ...]
    """Of the prompts, for the cached states of a frozen text encoder."""


class BatchMaker:
    """Makes the batch of any step.

    Args:
        sources: by the names of the mixture.
        config: shared settings.
        run: steps and mixture.
        model_config: of the model that the batches are for.
        tokenizer: of that model.
        seed: of data order and augmentation.
        worker: this process among its equals.

    Raises:
        TrainingError: the batch cannot be divided among the workers, or a source is empty.
    """

    def __init__(
        self,
        sources: Mapping[str, SampleSource],
        config: TrainConfig,
        run: RunConfig,
        model_config: GLIPConfig,
        tokenizer: Any,
        seed: int,
        worker: Worker,
    ) -> None:
        batch_size = config.optim.batch_size
        accumulate = config.optim.accumulate
        if batch_size % (worker.world_size * accumulate):
            times = f" times accumulate (={accumulate})" if accumulate > 1 else ""
            raise TrainingError(
                f"train.optim.batch_size (={batch_size}) must be divisible by train.num_workers (={worker.world_size})"
                f"{times}"
            )
        self._sources, self._samples, self._model_config = sources, config.samples, model_config
        self._tokenizer, self._seed, self._steps = tokenizer, seed, run.steps
        self._batch_size, self._share = batch_size, batch_size // worker.world_size
        self._offset = worker.rank * self._share
        sizes = {name: len(source) for name, source in sources.items()}
        self._plan = plan_samples(sizes, sample_weights(run, sizes), run.steps * batch_size, seed)
        if config.samples.group_by_orientation:
            self._plan = group_by_orientation(self._plan, sources, batch_size)
        self.unreadable = 0
        """Pictures that could not be read so far, each replaced by another row."""

    def ahead(self, start: int) -> Iterator[TrainingBatch]:
        """Yield the batches of the steps after ``start``, made ahead in a thread."""
        with ThreadPoolExecutor(1) as pool:
            pending = [
                pool.submit(self.make, step) for step in range(start, min(start + PREFETCHED_BATCHES, self._steps))
            ]
            for step in range(start, self._steps):
                batch = pending.pop(0).result()
                if step + PREFETCHED_BATCHES < self._steps:
                    pending.append(pool.submit(self.make, step + PREFETCHED_BATCHES))
                yield batch

    def make(self, step: int) -> TrainingBatch:
        """Make this worker's share of a step, counted from 0.

        Raises:
            TrainingError: too many pictures in a row cannot be read.
        """
        first = step * self._batch_size + self._offset
        # One size for all workers of a step, so that none waits for a larger picture.
        sides = self._samples.short_sides
        short_side = sides[int(chance(self._seed, SIZE_STREAM, step).integers(len(sides)))]
        prepared = [self._prepare(number, short_side) for number in range(first, first + self._share)]
        keys, images, prompts, targets = zip(*prepared, strict=True)
        inputs = collate(images, prompts, size_divisor=self._model_config.size_divisor, targets=targets)
        return TrainingBatch(inputs, keys, tuple(prompt.prompt.segments for prompt in prompts))

    def _prepare(self, number: int, short_side: int) -> tuple[str, Tensor, TokenizedPrompt, GroundingTarget]:
        """Make the sample of that number; a row whose picture cannot be read gives way to another of its source."""
        name, row = self._plan[number]
        source, rng = self._sources[name], chance(self._seed, SAMPLE_STREAM, number)
        for attempt in range(1, MAX_UNREADABLE_IN_A_ROW + 1):
            sample = source.sample(row, rng)
            try:
                prepared = prepare_sample(sample, rng, short_side, self._samples, self._model_config, self._tokenizer)
            except ImageError as error:
                self.unreadable += 1
                row = int(rng.integers(len(source)))
                if attempt == MAX_UNREADABLE_IN_A_ROW:
                    raise TrainingError(
                        f"{attempt} pictures of the {name} data in a row cannot be read; the last is {sample.key!r}: "
                        f"{error.reason} ({error}); mend the pictures or run: dvc repro prepare"
                    ) from error
            else:
                return (sample.key, *prepared)
        raise AssertionError("the loop above returns or raises")


def chance(*path: int) -> np.random.Generator:
    """Return the generator of the stream of chance that these numbers name."""
    return np.random.default_rng(path)
