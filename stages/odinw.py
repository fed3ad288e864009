"""Put the results of models tuned on ODinW's data sets together, as the paper's table does, beside its numbers.

Every tuned model was judged on its own data set (glip evaluate … --metrics FILE); the files lie as
MODE/SHOTS/SEED/DATA_SET.json: full, linear or prompt; 1, 3, 5, 10 or all; 3, 30 or 300; aquarium, raccoon and so on.

glip odinw metrics/odinw
glip odinw metrics/odinw --split dev --json odinw.json
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

from pipeline.cli import run_if_program

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("runs", type=Path, help="folder of MODE/SHOTS/SEED/DATA_SET.json")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file for the numbers")


def run(args: argparse.Namespace) -> None:
    """Read, average, print."""
    from pipeline.evaluation.odinw_tuned import format_averages, incomplete, read_runs, tuned_averages
    from pipeline.store.atomic import write_json

    runs = read_runs(args.runs, args.split)
    found = tuned_averages(runs)
    print(format_averages(found))
    for (mode, shots), names in incomplete(runs).items():
        logger.warning("%s, %s shots: without %s, of which not all seeds are there", mode, shots, ", ".join(names))
    if args.json:
        write_json(args.json, {f"{mode}/{shots}": dataclasses.asdict(cell) for (mode, shots), cell in found.items()})


run_if_program(__name__)
