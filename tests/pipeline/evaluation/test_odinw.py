"""The mean over ODinW's data sets, and the published one as its own check."""

from __future__ import annotations

import pytest

from pipeline.evaluation.odinw import DATA_SETS, PREFIXES, averages
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
