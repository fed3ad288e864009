"""The mean over ODinW's data sets, and the published one as its own check."""

from __future__ import annotations

import pytest

from pipeline.evaluation.odinw import DATA_SETS, PREFIXES, averages
from pipeline.evaluation.odinw_tuned import Run, incomplete, tuned_averages
from pipeline.evaluation.published import PUBLISHED


def test_each_prompting_has_its_own_mean() -> None:
    values = {"odinw_raccoon": 40.0, "odinw_pothole": 20.0, "odinw_manual_pothole": 10.0, "coco_val2017": 99.0}
    found = averages(values)
    assert (found["odinw13"].ap, found["odinw13"].data_sets) == (30.0, 2)
    assert (found["odinw13_manual"].ap, found["odinw13_manual"].data_sets) == (10.0, 1)


def test_without_its_sources_there_is_no_mean() -> None:
    assert averages({"coco_val2017": 40.0, "odinw_of_mine": 3.0}) == {}


MEANS = [(name, model, value) for name in PREFIXES for model, value in PUBLISHED[name, "all", "AP"].items()]


@pytest.mark.parametrize(("name", "model", "mean"), MEANS)
def test_the_published_means_are_those_of_the_published_values(name: str, model: str, mean: float) -> None:
    values = {PREFIXES[name] + each: PUBLISHED[PREFIXES[name] + each, "all", "AP"][model] for each in DATA_SETS}
    found = averages(values)[name]
    assert found.data_sets == 13
    assert found.ap == pytest.approx(mean, abs=0.1)  # of values that were rounded


def test_tuned_models_are_averaged_over_data_sets_then_seeds() -> None:
    runs = [
        Run(name, "full", "3", seed, ap)
        for name, seed, ap in (
            ("raccoon", 3, 50.0),
            ("raccoon", 30, 60.0),
            ("raccoon", 300, 40.0),
            ("pothole", 3, 10.0),
            ("pothole", 30, 30.0),
            ("pothole", 300, 20.0),
            ("aquarium", 3, 90.0),  # of one seed alone: no mean over other data sets for this seed
        )
    ]
    runs.append(Run("raccoon", "prompt", "all", 3, 70.0))
    found = tuned_averages(runs)
    assert set(found) == {("full", "3"), ("prompt", "all")}
    cell = found["full", "3"]
    assert (cell.ap, cell.seeds, cell.data_sets) == (35.0, 3, 2)  # means of seeds: 30, 45, 30
    assert cell.deviation == pytest.approx(75**0.5)
    assert found["prompt", "all"].deviation is None
    assert incomplete(runs) == {("full", "3"): ["aquarium"]}


def test_without_a_data_set_of_all_seeds_there_is_no_mean() -> None:
    assert tuned_averages([Run("raccoon", "full", "1", 3, 5.0), Run("pothole", "full", "1", 30, 5.0)]) == {}
