"""The plan of a training: how many steps, and which row of which source every sample shows.

Every choice is a function of the seed and the sample's number, so that a run can resume at any step and does not depend
on who loads the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.store.shards import list_shards, read_repeat, read_table
from pipeline.store.storage import Place
from pipeline.training.samples import SampleSource, has_boxes
from pipeline.training.settings import RunConfig

_ONE_COLUMN = ("key",)
_GROUNDING_COLUMNS = ("phrases", "reject_reason")


@dataclass(frozen=True)
class SamplePlan:
    """Rows in the order of training; five bytes a sample, because there may be many millions."""

    names: tuple[str, ...]
    """Of the sources."""
    sources: NDArray[np.uint8]
    """Per sample, index into ``names``."""
    rows: NDArray[np.int32]
    """Per sample, row of its source."""

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[str, int]:
        """Return source and row of a sample."""
        return self.names[self.sources[number]], int(self.rows[number])

    def stand_ins(self, number: int, size: int, rng: np.random.Generator) -> Iterator[int]:
        """Yield rows in place of a sample's: any of its source's ``size`` rows, without end."""
        while True:
            yield int(rng.integers(size))


def count_rows(human: Place, pseudo: Place | None, mixture: Mapping[str, float]) -> dict[str, int]:
    """Count the usable rows, repeats included, of the sources that have weight; the pictures are not read.

    Raises:
        MissingInputError: a folder of shards is not there.
    """
    folders = {"detection": human / "detection", "grounding": human / "grounding", "pseudo": pseudo}
    sizes = {}
    for name, folder in folders.items():
        if mixture.get(name, 0) > 0 and folder is not None:
            columns = _ONE_COLUMN if name == "detection" else _GROUNDING_COLUMNS
            tables = ((read_table(path, columns), read_repeat(path)) for path in list_shards(folder))
            sizes[name] = sum(
                repeat * (len(table) if name == "detection" else sum(has_boxes(table))) for table, repeat in tables
            )
    return sizes


def sample_weights(run: RunConfig, sizes: Mapping[str, int]) -> dict[str, float]:
    """Return how often samples come from each source, in proportion to one another."""
    by_rows = run.mixture_by == "rows"
    return {name: weight * sizes.get(name, 0) if by_rows else weight for name, weight in run.mixture.items()}


def with_steps(run: RunConfig, sizes: Mapping[str, int], batch_size: int) -> RunConfig:
    """Return the run with its length in steps; an epoch shows as many samples as the weighted sources have rows."""
    if run.steps:
        return run
    rows = sum(sizes.get(name, 0) for name, weight in run.mixture.items() if weight > 0)
    return replace(run, steps=max(1, round(run.epochs * rows / batch_size)), epochs=0.0)


def weighted_names(sizes: Mapping[str, int], weights: Mapping[str, float]) -> list[str]:
    """Return the sources with weight, sorted; raise TrainingError where one of them has no rows."""
    chosen = sorted(name for name, weight in weights.items() if weight > 0)
    for name in chosen:
        if not sizes.get(name):
            raise TrainingError(f"mixture gives {name!r} weight {weights[name]}, but it has no usable rows")
    return chosen


def plan_samples(sizes: Mapping[str, int], weights: Mapping[str, float], total: int, seed: int) -> SamplePlan:
    """Decide which row of which source every sample shows.

    Sources alternate evenly in proportion to their weights; each source runs through random permutations of its rows,
    so that no row comes twice before all came once.

    Raises:
        TrainingError: a source with weight has no rows.
    """
    chosen = weighted_names(sizes, weights)
    shares = np.array([weights[name] for name in chosen], dtype=np.float64)
    # Golden-ratio steps visit the unit interval evenly: every stretch of samples has the mixture's proportions.
    positions = (np.arange(total) * 0.6180339887498949) % 1.0
    source_of = np.searchsorted(np.cumsum(shares / shares.sum()), positions, side="right").clip(max=len(chosen) - 1)
    rows = np.zeros(total, dtype=np.int32)
    for i, name in enumerate(chosen):
        mine = np.flatnonzero(source_of == i)
        rng = np.random.default_rng([seed, i])
        rounds = -(-len(mine) // sizes[name])
        order = [rng.permutation(sizes[name]).astype(np.int32) for _ in range(rounds)]
        rows[mine] = np.concatenate(order)[: len(mine)] if order else mine
    return SamplePlan(tuple(chosen), source_of.astype(np.uint8), rows)


def group_by_orientation(plan: SamplePlan, sources: Mapping[str, SampleSource], batch_size: int) -> SamplePlan:
    """Move samples so that every batch has wide pictures alone or tall ones alone, but for the last ones.

    Both kinds keep their order, and a batch comes when its last sample would have: a row moves by a few batches.
    """
    tall = np.zeros(len(plan), dtype=bool)
    for i, name in enumerate(plan.names):
        mine = plan.sources == i
        tall[mine] = sources[name].is_tall()[plan.rows[mine]]
    whole, rest = [], []
    for kind in (np.flatnonzero(tall), np.flatnonzero(~tall)):
        end = len(kind) - len(kind) % batch_size
        whole.append(kind[:end].reshape(-1, batch_size))
        rest.append(kind[end:])
    batches = np.concatenate(whole)
    order = np.concatenate([batches[np.argsort(batches[:, -1])].ravel(), *rest])
    return SamplePlan(plan.names, plan.sources[order], plan.rows[order])
