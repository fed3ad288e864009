"""Models tuned on ODinW's data sets, put together as the paper's table does.

There is a model for every data set, mode, number of shots and draw of them (seeds 3, 30 and 300); each is judged on its
own data set.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.odinw import DATA_SETS, PREFIXES
from pipeline.evaluation.published import MODELS, TUNED

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


def read_runs(folder: Path, split: str) -> list[Run]:
    """Return the runs whose metrics lie in a folder.

    Raises:
        MissingInputError: there are none.
        BenchmarkError: a file is at no place for one, or holds no AP of its data set.
    """
    files = sorted(folder.glob("*/*/*/*.json"))
    if not files:
        raise MissingInputError(f"{folder}: no MODE/SHOTS/SEED/DATA_SET.json; judge tuned models with glip evaluate")
    return [_read_run(path, split) for path in files]


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


def format_averages(found: Mapping[tuple[str, str], Tuned]) -> str:
    """Lay what ``tuned_averages`` found out for a terminal, beside the published numbers."""
    lines = [f"{'':8} {'shots':>5} {'AP':>13} {'seeds':>5} {'sets':>5}" + "".join(f"{name:>12}" for name in MODELS)]
    for mode in MODES:
        for place, shots in enumerate(SHOTS):
            cell = found.get((mode, shots))
            if cell is None:
                continue
            spread = "" if cell.deviation is None else f" ± {cell.deviation:.1f}"
            published = "".join(f"{TUNED[mode][model][place]:>12}" for model in MODELS)
            lines.append(
                f"{mode:8} {shots:>5} {cell.ap:>6.1f}{spread:<7} {cell.seeds:>5} {cell.data_sets:>5}{published}"
            )
    return "\n".join(lines)


def _cells(runs: Sequence[Run]) -> dict[tuple[str, str], dict[tuple[str, int], float]]:
    cells: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for run in runs:
        cells.setdefault((run.mode, run.shots), {})[run.data_set, run.seed] = run.ap
    return cells


def _read_run(path: Path, split: str) -> Run:
    mode, shots, seed = path.parts[-4:-1]
    name = path.stem
    if mode not in MODES or shots not in SHOTS or not seed.isdecimal() or name not in DATA_SETS:
        raise BenchmarkError(
            f"{path}: expected MODE/SHOTS/SEED/DATA_SET.json with one of {', '.join(MODES)}; of {', '.join(SHOTS)}; a "
            f"number; and one of {', '.join(DATA_SETS)}"
        )
    try:
        sources = json.loads(path.read_text(encoding="utf-8"))[split]["detection"]
        values = [sources[prefix + name]["all"]["AP"] for prefix in PREFIXES.values() if prefix + name in sources]
        return Run(name, mode, shots, int(seed), float(values[0]))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BenchmarkError(f"{path}: no AP of odinw_{name} on {split} ({error!r}); run glip evaluate anew") from error
