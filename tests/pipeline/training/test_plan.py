"""The plan: rows and their order, steps of epochs, batches of one orientation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import TrainingError
from pipeline.store.records import DetectionRecord
from pipeline.store.shards import REPEAT_KEY, categories_to_metadata, shard_name, write_shard
from pipeline.training.counting import count_rows, sample_weights, with_steps
from pipeline.training.plan import CIRCLE, GOLDEN, Mixture, SamplePlan, group_by_orientation, plan_samples
from pipeline.training.rows import make_sources
from pipeline.training.settings import RunConfig, SamplesConfig


@given(
    st.dictionaries(st.sampled_from(["detection", "grounding", "pseudo"]), st.floats(0.05, 5.0), min_size=1),
    st.integers(1, 50),
    st.integers(0, 400),
)
def test_mixture_has_its_proportions_in_every_stretch(weights: dict[str, float], size: int, start: int) -> None:
    plan = plan_samples(dict.fromkeys(weights, size), weights, start + 200, seed=3)
    counts = Counter(name for name, _ in list(plan)[start:])
    for name, weight in weights.items():
        assert abs(counts[name] - 200 * weight / sum(weights.values())) < 8


def test_no_row_comes_twice_before_all_came_once() -> None:
    plan = plan_samples({"a": 7, "b": 5}, {"a": 1.0, "b": 2.0}, 120, seed=0)
    for name, size in (("a", 7), ("b", 5)):
        rows = [row for source, row in plan if source == name]
        for start in range(0, len(rows) - size + 1, size):
            assert sorted(rows[start : start + size]) == list(range(size))
        assert rows[:size] != rows[size : 2 * size]


def test_plan_depends_on_the_seed_and_not_on_its_length_or_the_order_of_weights() -> None:
    sizes, weights = {"a": 9, "b": 9}, {"a": 1.0, "b": 2.0}
    plan = list(plan_samples(sizes, weights, 60, seed=0))
    assert plan == list(plan_samples(sizes, {"b": 2.0, "a": 1.0}, 60, seed=0))
    assert plan[:30] == list(plan_samples(sizes, weights, 30, seed=0))
    assert plan != list(plan_samples(sizes, weights, 60, seed=1))


def test_weight_on_an_empty_source_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"gives 'pseudo' weight 0\.5, but it has no usable rows"):
        plan_samples({"detection": 3, "pseudo": 0}, {"detection": 0.5, "pseudo": 0.5}, 10, seed=0)


@given(st.lists(st.floats(0.05, 5.0), min_size=1, max_size=4))
def test_steps_one_by_one_are_those_of_all_at_once(weights: list[float]) -> None:
    by_name = dict(zip("abcd", weights, strict=False))
    mixture = Mixture(dict.fromkeys(by_name, 1), by_name)
    sources = mixture.first(150).tolist()
    assert [mixture.at(step, 0) for step in range(150)] == [
        (source, sources[:step].count(source)) for step, source in enumerate(sources)
    ]


def test_golden_ratio_is_exact_and_a_share_of_nearly_nothing_has_its_place() -> None:
    assert (math.isqrt(5 << 128) - CIRCLE) // 2 == GOLDEN
    mixture = Mixture({"a": 1, "b": 1}, {"a": 1.0, "b": 1e-30})
    assert mixture.first(1000).tolist() == [0] * 1000
    assert mixture.at(0, CIRCLE - 1) == (1, 0)
    assert Mixture({"a": 1, "b": 1}, {"a": 1e-30, "b": 1.0}).first(1).tolist() == [1]
    assert Mixture({"b": 1}, {"a": 0.0, "b": 1.0}).names == ("b",)
    plan = plan_samples({"a": 2, "b": 1}, {"a": 1.0, "b": 1e-30}, 2, seed=0)
    assert sorted(plan) == [("a", 0), ("a", 1)]


def test_any_row_of_its_source_stands_in_for_one_without_end() -> None:
    replacement_rows = plan_samples({"a": 3}, {"a": 1.0}, 1, seed=0).replacement_rows(0, 3, np.random.default_rng(0))
    assert set(islice(replacement_rows, 100)) == {0, 1, 2}


# How long


def test_rows_are_counted_as_the_sources_count_them(
    human: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, tokenizer: Any, tmp_path: Path
) -> None:
    metadata = {**categories_to_metadata(tiny.CATEGORIES), REPEAT_KEY: "3"}
    write_shard(
        human / "detection" / shard_name(1), [tiny.detection_record("again", ["sea"])], DetectionRecord, metadata
    )
    rejected = replace(tiny.grounding_record("r", ["sea"]), reject_reason="no_phrases")
    lonely = tiny.grounding_record("l", [], unlocated=["sea"])
    pseudo = tiny.write_grounding(tmp_path / "pseudo", [tiny.grounding_record("p", ["sea"]), rejected, lonely])
    mixture = {"detection": 1.0, "grounding": 0.0, "pseudo": 1.0}
    sources = make_sources(human, pseudo, mixture, samples_config, tokenizer)
    found = count_rows(human, pseudo, mixture)
    assert found == {name: len(source) for name, source in sources.items()} == {"detection": 11, "pseudo": 1}


def run_of(**settings: Any) -> RunConfig:
    return RunConfig(init="pretrained", **{"mixture": {"detection": 1.0, "grounding": 1.0}, **settings})


def test_an_epoch_of_rows_shows_every_row_once() -> None:
    sizes = {"detection": 90, "grounding": 30}
    run = with_steps(run_of(epochs=2, mixture_by="rows"), sizes, batch_size=4)
    assert (run.steps, run.epochs) == (60, 0)
    plan = plan_samples(sizes, sample_weights(run, sizes), run.steps * 4, seed=0)
    counts = Counter(plan)
    assert len(counts) == 120
    assert sum(abs(count - 2) for count in counts.values()) <= 2  # the mixture's proportions hold but for a sample


def test_shares_do_not_depend_on_rows() -> None:
    sizes = {"detection": 90, "grounding": 30}
    assert sample_weights(run_of(steps=1), sizes) == {"detection": 1.0, "grounding": 1.0}
    assert sample_weights(run_of(steps=1, mixture_by="rows"), sizes) == {"detection": 90.0, "grounding": 30.0}
    assert with_steps(run_of(steps=7), sizes, 4).steps == 7
    assert with_steps(run_of(epochs=0.5, mixture={"detection": 1.0, "grounding": 0.0}), sizes, 5).steps == 9


# Orientation


class Wide:
    """A source with this many tall pictures before the others."""

    def __init__(self, tall: int, rows: int) -> None:
        self._tall = np.arange(rows) < tall

    def is_tall(self) -> np.ndarray:
        return self._tall


def grouped(total: int, batch: int) -> tuple[SamplePlan, SamplePlan]:
    plan = plan_samples({"a": 40, "b": 20}, {"a": 2.0, "b": 1.0}, total, seed=1)
    sources: Any = {"a": Wide(10, 40), "b": Wide(15, 20)}
    return plan, group_by_orientation(plan, sources, batch)


@pytest.mark.parametrize("total", [5, 48, 122])
def test_batches_have_one_orientation_and_no_sample_is_lost(total: int) -> None:
    plan, found = grouped(total, 4)
    assert sorted(found) == sorted(plan)
    tall = [row < (10 if name == "a" else 15) for name, row in found]
    mixed = [len(set(tall[start : start + 4])) > 1 for start in range(0, total, 4)]
    assert not any(mixed[:-2])
    assert list(grouped(total, 4)[1]) == list(found)


def test_a_batch_comes_when_its_last_sample_would_have() -> None:
    plan, found = grouped(48, 4)
    place_of = {sample: place for place, sample in enumerate(plan)}
    assert len(place_of) == 48
    places = np.array([place_of[sample] for sample in found]).reshape(-1, 4)[:-2]
    assert (np.diff(places[:, -1]) > 0).all()
    assert not any((np.diff(places[:, other]) > 0).all() for other in range(3))


def test_grouping_moves_samples_little() -> None:
    plan, found = grouped(120, 4)
    places: dict[Any, list[int]] = {}
    for place, sample in enumerate(plan):
        places.setdefault(sample, []).append(place)
    moved = [abs(place - places[sample].pop(0)) for place, sample in enumerate(found)]
    assert max(moved) < 20


def test_orientation_is_that_of_the_rows(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    rows = [tiny.detection_record(key, ["sea"]) for key in "abc"]  # 64 by 64
    captions = [tiny.grounding_record(key, ["sea"]) for key in "de"]
    tiny.write_detection(tmp_path / "detection", [rows[0], replace(rows[1], width=65), replace(rows[2], height=65)])
    tiny.write_grounding(tmp_path / "grounding", [replace(captions[0], width=99), captions[1]])
    sources = make_sources(tmp_path, None, {"detection": 1.0, "grounding": 1.0}, samples_config, tokenizer)
    assert sources["detection"].is_tall().tolist() == [True, False, True]
    assert sources["grounding"].is_tall().tolist() == [False, True]
