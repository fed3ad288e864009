"""A report put together: which models there are, and what there is to tell of them on one benchmark after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glip_model.whole_files import save_picture
from pipeline.errors import MissingInputError
from pipeline.evaluation.benchmark import Benchmark, list_benchmarks
from pipeline.evaluation.judged import Judged, has_predictions, judge, pairs
from pipeline.report.gallery import choose_gallery, side_by_side
from pipeline.report.page import Findings, Report, Shot, examine, make_gallery
from pipeline.report.rounds import why_skipped
from pipeline.report.settings import ReportConfig
from pipeline.report.tables import count_notes, read_metrics
from pipeline.store.storage import Place, exists

BASELINES = ("teacher", "control", "one_round")
"""What the students of all rounds are compared with; see dvc.yaml."""
SIDE_BY_SIDE = "side_by_side.png"
"""The picture for the README: what the model in focus finds beside the first of the others."""
SIDE_BY_SIDE_ROWS = 3
"""Pictures in the side-by-side picture."""


def find_models(
    asked: Sequence[str] | None, rounds: Sequence[str], metrics: Place, predictions: Place, split: str
) -> tuple[str, ...]:
    """Return the models that were asked for, or those of a run that have metrics, or predictions of a split.

    Args:
        asked: names of models, or their folders.
        rounds: names of the run's rounds; the last one's student comes last, and so is compared with all others.
        metrics: folder of NAME.json.
        predictions: folder of NAME/SPLIT/TASK.
        split: that they are judged by.

    Raises:
        MissingInputError: one that was asked for is not there, or none is.
    """
    names = [Path(name).name for name in asked or (*BASELINES, *rounds)]
    there = [
        name
        for name in names
        if not why_skipped(metrics / f"{name}.json")
        and (exists(metrics / f"{name}.json") or has_predictions(predictions, name, split))
    ]
    absent = names if not there else [name for name in names if name not in there] if asked else []
    if absent:
        raise MissingInputError(
            f"{', '.join(absent)}: neither in {predictions} nor in {metrics}; run: dvc repro evaluate"
        )
    return tuple(dict.fromkeys(there))


def read_models(folder: Place, models: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the metrics of every model, and notes on what is not there or has to be known of them."""
    metrics = {model: read_metrics(folder / f"{model}.json") for model in models}
    absent = [f"{folder / model}.json is not there: no measures of {model}." for model in models if not metrics[model]]
    return metrics, absent + count_notes(metrics)


def examine_all(
    benchmarks: Sequence[Benchmark],
    predictions: Place,
    models: Sequence[str],
    rounds: Sequence[str],
    config: ReportConfig,
    seed: int,
    out: Path,
) -> tuple[list[Findings], list[list[Shot]], list[str]]:
    """Judge the models on one benchmark after the other; the first one with predictions gives the pictures.

    Args:
        benchmarks: of a split.
        predictions: folder of NAME/SPLIT/TASK.
        models: see ``find_models``.
        rounds: names of those that were run, whose students are shown side by side.
        config: settings of the report.
        seed: of the resampling.
        out: folder that the side-by-side picture is written to.

    Returns:
        What was found, the gallery, and notes on what was left out.
    """
    findings: list[Findings] = []
    gallery: list[list[Shot]] = []
    notes = []
    for benchmark in benchmarks:
        judged = judge(benchmark, predictions, models)
        absent = [model for model in models if model not in judged.models]
        if absent:
            notes.append(f"{benchmark.name}: no predictions of {', '.join(absent)}.")
        if not judged.models:
            continue
        found = examine(judged, config, seed)
        if not found.standings:
            notes.append(f"{benchmark.name}: left out, no row has a true box.")
            continue
        findings.append(found)
        if len(findings) == 1:
            gallery = make_gallery(judged, config.gallery_rows, rounds)
            _save_picture(judged, out)
    return findings, gallery, notes


def find_benchmarks(records: Place, split: str, allowed: Sequence[str]) -> tuple[list[Benchmark], list[str]]:
    """Return the benchmarks of a split, and notes on those that there are no records of."""
    try:
        found, absent = list_benchmarks(records, [split], allowed)
    except MissingInputError as error:
        return [], [f"Nothing but metrics: {error}"]
    return found, [f"No records of {', '.join(absent)}."] if absent else []


def category_table(report: Report) -> Iterator[Sequence[Any]]:
    """Yield the names of columns and a row for every category of every benchmark: AP of each model, in percent."""
    yield "source", "category", "part", *report.models, "gain"
    for found in report.findings:
        for row in found.categories:
            yield found.source, row.name, row.part, *map(row.values.get, report.models), row.gain


def _save_picture(judged: Judged, out: Path) -> None:
    """Save the rows where the student gains most, for the README; nothing where there is nobody to compare with."""
    for student, other in pairs(judged.models)[:1]:
        numbers = choose_gallery(judged, (student, other), SIDE_BY_SIDE_ROWS + 1)[:SIDE_BY_SIDE_ROWS]
        picture = side_by_side(judged, numbers, (other, student))
        save_picture(picture, out / SIDE_BY_SIDE, optimize=True)
