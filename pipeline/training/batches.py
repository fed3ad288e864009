"""The batches of a training: what every step shows.

Every choice is a function of the seed and of the step's or the sample's number.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from glip_model.alignment import TokenizedPrompt
from glip_model.config import GLIPConfig
from glip_model.images import ImageError
from glip_model.preprocess import collate
from glip_model.structures import GroundingBatch, GroundingTarget
from pipeline.errors import TrainingError
from pipeline.training.augment import prepare_sample
from pipeline.training.counting import sample_weights
from pipeline.training.loading import load_ahead
from pipeline.training.plan import SamplePlan, group_by_orientation, plan_samples
from pipeline.training.prompts import Sample
from pipeline.training.rows import Rows
from pipeline.training.settings import OptimConfig, RunConfig, SamplesConfig, TrainConfig
from pipeline.training.streaming import OrientedPlan, SingleRows, StreamPlan

logger = logging.getLogger(__name__)

MAX_UNREADABLE_IN_A_ROW = 20
"""Rows tried in place of one whose picture cannot be read."""
SHRUNK = 3
"""How many times larger than in training pictures may be without a warning; photographs of 4K at 800 pixels are not."""
BESIDE = 3
"""Pictures beside the first one of a mosaic."""
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
    """Keys of the rows."""
    segments: tuple[tuple[str, ...], ...]
    """Segments of the prompts, for the cached states of a frozen text encoder."""

    def pin_memory(self) -> TrainingBatch:
        """Copy the batch to memory from which a GPU fetches it beside other work."""
        return replace(self, inputs=self.inputs.pin_memory())


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
        sources: Mapping[str, Rows],
        config: TrainConfig,
        run: RunConfig,
        model_config: GLIPConfig,
        tokenizer: Any,
        seed: int,
        worker: Worker,
    ) -> None:
        self._share = share_of_batch(config.optim, worker.world_size)
        self._sources, self._samples, self._model_config = sources, config.samples, model_config
        self._tokenizer, self._seed, self._steps = tokenizer, seed, run.steps
        self._short_sides, _ = config.samples.sizes(model_config)
        if worker.rank == 0:
            _warn_of_small_sizes(sources, max(self._short_sides))
        self._batch_size = config.optim.batch_size
        self._offset = worker.rank * self._share
        self._processes = config.loader_processes
        self.plan = self._make_plan(run, config.samples)
        """Source and row of any sample."""
        self.unreadable = 0
        """Pictures that could not be read so far, each replaced by another row."""

    def ahead(self, start: int) -> Iterator[TrainingBatch]:
        """Yield the batches of the steps after ``start``, made ahead in a thread or in ``loader_processes``.

        Raises:
            TrainingError: too many pictures in a row cannot be read; or a loader process died.
        """
        with closing(load_ahead(self.try_make, range(start, self._steps), self._processes)) as made:
            for batch, unreadable in made:
                self.unreadable += unreadable
                yield batch

    def make(self, step: int) -> TrainingBatch:
        """Make this worker's share of a step, counted from 0.

        Raises:
            TrainingError: too many pictures in a row cannot be read.
        """
        batch, unreadable = self.try_make(step)
        self.unreadable += unreadable
        return batch

    def try_make(self, step: int) -> tuple[TrainingBatch, int]:
        """Make this worker's share of a step and count, but do not add up, its pictures that could not be read."""
        first = step * self._batch_size + self._offset
        # One size for all workers of a step, so that none waits for a larger picture.
        sides = self._short_sides
        short_side = sides[int(rng_for(self._seed, SIZE_STREAM, step).integers(len(sides)))]
        prepared = [self._prepare(number, short_side) for number in range(first, first + self._share)]
        keys, images, prompts, targets, unreadable = zip(*prepared, strict=True)
        inputs = collate(images, prompts, size_divisor=self._model_config.size_divisor, targets=targets)
        return TrainingBatch(inputs, keys, tuple(prompt.prompt.segments for prompt in prompts)), sum(unreadable)

    def _make_plan(self, run: RunConfig, samples: SamplesConfig) -> SamplePlan | StreamPlan | OrientedPlan:
        """Settle the order of rows: all of it, or how to find any place in it where the data streams."""
        sizes = {name: len(source) for name, source in self._sources.items()}
        weights = sample_weights(run, sizes)
        if not samples.shuffle_window:
            plan = plan_samples(sizes, weights, run.steps * self._batch_size, self._seed)
            return group_by_orientation(plan, self._sources, self._batch_size) if samples.group_by_orientation else plan
        groups = {
            name: source.groups if source.is_streamed else SingleRows(len(source))
            for name, source in self._sources.items()
        }
        streams = StreamPlan(groups, weights, self._batch_size, samples, self._seed)
        lanes = streams.lanes_of(self._offset, self._share)
        is_oriented = samples.group_by_orientation
        # Samples that change places may lie in two windows.
        held = (1 + is_oriented) * samples.shuffle_window * lanes / samples.shuffle_lanes
        for source in self._sources.values():
            if source.is_streamed:
                source.hold(math.ceil(held), lanes)
        if not is_oriented:
            return streams
        return OrientedPlan(streams, self._sources, self._batch_size, samples.shuffle_lanes)

    def _prepare(self, number: int, short_side: int) -> tuple[str, Tensor, TokenizedPrompt, GroundingTarget, int]:
        """Make the sample of that number; another row replaces one that shows nothing or cannot be read.

        Returns:
            Key, pixels, prompt, target, and how many pictures could not be read.
        """
        name, planned = self.plan[number]
        source, rng = self._sources[name], rng_for(self._seed, SAMPLE_STREAM, number)
        unreadable = 0
        for row in chain([planned], self.plan.replacement_rows(number, len(source), rng)):
            sample = self._sample(source, row, rng)
            if sample is None:
                continue
            try:
                prepared = prepare_sample(
                    sample, rng, short_side, self._samples, self._model_config, self._tokenizer, source.roots
                )
            except ImageError as error:
                unreadable += 1
                if unreadable == MAX_UNREADABLE_IN_A_ROW:
                    raise TrainingError(
                        f"{unreadable} pictures of the {name} data in a row cannot be read; the last is "
                        f"{sample.key!r}: {error.reason} ({error}); mend the pictures or run: dvc repro prepare"
                    ) from error
            else:
                return (sample.key, *prepared, unreadable)
        raise TrainingError(
            f"no row of a whole window of the {name} data can be shown ({unreadable} pictures cannot be read, the "
            "others were rejected or have no boxes); raise train.samples.shuffle_window, or look at the shards: glip "
            "inspect"
        )

    def _sample(self, source: Rows, row: int, rng: np.random.Generator) -> Sample | None:
        """Draw the sample of a row, sometimes as a mosaic with others."""
        mosaic = self._samples.augment.mosaic
        if mosaic and rng.random() < mosaic:
            return source.sample_together([row, *rng.integers(len(source), size=BESIDE).tolist()], rng)
        return source.sample(row, rng)


def share_of_batch(optim: OptimConfig, workers: int) -> int:
    """Return how many pictures of a step each worker shows; TrainingError where they cannot be divided."""
    if optim.batch_size % (workers * optim.accumulate):
        times = f" times accumulate (={optim.accumulate})" if optim.accumulate > 1 else ""
        raise TrainingError(
            f"train.optim.batch_size (={optim.batch_size}) must be divisible by train.num_workers (={workers}){times}"
        )
    return optim.batch_size // workers


def _warn_of_small_sizes(sources: Mapping[str, Rows], short_side: int) -> None:
    """Warn where the pictures of a source lose most of their pixels: settings of other data are a likely cause."""
    for name, source in sources.items():
        side = source.median_short_side()
        if side > SHRUNK * short_side:
            logger.warning(
                "pictures of the %s data have a short side of %d pixels (median), and training shrinks it to %d; for "
                "such pictures set test_short_side and test_long_side of model.overrides, and "
                "train.samples.short_sides to null",
                name,
                side,
                short_side,
            )


def rng_for(*path: int) -> np.random.Generator:
    """Return a random generator that is seeded by these numbers alone, so that any sample can be drawn again."""
    return np.random.default_rng(path)
