"""A report put together: which models there are, and what there is to tell of them on one benchmark after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import MissingInputError
from pipeline.evaluation.benchmark import Benchmark, list_benchmarks
from pipeline.evaluation.report.gallery import choose_gallery, side_by_side
from pipeline.evaluation.report.judged import MODELS, Judged, has_predictions, judge, pairs
from pipeline.evaluation.report.labels import read_labels
from pipeline.evaluation.report.page import Findings, Report, Shot, examine, make_gallery
from pipeline.evaluation.report.provenance import collect
from pipeline.evaluation.report.tables import count_notes, read_metrics
from pipeline.store.storage import Place

SIDE_BY_SIDE_ROWS = 3
"""Pictures in the side-by-side picture."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where all lies that a report tells of."""

    records: Place
    """Folder of SPLIT/TASK."""
    predictions: Place
    """Folder of NAME/SPLIT/TASK."""
    metrics: Path
    """Folder of NAME.json and of those of the stages."""
    plots: Path
    """Folder of calibration.csv."""
    lock: Path
    params: Path


def find_models(sources: Sources, asked: Sequence[str] | None, split: str) -> tuple[str, ...]:
    """Return the models that were asked for, or those of a run that have predictions or metrics.

    Args:
        sources: where to look.
        asked: names of models, or their folders.
        split: that they are judged by.

    Raises:
        MissingInputError: one that was asked for is not there, or none is.
    """
    names = [Path(name).name for name in asked or MODELS]
    there = [
        name
        for name in names
        if (sources.metrics / f"{name}.json").is_file() or has_predictions(sources.predictions, name, split)
    ]
    absent = names if not there else [name for name in names if name not in there] if asked else []
    if absent:
        raise MissingInputError(
            f"{', '.join(absent)}: neither in {sources.predictions} nor in {sources.metrics}; run: dvc repro evaluate"
        )
    return tuple(dict.fromkeys(there))


def compose(sources: Sources, models: tuple[str, ...], split: str, config: Config, out: Path) -> Report:
    """Judge the models on one benchmark after the other; the first one with predictions gives the pictures.

    Args:
        sources: what is read.
        models: see ``find_models``.
        split: that they are judged by.
        config: settings of the report, and the seed.
        out: folder that the side-by-side picture is written to.

    Raises:
        BenchmarkError: predictions or metrics are of other rows, or of an older version.
        ShardError: predictions are broken.
    """
    metrics = {model: read_metrics(sources.metrics / f"{model}.json") for model in models}
    notes = [
        f"{sources.metrics / model}.json is not there: no measures of {model}."
        for model in models
        if not metrics[model]
    ]
    notes += count_notes(metrics)
    findings: list[Findings] = []
    gallery: list[list[Shot]] = []
    for benchmark in _benchmarks(sources, split, notes):
        judged = judge(benchmark, sources.predictions, models)
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
            _save_picture(judged, out)
    return Report(
        models=models,
        split=split,
        findings=findings,
        metrics=metrics,
        gallery=gallery,
        labels=read_labels(sources.metrics, sources.plots),
        provenance=collect(sources.params, sources.lock, sources.metrics),
        notes=notes,
    )


def category_table(report: Report) -> Iterator[Sequence[Any]]:
    """Yield the names of columns and a row for every category of every benchmark: AP of each model, in percent."""
    yield "source", "category", "part", *report.models, "gain"
    for found in report.findings:
        for row in found.categories:
            yield found.source, row.name, row.part, *map(row.values.get, report.models), row.gain


def _benchmarks(sources: Sources, split: str, notes: list[str]) -> list[Benchmark]:
    try:
        found, absent = list_benchmarks(sources.records, [split])
    except MissingInputError as error:
        notes.append(f"Nothing but metrics: {error}")
        return []
    if absent:
        notes.append(f"No records of {', '.join(absent)}.")
    return found


def _save_picture(judged: Judged, out: Path) -> None:
    """Save the rows where the student gains most, for the README; nothing where there is nobody to compare with."""
    for student, other in pairs(judged.models)[:1]:
        numbers = choose_gallery(judged, (student, other), SIDE_BY_SIDE_ROWS + 1)[:SIDE_BY_SIDE_ROWS]
        side_by_side(judged, numbers, (other, student)).save(out / f"{other}_vs_{student}.png", optimize=True)
