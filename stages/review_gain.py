"""What reviewing is worth: a simulated person reviews some labels of the embedded data, and a student learns from them.

glip review_gain                              0, 100, 300 and 1,000 reviewed pairs, the most uncertain and random ones
glip review_gain --reviewed 100 --orders uncertain --error-rate 0.1

The person knows the truth of the emoji scenes, and leaves a share of the phrases as they were. Each student is one of
round 1 that starts from the run's teacher (make repro), on corrected labels; it is judged on dev. The table has novel
AP and the labels' precision over the number of pairs. What is finished stays; run again, it makes what is missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import add_params, at_least, progress, run_if_program, score
from pipeline.errors import MissingInputError, PipelineError

if TYPE_CHECKING:
    from pipeline.store.records import GroundingRecord

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parents[1] / "pipeline/training/recipes"
WITHOUT, WITH = RECIPES / "ablations/base.yaml", RECIPES / "review/reviewed.yaml"
"""Settings of a student without and with reviewed rows."""
ROUND = "round_1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    shown = "(default: %(default)s)"
    parser.add_argument("--reviewed", type=at_least(0), nargs="+", default=[0, 100, 300, 1000], metavar="N", help=shown)
    parser.add_argument("--orders", nargs="+", choices=("random", "uncertain"), default=["uncertain", "random"])
    parser.add_argument("--error-rate", type=score, default=0.05, metavar="S", help=f"of the person {shown}")
    parser.add_argument("--labels", type=Path, default=Path("data/pseudo_labels/round_1"), help=shown)
    parser.add_argument("--records", type=Path, default=Path("data/records"), help=shown)
    parser.add_argument("--teacher", type=Path, default=Path("models/teacher"), help=shown)
    parser.add_argument(
        "--out", type=Path, default=Path("review_gain"), help=f"folder, a folder for each in it {shown}"
    )
    parser.add_argument(
        "--table", type=Path, default=Path("plots/review_gain.csv"), help=f"CSV file, which the report draws {shown}"
    )
    parser.add_argument("--settings", type=Path, metavar="FILE", help="of the students, instead of the recipes'")
    parser.add_argument("--labels-only", action="store_true", help="correct labels and measure them; train nothing")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Run what is missing, then write the table."""
    from pipeline.store.atomic import write_csv

    truth = _truth(args)
    rows: list[dict[str, Any]] = []
    for count in args.reviewed:
        for order in args.orders if count else ["none"]:
            logger.info("review_gain: %d reviewed, %s", count, order)
            rows.append(_measure(args, truth, count, order))
    write_csv(args.table, [list(rows[0]), *(list(row.values()) for row in rows)], end="\n")
    return f"review_gain: {len(rows)} students → {args.table}"


def _truth(args: argparse.Namespace) -> dict[str, GroundingRecord]:
    """Return what the web pairs really show, by key."""
    from pipeline.prepare.embedded.tables import web_truth
    from pipeline.settings import load_all

    settings = load_all(args.params)
    embedded = settings.prepare.embedded
    with progress(embedded.web, "truth", "pairs") as bar:
        found = {}
        for number in range(embedded.web):
            record = web_truth(embedded, settings.seed, number)
            found[record.key] = record
            bar.update(1)
    return found


def _measure(args: argparse.Namespace, truth: Mapping[str, GroundingRecord], count: int, order: str) -> dict[str, Any]:
    """Correct labels, train and judge a student, or read what it came to before; return a line of the table."""
    from pipeline.store.atomic import write_json

    out = args.out / f"{order}_{count}"
    figures = out / "figures.json"
    wanted = {"error_rate": args.error_rate, "order": order, "reviewed": count}
    known = json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else {}
    if wanted.items() <= known.items() and (args.labels_only or "novel_ap" in known):
        return dict(known)
    line: dict[str, Any] = wanted | _correct(args, truth, count, order, out)
    if not args.labels_only:
        _train(args, count, out)
        model = json.loads((out / "model.json").read_text(encoding="utf-8"))
        parts = next(iter(model["dev"]["detection"].values()))
        line |= {"novel_ap": parts["novel"]["AP"], "base_ap": parts["base"]["AP"]}
    write_json(figures, line)
    return line


def _correct(
    args: argparse.Namespace, truth: Mapping[str, GroundingRecord], count: int, order: str, out: Path
) -> dict[str, Any]:
    from collections import Counter
    from datetime import UTC, datetime

    import numpy as np

    from pipeline.inspection.reading import read_records
    from pipeline.inspection.search import Filter, find_rows, sample_rows
    from pipeline.review.decisions import settle
    from pipeline.review.merging import merge
    from pipeline.review.ranking import rank_rows
    from pipeline.review.simulation import precision, simulate

    chosen = (
        rank_rows(args.labels, Filter(), count)[0]
        if order == "uncertain"
        else sample_rows(args.labels, Filter(), count)
    )
    records = list(read_records(chosen, Counter()))
    lacking = [record.key for record in records if record.key not in truth]
    if lacking:
        raise MissingInputError(
            f"{args.labels}: {lacking[0]} is no web pair of these settings; name labels of this run"
        )
    decisions = simulate(records, truth, args.error_rate, datetime.now(UTC), np.random.default_rng(0))
    merged = merge(args.labels, settle(decisions), out / "labels")
    after = list(read_records(find_rows(out / "labels", Filter()), Counter()))
    share = {name: precision(after, truth, split) for name, split in (("all", None), ("novel", "novel"))}
    return {"rows": merged.reviewed} | {f"precision_{name}": round(100 * value, 2) for name, value in share.items()}


def _train(args: argparse.Namespace, count: int, out: Path) -> None:
    settings = args.settings or (WITH if count else WITHOUT)
    model = out / "model"
    start = ["--human", args.records / "human", "--pseudo-labels", out / "labels", "--teacher", args.teacher]
    judged = ["--records", args.records, "--out", out / "predictions", "--metrics", out / "model.json"]
    for words in (
        ["stages.train_only", ROUND, *start, "--out", model, "--metrics", out / "training.json"],
        ["stages.evaluate", "--model", model, *judged],
    ):
        command = [sys.executable, "-m", *map(str, words), "--params", str(settings)]
        status = subprocess.run(command, check=False).returncode
        if status:
            raise PipelineError(f"{out}: {words[0]} ended with status {status}; its output is above")


run_if_program(__name__)
