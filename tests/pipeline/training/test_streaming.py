"""The order of streamed rows: every row once a pass, near its neighbours, the same whoever asks."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, TrainingError
from pipeline.training.plan import GOLDEN, count_below
from pipeline.training.settings import SamplesConfig
from pipeline.training.streaming import ORIENTED_STEPS, OrientedPlan, StreamPlan


def groups_of(shards: list[list[int]]) -> Any:
    """Stand for the row groups of shards with so many rows each."""
    rows = np.array([n for shard in shards for n in shard], dtype=np.int64)
    shard_of = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    return SimpleNamespace(rows=rows, shard_of=shard_of, first_rows=np.cumsum(rows) - rows)


@pytest.fixture(scope="session")
def make_plan(samples_config: SamplesConfig) -> Any:
    def make(
        shards: dict[str, list[list[int]]],
        batch_size: int,
        window: int,
        lanes: int = 1,
        weights: dict[str, float] | None = None,
        seed: int = 0,
    ) -> StreamPlan:
        config = replace(samples_config, shuffle_window=window, shuffle_lanes=lanes)
        groups = {name: groups_of(sizes) for name, sizes in shards.items()}
        return StreamPlan(groups, weights or dict.fromkeys(shards, 1.0), batch_size, config, seed)

    return make


@given(st.integers(0, 300), st.integers(0, 2**64 - 1), st.integers(0, 2**64))
def test_steps_below_an_edge_are_counted_without_taking_them(steps: int, begin: int, edge: int) -> None:
    places = [(begin + i * GOLDEN) % 2**64 for i in range(steps)]
    assert count_below(steps, begin, edge) == sum(place < edge for place in places)


SHARDS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=5)


@given(
    st.dictionaries(st.sampled_from("abc"), SHARDS, min_size=1),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 5),
    st.data(),
)
def test_every_pass_of_a_source_is_a_permutation_of_its_rows(
    make_plan: Any, shards: dict[str, list[list[int]]], lanes: int, width: int, window: int, seed: int, data: Any
) -> None:
    totals = {name: sum(map(sum, sizes)) for name, sizes in shards.items()}
    for name, sizes in shards.items():
        if totals[name] < lanes:
            sizes.append([lanes])
            totals[name] += lanes
    weights = {name: data.draw(st.floats(0.3, 3.0)) for name in shards}
    plan = make_plan(shards, lanes * width, window, lanes, weights, seed)
    shown: dict[tuple[str, int], list[int]] = {(name, lane): [] for name in shards for lane in range(lanes)}
    stretch = {(name, lane): (lane + 1) * totals[name] // lanes - lane * totals[name] // lanes for name, lane in shown}
    number = 0
    while any(len(rows) < 2 * stretch[key] for key, rows in shown.items()):
        name, row = plan[number]
        shown[name, number % (lanes * width) // width].append(row)
        number += 1
    for epoch in range(2):
        for name, total in totals.items():
            rows = []
            for lane in range(lanes):
                size = stretch[name, lane]
                rows += shown[name, lane][epoch * size : (epoch + 1) * size]
            assert sorted(rows) == list(range(total))


@pytest.mark.parametrize("lanes", [1, 4])
def test_mixture_has_its_proportions_in_every_stretch_and_nearly_in_every_batch(make_plan: Any, lanes: int) -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 0.0}
    shards = {"a": [[50]], "b": [[70]], "c": [[9]]}
    plan = make_plan(shards, 12, 20, lanes, weights)
    names = [plan[number][0] for number in range(2400)]
    for start in range(0, 2400, 120):
        assert abs(names[start : start + 120].count("a") - 40) <= 4
    assert all(2 <= names[start : start + 12].count("a") <= 6 for start in range(0, 2400, 12))
    assert "c" not in names


def test_order_depends_on_seed_and_pass_and_on_nothing_before(make_plan: Any) -> None:
    shards = {"a": [[7, 7], [7, 7], [7]]}
    plan = make_plan(shards, 5, 10)
    rows = [plan[number] for number in range(70)]
    assert rows[:35] != rows[35:]
    assert rows != [make_plan(shards, 5, 10, seed=1)[number] for number in range(70)]
    other = pickle.loads(pickle.dumps(plan))  # as loader processes get it
    assert [other[number] for number in reversed(range(70))] == rows[::-1]
    assert make_plan({"a": [[100] * 270_000]}, 64, 10_000, 8)[64 * 10**9 + 5][0] == "a"


def test_rows_lie_near_those_around_them_and_lanes_apart(make_plan: Any) -> None:
    """Of 64 groups in 16 shards, a window of 2 x 20 rows may touch 2 x 3 at a time, and each lane has its own half."""
    shards = {"a": [[10] * 4 for _ in range(16)]}
    plan = make_plan(shards, 4, 40, 2)
    group_of = [[], []]  # type: list[list[int]]
    for number in range(640):
        group_of[number % 4 // 2].append(plan[number][1] // 10)
    for groups in group_of:
        for start in range(0, 320, 20):
            assert len(set(groups[start : start + 20])) <= 3
        assert all(count == 10 for count in Counter(groups).values())  # each group is read through, and once
    assert not set(group_of[0]) & set(group_of[1])
    assert (plan.lanes_of(0, 2), plan.lanes_of(2, 2), plan.lanes_of(1, 2), plan.lanes_of(0, 4)) == (1, 1, 2, 2)


def test_replacement_rows_are_the_rest_of_the_window(make_plan: Any) -> None:
    plan = make_plan({"a": [[10], [10]]}, 2, 5)
    found = list(plan.replacement_rows(6, 20, np.random.default_rng(0)))
    assert sorted([plan[6][1], *found]) == sorted(plan[number][1] for number in range(5, 10))


class Orientations:
    """Stands for rows of which some are tall, some wide, and some cannot be shown."""

    def __init__(self, rows: int, seed: int) -> None:
        self._found = np.random.default_rng(seed).choice([True, False, None], rows, p=[0.4, 0.4, 0.2])

    def is_tall_at(self, row: int) -> bool | None:
        found: bool | None = self._found[row]
        return found


@given(
    st.lists(SHARDS, min_size=1, max_size=2),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(2, 40),
    st.integers(0, 9),
)
@settings(max_examples=30)
def test_lanes_show_one_orientation_at_a_time_and_what_they_showed_before(
    make_plan: Any, sizes: list[list[list[int]]], lanes: int, width: int, window: int, seed: int
) -> None:
    shards = {name: [*found, [lanes]] for name, found in zip("ab", sizes, strict=False)}
    plan = make_plan(shards, lanes * width, window, lanes, seed=seed)
    sources: Any = {name: Orientations(sum(map(sum, found)), seed) for name, found in shards.items()}
    oriented = OrientedPlan(plan, sources, lanes * width, lanes)
    for stretch in range(2):
        for lane in range(lanes):
            steps = range(stretch * ORIENTED_STEPS, (stretch + 1) * ORIENTED_STEPS)
            numbers = [step * lanes * width + lane * width + place for step in steps for place in range(width)]
            assert sorted(oriented[number] for number in numbers) == sorted(plan[number] for number in numbers)
            mixed = []
            for start in range(0, len(numbers), width):
                shown = {shown_orientation(oriented, sources, number) for number in numbers[start : start + width]}
                mixed.append(len(shown - {None}) > 1)
            assert not any(mixed[:-1])


def shown_orientation(plan: Any, sources: Any, number: int) -> bool | None:
    """Look for the first row that can be shown, as the loader does."""
    name, row = plan[number]
    for each in [row, *plan.replacement_rows(number, 0, np.random.default_rng(0))]:
        found: bool | None = sources[name].is_tall_at(each)
        if found is not None:
            return found
    return None


def test_settings_that_cannot_be_are_errors(make_plan: Any, samples_config: SamplesConfig, train_config: Any) -> None:
    with pytest.raises(TrainingError, match=r"has 2 rows, fewer than train.samples.shuffle_lanes \(=4\)"):
        make_plan({"a": [[2]]}, 4, 8, 4)
    with pytest.raises(TrainingError, match="gives 'a' weight"):
        make_plan({"a": []}, 4, 8)
    with pytest.raises(ConfigError, match=r"shuffle_lanes \(=3\) must divide optim.batch_size \(=4\)"):
        replace(train_config, samples=replace(samples_config, shuffle_lanes=3))
