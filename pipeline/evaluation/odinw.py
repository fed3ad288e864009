"""ODinW-13, "object detection in the wild": COCO's AP on thirteen small data sets, and the mean over them.

Zero-shot, a model is judged on the sources ``odinw_NAME`` (class names as they are) and ``odinw_manual_NAME`` (the
paper's words where it has some); params.yaml has both as mixtures. Tuned, there is a model for every data set, mode,
number of shots and draw of them (seeds 3, 30 and 300); each is judged on its own data set.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DATA_SETS = (
    "pascal_voc",
    "aerial_maritime_drone",
    "aquarium",
    "cottontail_rabbits",
    "egohands",
    "mushrooms",
    "packages",
    "raccoon",
    "shellfish",
    "vehicles",
    "pistols",
    "pothole",
    "thermal",
)
"""In the order of the paper's tables."""
PREFIXES = {"odinw13": "odinw_", "odinw13_manual": "odinw_manual_"}
"""What an average is called, and how its sources are."""


@dataclass(frozen=True)
class Average:
    """A mean over data sets."""

    ap: float
    data_sets: int
    """That there is a value of, of thirteen; fewer are not the benchmark."""


def averages(ap_by_source: Mapping[str, float]) -> dict[str, Average]:
    """Return the means over the data sets of ODinW that are there, by prompts; none where there is none.

    Args:
        ap_by_source: source to AP.
    """
    found = {}
    for name, prefix in PREFIXES.items():
        values = [ap_by_source[prefix + each] for each in DATA_SETS if prefix + each in ap_by_source]
        if values:
            found[name] = Average(sum(values) / len(values), len(values))
    return found


MODES = ("full", "linear", "prompt")
"""What is tuned: the whole model, its last layer, or an offset to the prompt's embeddings."""
SHOTS = ("1", "3", "5", "10", "all")
"""Examples a category."""


@dataclass(frozen=True)
class Run:
    """A model that was tuned on one data set, and its AP there."""

    data_set: str
    mode: str
    shots: str
    seed: int
    ap: float


@dataclass(frozen=True)
class Tuned:
    """A cell of the paper's table: the mean over data sets, of every seed."""

    ap: float
    """Mean over the seeds."""
    deviation: float | None
    """Sample standard deviation over the seeds; None of one alone."""
    seeds: int
    data_sets: int
    """That every seed has; fewer than thirteen are not the benchmark."""


def tuned_averages(runs: Sequence[Run]) -> dict[tuple[str, str], Tuned]:
    """Return mode and shots to the mean over data sets and seeds.

    Data sets that lack one of the seeds are left out of a cell, so that every seed is a mean over the same ones; see
    ``incomplete``.
    """
    found = {}
    for cell, values in _cells(runs).items():
        seeds = sorted({seed for _, seed in values})
        complete = [name for name in DATA_SETS if all((name, seed) in values for seed in seeds)]
        if complete:
            means = [statistics.fmean(values[name, seed] for name in complete) for seed in seeds]
            deviation = statistics.stdev(means) if len(means) > 1 else None
            found[cell] = Tuned(statistics.fmean(means), deviation, len(seeds), len(complete))
    return found


def incomplete(runs: Sequence[Run]) -> dict[tuple[str, str], list[str]]:
    """Return mode and shots to the data sets that have some of the cell's seeds and not all."""
    found = {}
    for cell, values in _cells(runs).items():
        seeds = {seed for _, seed in values}
        lacking = sorted({name for name, _ in values if any((name, seed) not in values for seed in seeds)})
        if lacking:
            found[cell] = lacking
    return found


def _cells(runs: Sequence[Run]) -> dict[tuple[str, str], dict[tuple[str, int], float]]:
    cells: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for run in runs:
        cells.setdefault((run.mode, run.shots), {})[run.data_set, run.seed] = run.ap
    return cells
