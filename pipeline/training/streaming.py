"""The plan of a training whose data streams: any sample's row is computed when it is asked for; nothing is stored.

A batch is divided into lanes. Every pass over a source puts its shards in random order and cuts their rows, one after
the other, into as many stretches as there are lanes; a lane walks along its stretch and shuffles the rows within
windows. So a worker that makes some lanes of every batch reads the row groups of their stretches, in turn, and nothing
else; and as lanes belong to the places of a batch and not to workers, the order is the same for any number of workers
and of loader processes. The price: a row meets only those that lie near it, as shards were written, or beside it in
other lanes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.store.row_groups import Recent
from pipeline.training.plan import CIRCLE, Mixture, order_by_orientation
from pipeline.training.rows import Rows
from pipeline.training.settings import SamplesConfig

_KEPT_ORDERS = 8
_KEPT_WINDOWS = 1024
ORIENTED_STEPS = 64
"""Steps whose samples change places with one another; the last share of a lane in them may mix both kinds."""


class Pieces(Protocol):
    """What is put in random order: row groups, or the like."""

    rows: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    shard_of: NDArray[np.int64]


class SingleRows:
    """Rows in memory, each a shard of its own: a pass over them has any order, and a lane any of them."""

    def __init__(self, rows: int) -> None:
        self.rows = np.ones(rows, dtype=np.int64)
        self.first_rows = self.shard_of = np.arange(rows)


class StreamPlan:
    """Rows in the order of training, by windows of rows that lie together.

    Args:
        groups: of every source with weight, its row groups, or the rows that are in memory.
        weights: how often samples come from each source, in proportion to one another.
        batch_size: over all workers.
        config: window and lanes.
        seed: of the order.

    Raises:
        TrainingError: a source with weight has no rows, or fewer than there are lanes.
    """

    def __init__(
        self,
        groups: Mapping[str, Pieces],
        weights: Mapping[str, float],
        batch_size: int,
        config: SamplesConfig,
        seed: int,
    ) -> None:
        self._groups, self._seed, self._batch_size = groups, seed, batch_size
        self._lanes = config.shuffle_lanes
        self._window = max(1, config.shuffle_window // self._lanes)
        self._sizes = {name: int(found.rows.sum()) for name, found in groups.items()}
        self._mixture = Mixture(self._sizes, weights)
        for name in self._mixture.names:
            if self._sizes[name] < self._lanes:
                raise TrainingError(
                    f"the {name} data has {self._sizes[name]} rows, fewer than train.samples.shuffle_lanes "
                    f"(={self._lanes}); lower it"
                )
        self._orders = Recent(self._shuffle_shards, _KEPT_ORDERS)
        self._permutations = Recent(self._shuffle_window, _KEPT_WINDOWS)

    def __getitem__(self, number: int) -> tuple[str, int]:
        """Return source and row of a sample."""
        source, lane, turn = self._turn(number)
        return self._mixture.names[source], self._row(source, lane, turn, 0)

    def replacement_rows(self, number: int, size: int, rng: np.random.Generator) -> Iterator[int]:
        """Yield replacements for a sample's row: the others of its window, once each."""
        source, lane, turn = self._turn(number)
        for ahead in range(1, self._window_of(source, lane, turn)[3]):
            yield self._row(source, lane, turn, ahead)

    def lanes_of(self, first: int, count: int) -> int:
        """Return how many lanes the places ``first`` to ``first + count`` of a batch belong to."""
        width = self._batch_size // self._lanes
        return (first + count - 1) // width - first // width + 1

    def _turn(self, number: int) -> tuple[int, int, int]:
        """Return source and lane of a sample, and how many samples of that source the lane had before."""
        step, place = divmod(number, self._batch_size)
        width = self._batch_size // self._lanes
        lane, within = divmod(place, width)
        begin = lane * CIRCLE // self._lanes  # spread, so that the lanes together keep to the mixture in every batch
        source, before = self._mixture.at(step * width + within, begin)
        return source, lane, before

    def _window_of(self, source: int, lane: int, turn: int) -> tuple[int, int, int, int]:
        """Return a turn's pass, window, place in the window and the window's number of rows."""
        first, end = self._stretch(source, lane)
        epoch, place = divmod(turn, end - first)
        window, place = divmod(place, self._window)
        return epoch, window, place, min(self._window, end - first - window * self._window)

    def _stretch(self, source: int, lane: int) -> tuple[int, int]:
        size = self._sizes[self._mixture.names[source]]
        return lane * size // self._lanes, (lane + 1) * size // self._lanes

    def _row(self, source: int, lane: int, turn: int, ahead: int) -> int:
        """Return the row of a turn, or one so many places ahead of it, in the circle of its window."""
        epoch, window, place, length = self._window_of(source, lane, turn)
        shuffled = self._permutations[source, epoch, lane, window, length][(place + ahead) % length]
        position = self._stretch(source, lane)[0] + window * self._window + int(shuffled)
        order, ends = self._orders[source, epoch]
        at = int(np.searchsorted(ends, position, side="right"))
        groups = self._groups[self._mixture.names[source]]
        group = order[at]
        return int(groups.first_rows[group] + groups.rows[group] - ends[at]) + position

    def _shuffle_shards(self, key: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the groups in the order of a pass, those of a shard together, and the rows up to each one's end."""
        source, epoch = key
        groups = self._groups[self._mixture.names[source]]
        shards = int(groups.shard_of[-1]) + 1
        rank = np.random.default_rng([self._seed, source, epoch]).permutation(shards)
        order = np.argsort(rank[groups.shard_of], kind="stable")
        return order, np.cumsum(groups.rows[order])

    def _shuffle_window(self, key: tuple[int, int, int, int, int]) -> NDArray[np.int32]:
        *place, length = key
        # Seeded by its place alone: any worker finds the row of any sample without drawing those before it.
        return np.random.default_rng([self._seed, *place]).permutation(length).astype(np.int32)


class OrientedPlan:
    """A streamed plan whose lanes have, in every step, wide pictures alone or tall ones alone: less padding.

    The samples that a lane shows in ``ORIENTED_STEPS`` steps change places with one another, so that every one is shown
    as often as before. The published loaders, too, grouped what each GPU was given.

    Args:
        plan: whose samples change places.
        sources: of the plan.
        batch_size: over all workers.
        lanes: of a batch.
    """

    def __init__(self, plan: StreamPlan, sources: Mapping[str, Rows], batch_size: int, lanes: int) -> None:
        self._plan, self._sources, self._batch_size = plan, sources, batch_size
        self._width = batch_size // lanes
        self._orders = Recent(self._order, _KEPT_ORDERS * lanes)

    def __getitem__(self, number: int) -> tuple[str, int]:
        """Return source and row of a sample."""
        return self._plan[self._from(number)[0]]

    def replacement_rows(self, number: int, size: int, rng: np.random.Generator) -> Iterator[int]:
        """Yield replacements for a sample's row: the others of its window, those of its orientation first."""
        own, is_tall = self._from(number)
        source = self._sources[self._plan[own][0]]
        others = list(self._plan.replacement_rows(own, size, rng))
        yield from (row for row in others if source.is_tall_at(row) == is_tall)
        yield from (row for row in others if source.is_tall_at(row) is (not is_tall))

    def _from(self, number: int) -> tuple[int, bool]:
        """Return the number of the sample that is shown instead, and whether its picture is tall."""
        step, place = divmod(number, self._batch_size)
        lane, within = divmod(place, self._width)
        stretch, turn = divmod(step, ORIENTED_STEPS)
        order, tall = self._orders[stretch, lane]
        moved = int(order[turn * self._width + within])
        return self._number(stretch, lane, moved), bool(tall[moved])

    def _number(self, stretch: int, lane: int, turn: int) -> int:
        """Return the number of a lane's sample, counted from the beginning of a stretch of steps."""
        step, within = divmod(turn, self._width)
        return (stretch * ORIENTED_STEPS + step) * self._batch_size + lane * self._width + within

    def _order(self, key: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        stretch, lane = key
        turns = range(ORIENTED_STEPS * self._width)
        tall = np.array([self._is_tall(self._number(stretch, lane, turn)) for turn in turns])
        return order_by_orientation(tall, self._width), tall

    def _is_tall(self, number: int) -> bool:
        """Tell whether what a sample will show is tall: its row, or the first to stand in that can be shown."""
        name, row = self._plan[number]
        source = self._sources[name]
        others = self._plan.replacement_rows(number, 0, np.random.default_rng(0))  # draws nothing
        return next((tall for each in chain([row], others) if (tall := source.is_tall_at(each)) is not None), False)
