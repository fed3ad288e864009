"""Write the report of a run: one page of all that is known of it, a picture, and the numbers with intervals.

glip report                                     teacher, student and control of the run in this folder → reports/
glip report --models teacher --out /tmp/page    one model alone; names are folders of --predictions
glip report --models a b                        two: the last is compared with the others, a student with all

The page needs no network. It tells what there is to tell: a part whose inputs are missing says so in a line.
In DVC: python -m stages.report
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import run_stage
from pipeline.config import Config, load_config
from pipeline.errors import MissingInputError
from pipeline.evaluation.benchmark import Benchmark, list_benchmarks
from pipeline.evaluation.report.gallery import choose_gallery, side_by_side
from pipeline.evaluation.report.judged import MODELS, Judged, has_predictions, judge, pairs
from pipeline.evaluation.report.labels import read_labels
from pipeline.evaluation.report.page import Findings, Report, Shot, examine, make_gallery, render_page
from pipeline.evaluation.report.provenance import collect
from pipeline.evaluation.report.standings import headline, summarise
from pipeline.evaluation.report.tables import count_notes, read_metrics
from pipeline.store.atomic import replacing, write_json
from pipeline.store.storage import to_place

logger = logging.getLogger(__name__)

README_ROWS = 3
"""Pictures in the side-by-side picture."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the ``glip`` command."""
    add_stage_arguments(parser)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")


def add_stage_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    shown = "(default: %(default)s)"
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help=f"default: those that are there of {', '.join(MODELS)}"
    )
    parser.add_argument("--records", default="data/records", help=f"folder or URL of SPLIT/TASK {shown}")
    parser.add_argument("--predictions", default="data/predictions", help=f"folder or URL of NAME/SPLIT/TASK {shown}")
    parser.add_argument("--metrics", type=Path, default=Path("metrics"), help=f"of NAME.json and the stages' {shown}")
    parser.add_argument("--plots", type=Path, default=Path("plots"), help=f"folder of calibration.csv {shown}")
    parser.add_argument("--lock", type=Path, default=Path("dvc.lock"), help=f"hashes of data and models {shown}")
    parser.add_argument("--split", default="test", help=f"that the models are judged by {shown}")
    parser.add_argument("--out", type=Path, default=Path("reports"), help=f"folder for page, picture and table {shown}")
    parser.add_argument("--summary", type=Path, help="JSON file for the numbers (default: OUT/summary.json)")


def run(args: argparse.Namespace) -> None:
    """Compare the models and write what was found."""
    config = load_config(args.params)
    models = _models(args)
    metrics = {model: read_metrics(args.metrics / f"{model}.json") for model in models}
    notes = [
        f"{args.metrics / model}.json is not there: no measures of {model}." for model in models if not metrics[model]
    ]
    notes += count_notes(metrics)
    args.out.mkdir(parents=True, exist_ok=True)
    findings, gallery = _examine(args, models, config, notes)
    report = Report(
        models=models,
        split=args.split,
        findings=findings,
        metrics=metrics,
        gallery=gallery,
        labels=read_labels(args.metrics, args.plots),
        provenance=collect(args.params, args.lock, args.metrics),
        notes=notes,
    )
    with replacing(args.out / "report.html") as aside:
        aside.write_text(render_page(report), encoding="utf-8")
    _write_categories(args.out / "category_ap.csv", findings, models)
    standings = [each for found in findings for each in found.standings]
    write_json(args.summary or args.out / "summary.json", summarise(standings))
    logger.info("report: %s → %s", " ".join(headline(standings)) or "no predictions", args.out / "report.html")


def _models(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the models that were asked for, or those of a run that have predictions or metrics."""
    asked = [Path(name).name for name in args.models or MODELS]
    predictions = to_place(args.predictions)
    there = [
        name
        for name in asked
        if (args.metrics / f"{name}.json").is_file() or has_predictions(predictions, name, args.split)
    ]
    absent = asked if not there else [name for name in asked if name not in there] if args.models else []
    if absent:
        raise MissingInputError(
            f"{', '.join(absent)}: neither in {args.predictions} nor in {args.metrics}; run: dvc repro evaluate"
        )
    return tuple(dict.fromkeys(there))


def _examine(
    args: argparse.Namespace, models: Sequence[str], config: Config, notes: list[str]
) -> tuple[list[Findings], list[list[Shot]]]:
    """Judge the models on one benchmark after the other; the first one with predictions gives the pictures."""
    findings: list[Findings] = []
    gallery: list[list[Shot]] = []
    for benchmark in _benchmarks(args, notes):
        judged = judge(benchmark, to_place(args.predictions), models)
        absent = [model for model in models if model not in judged.models]
        if absent:
            notes.append(f"{benchmark.name}: no predictions of {', '.join(absent)}.")
        if not judged.models:
            continue
        found = examine(judged, config.report, config.seed)
        if not found.standings:
            notes.append(f"{benchmark.name}: left out, no row has a true box.")
            continue
        findings.append(found)
        if len(findings) == 1:
            gallery = make_gallery(judged, config.report.gallery_rows)
            _save_picture(judged, args.out)
    return findings, gallery


def _benchmarks(args: argparse.Namespace, notes: list[str]) -> list[Benchmark]:
    try:
        found, absent = list_benchmarks(to_place(args.records), [args.split])
    except MissingInputError as error:
        notes.append(f"Nothing but metrics: {error}")
        return []
    if absent:
        notes.append(f"No records of {', '.join(absent)}.")
    return found


def _save_picture(judged: Judged, out: Path) -> None:
    """Save the rows where the student gains most, for the README; nothing where there is nobody to compare with."""
    for student, other in pairs(judged.models)[:1]:
        numbers = choose_gallery(judged, (student, other), README_ROWS + 1)[:README_ROWS]
        side_by_side(judged, numbers, (other, student)).save(out / f"{other}_vs_{student}.png", optimize=True)


def _write_categories(path: Path, findings: Sequence[Findings], models: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "category", "part", *models, "gain"])
        for found in findings:
            for row in found.categories:
                values = [row.values.get(model) for model in models]
                writer.writerow([found.source, row.name, row.part, *values, row.gain])


if __name__ == "__main__":
    run_stage(__doc__, add_stage_arguments, run)
