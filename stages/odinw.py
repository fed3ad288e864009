"""Put the results of models tuned on ODinW's data sets together, as the paper's table does, beside its numbers.

Every tuned model was judged on its own data set (python -m stages.evaluate … --metrics FILE); the files lie as
MODE/SHOTS/SEED/DATA_SET.json: full, linear or prompt; 1, 3, 5, 10 or all; 3, 30 or 300; aquarium, raccoon and so on.

glip odinw metrics/odinw
glip odinw metrics/odinw --split dev --json odinw.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.odinw import DATA_SETS, MODES, PREFIXES, SHOTS, Run, Tuned, incomplete, tuned_averages
from pipeline.evaluation.published import MODELS, TUNED
from pipeline.store.atomic import write_json

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("runs", type=Path, help="folder of MODE/SHOTS/SEED/DATA_SET.json")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file for the numbers")


def run(args: argparse.Namespace) -> None:
    """Read, average, print."""
    runs = read_runs(args.runs, args.split)
    found = tuned_averages(runs)
    print("\n".join(_lines(found)))
    for (mode, shots), names in incomplete(runs).items():
        logger.warning("%s, %s shots: without %s, of which not all seeds are there", mode, shots, ", ".join(names))
    if args.json:
        write_json(args.json, {f"{mode}/{shots}": dataclasses.asdict(cell) for (mode, shots), cell in found.items()})


def read_runs(folder: Path, split: str) -> list[Run]:
    """Return the runs whose metrics lie in a folder.

    Raises:
        MissingInputError: there are none.
        BenchmarkError: a file is at no place for one, or holds no AP of its data set.
    """
    files = sorted(folder.glob("*/*/*/*.json"))
    if not files:
        raise MissingInputError(f"{folder}: no MODE/SHOTS/SEED/DATA_SET.json; judge tuned models with stages.evaluate")
    return [_read_run(path, split) for path in files]


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
        raise BenchmarkError(
            f"{path}: no AP of odinw_{name} on {split} ({error!r}); run stages.evaluate anew"
        ) from error


def _lines(found: Mapping[tuple[str, str], Tuned]) -> list[str]:
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
    return lines
