"""The plan of a training: which row of which source every sample shows.

Every choice is a function of the seed and the sample's number, so that a run can resume at any step and does not depend
on who loads the data.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.training.rows import Rows

CIRCLE = 1 << 64
# Positions are 64-bit integers, not floats: they stay exact after any number of samples, so a resumed run and every
# worker find the same source for a sample.
GOLDEN = 0x9E3779B97F4A7C15
"""The golden ratio's share of the circle: steps of it visit the circle evenly, in every stretch of steps."""


class Mixture:
    """Which source every sample comes from: sources alternate evenly, in proportion to their weights.

    Each has a sector of a circle, and comes when a step of the golden ratio ends there.

    Args:
        sizes: rows of every source.
        weights: how often samples come from each source, in proportion to one another.

    Raises:
        TrainingError: a source with weight has no rows.

    Attributes:
        names: of the sources with weight, in order.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float]) -> None:
        self.names = tuple(sorted(name for name, weight in weights.items() if weight > 0))
        for name in self.names:
            if not sizes.get(name):
                raise TrainingError(
                    f"mixture gives {name!r} weight {weights[name]}, but it has no usable rows; metrics/prepare.json "
                    "and the labels' metrics count what was left out, and why"
                )
        shares = np.array([weights[name] for name in self.names], dtype=np.float64)
        inner = np.cumsum(shares / shares.sum())[:-1].tolist()
        self._edges = [0, *(min(int(edge * CIRCLE), CIRCLE - 1) for edge in inner), CIRCLE]

    def first(self, steps: int) -> NDArray[np.uint8]:
        """Return the sources of the first steps, as indices into ``names``."""
        positions = np.arange(steps, dtype=np.uint64) * np.uint64(GOLDEN)  # uint64 wraps around, as the circle does
        inner = np.array(self._edges[1:-1], dtype=np.uint64)
        return np.searchsorted(inner, positions, side="right").astype(np.uint8)

    def at(self, step: int, begin: int) -> tuple[int, int]:
        """Return the source of a step, and how many steps before it were of that source, from ``begin`` on."""
        source = bisect_right(self._edges, (step * GOLDEN + begin) % CIRCLE) - 1
        first, end = self._edges[source : source + 2]
        return source, count_below(step, begin, end) - count_below(step, begin, first)


def count_below(steps: int, begin: int, edge: int) -> int:
    """Count the first steps of the golden ratio, from ``begin`` on, that lie below an edge of the circle."""
    # A step lies below the edge exactly where adding the rest of the circle does not complete another turn.
    return steps - _turns(steps, begin + CIRCLE - edge) + _turns(steps, begin)


def _turns(steps: int, begin: int) -> int:
    """Sum the full circles, of ``begin + i * GOLDEN``, over i below ``steps``, as Euclid finds a common divisor."""
    # A lattice-point count: whole circles are split off and circle and step exchanged, so that it takes fewer
    # than a hundred rounds whatever the number of steps.
    total, n, circle, step = 0, steps, CIRCLE, GOLDEN
    while n > 0:
        total += (n - 1) * n // 2 * (step // circle) + n * (begin // circle)
        step, begin = step % circle, begin % circle
        n, begin = divmod(step * n + begin, circle)
        circle, step = step, circle
    return total


@dataclass(frozen=True)
class SamplePlan:
    """Rows in the order of training; five bytes a sample, because there may be many millions."""

    names: tuple[str, ...]
    """Names of the sources."""
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

    def replacement_rows(self, number: int, size: int, rng: np.random.Generator) -> Iterator[int]:
        """Yield replacements for a sample's row: any of its source's ``size`` rows, without end."""
        while True:
            yield int(rng.integers(size))


def plan_samples(sizes: Mapping[str, int], weights: Mapping[str, float], total: int, seed: int) -> SamplePlan:
    """Decide which row of which source every sample shows.

    Each source runs through random permutations of its rows, so that no row comes twice before all came once.

    Raises:
        TrainingError: a source with weight has no rows.
    """
    mixture = Mixture(sizes, weights)
    sources = mixture.first(total)
    rows = np.zeros(total, dtype=np.int32)
    for i, name in enumerate(mixture.names):
        mine = np.flatnonzero(sources == i)
        rng = np.random.default_rng([seed, i])
        rounds = -(-len(mine) // sizes[name])
        order = [rng.permutation(sizes[name]).astype(np.int32) for _ in range(rounds)]
        rows[mine] = np.concatenate(order)[: len(mine)] if order else mine
    return SamplePlan(mixture.names, sources, rows)


def group_by_orientation(plan: SamplePlan, sources: Mapping[str, Rows], batch_size: int) -> SamplePlan:
    """Move samples so that every batch has wide pictures alone or tall ones alone, as ``order_by_orientation`` does."""
    tall = np.zeros(len(plan), dtype=bool)
    for i, name in enumerate(plan.names):
        mine = plan.sources == i
        tall[mine] = sources[name].is_tall()[plan.rows[mine]]
    order = order_by_orientation(tall, batch_size)
    return SamplePlan(plan.names, plan.sources[order], plan.rows[order])


def order_by_orientation(tall: NDArray[np.bool_], batch_size: int) -> NDArray[np.int64]:
    """Return an order of samples whose batches are all wide or all tall, except for the last ones.

    Both kinds keep their order, and a batch comes when its last sample would have: a sample moves by a few batches.
    """
    whole, rest = [], []
    for kind in (np.flatnonzero(tall), np.flatnonzero(~tall)):
        end = len(kind) - len(kind) % batch_size
        whole.append(kind[:end].reshape(-1, batch_size))
        rest.append(kind[end:])
    batches = np.concatenate(whole)
    return np.concatenate([batches[np.argsort(batches[:, -1])].ravel(), *rest])
