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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import add_params, at_least, progress, run_if_program, run_module, score
from pipeline.errors import MissingInputError

if TYPE_CHECKING:
    from pipeline.store.records import GroundingRecord

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parents[1] / "pipeline/training/recipes"
BASE = RECIPES / "ablations/base.yaml"
"""Settings of a student without reviewed rows."""
ROUND = "round_1"
COLUMNS = ("error_rate", "order", "reviewed", "rows", "precision_all", "precision_novel", "novel_ap", "base_ap")
"""Of the table; the last two are those of students."""
REPEATS = 3
"""How often a reviewed row is shown for each time that another one is: a fixed share would show few rows too often."""


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
    # Lines that are read come in another order than those that are made, and those of labels alone lack some.
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    write_csv(args.table, [columns, *([row.get(name, "") for name in columns] for row in rows)], end="\n")
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


def _settings(args: argparse.Namespace, out: Path) -> Path:
    """Write the settings of a student with reviewed rows: its share of labels is divided among both kinds of them."""
    from pipeline.settings import load_all
    from pipeline.store.atomic import replacing
    from pipeline.training.counting import count_rows

    base = load_all(BASE).train.runs[ROUND]
    rows = count_rows(args.records / "human", out / "labels", {"pseudo": 1.0, "reviewed": 1.0})
    shown = {"pseudo": rows["pseudo"], "reviewed": REPEATS * rows["reviewed"]}
    labels = base.mixture["pseudo"]
    shares = {name: round(labels * number / sum(shown.values()), 4) for name, number in shown.items()}
    run = {"init": base.init, "steps": base.steps, "mixture": {**base.mixture, **shares}}
    path = out / "settings.yaml"
    with replacing(path) as aside:  # JSON is YAML
        aside.write_text(json.dumps({"extends": str(BASE), "train": {"runs": {ROUND: run}}}), encoding="utf-8")
    return path


def _train(args: argparse.Namespace, count: int, out: Path) -> None:
    settings = args.settings or (_settings(args, out) if count else BASE)
    model = out / "model"
    start = ["--human", args.records / "human", "--pseudo-labels", out / "labels", "--teacher", args.teacher]
    judged = ["--records", args.records, "--out", out / "predictions", "--metrics", out / "model.json"]
    for words in (
        ["stages.train_only", ROUND, *start, "--out", model, "--metrics", out / "training.json"],
        ["stages.evaluate", "--model", model, *judged],
    ):
        run_module([*words, "--params", settings], out)


run_if_program(__name__)
