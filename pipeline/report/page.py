"""The page: what was found, as one HTML file that loads nothing from anywhere.

Names of categories, phrases, models and data sets are untrusted. They reach the page as text, never as HTML; the page's
policy forbids every script but its own and every address.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from pipeline.evaluation.bootstrap import draw_pictures
from pipeline.evaluation.flickr30k import IOU_THRESHOLD
from pipeline.evaluation.judged import SHOWN_SCORE, Judged, categories_of_part, pairs
from pipeline.evaluation.standings import Standing, standings
from pipeline.report import charts
from pipeline.report.ablations import Ablations, curve_over_pairs
from pipeline.report.charts import PERCENT, Line, Plot
from pipeline.report.confusion import Confusions, confused_categories, confused_phrases
from pipeline.report.gallery import choose_gallery, draw_rows
from pipeline.report.labels import LabelFigures
from pipeline.report.provenance import Provenance
from pipeline.report.rounds import Round, curves_over_rounds
from pipeline.report.settings import ReportConfig
from pipeline.report.standings import headline, minus, signed
from pipeline.report.tables import CategoryRow, MeasureRow, category_rows, measure_rows, published_columns

SHOWN_CATEGORIES = 20
"""At either end of the gains that are drawn; those between are folded."""
SHOWN_CONFUSIONS = 12
MAX_PICTURE_SIDE = 900
"""Pixels of a picture of the gallery."""
ROWS = {"detection": "rows", "grounding": "captions", "referring": "expressions"}
"""What the rows of a task are called."""
FOLDER = Path(__file__).parent
"""Of the templates and what goes into them."""


@dataclass(frozen=True)
class Shot:
    """A picture of the gallery."""

    who: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Findings:
    """What is told of one benchmark."""

    task: str
    source: str
    num_pictures: int
    num_rows: int
    """As many, or more where there are several captions or expressions of a picture."""
    models: tuple[str, ...]
    standings: list[Standing]
    curves: list[Plot] = field(default_factory=list)
    categories: list[CategoryRow] = field(default_factory=list)
    confusions: dict[str, Confusions] = field(default_factory=dict)
    """By model."""

    @property
    def pair(self) -> tuple[str, str] | None:
        """Who is compared with whom above all; None where one model is alone."""
        return next(iter(pairs(self.models)), None)

    @property
    def size(self) -> str:
        """How many pictures it has, and how many rows if those are more."""
        rows = f", {self.num_rows:,} {ROWS[self.task]}" if self.num_rows > self.num_pictures else ""
        return f"{self.num_pictures:,} pictures{rows}"


@dataclass(frozen=True)
class Report:
    """Everything that the page tells."""

    models: tuple[str, ...]
    split: str
    findings: list[Findings]
    metrics: Mapping[str, Any]
    """Model → split → task → source → part → measure."""
    gallery: list[list[Shot]]
    rounds: list[Round]
    ablations: Ablations
    labels: LabelFigures
    provenance: Provenance
    notes: list[str]
    """What could not be told, and why."""


def examine(judged: Judged, config: ReportConfig, seed: int) -> Findings:
    """Return what is told of a benchmark.

    Args:
        judged: it and its models.
        config: number of resamplings.
        seed: of the resampling.
    """
    draws = draw_pictures(judged.pictures, config.bootstrap_samples, seed)
    found = standings(judged, draws)
    return Findings(
        task=judged.benchmark.task,
        source=judged.benchmark.source,
        num_pictures=int(judged.pictures.max()) + 1,
        num_rows=len(judged.records),
        models=judged.models,
        standings=found,
        curves=_curves(judged, [each.part for each in found]),
        categories=category_rows(judged),
        confusions={
            model: _confusions(judged, model) for model in judged.models if judged.benchmark.task != "referring"
        },
    )


def make_gallery(judged: Judged, count: int, rounds: Sequence[str] = ()) -> list[list[Shot]]:
    """Return rows of the truth, and what one model and the one it is compared with see in the same picture.

    Args:
        judged: the benchmark and its models.
        count: rows.
        rounds: models between the two, shown as well.
    """
    focus, other = next(iter(pairs(judged.models)), (judged.models[-1], None))
    models = tuple(dict.fromkeys((None, other, *(name for name in rounds if name in judged.models), focus)))
    numbers = choose_gallery(judged, (focus, other), count)
    return [
        [_shot(picture, model or "truth") for picture, model in zip(row, models, strict=True)]
        for row in draw_rows(judged, numbers, models)
    ]


def split_rows(rows: Sequence[CategoryRow], count: int = SHOWN_CATEGORIES) -> list[Sequence[CategoryRow]]:
    """Return the first rows, those that are folded, and the last; a fold that would hide a few hides none."""
    if len(rows) <= 2 * count + count // 4:
        return [rows, (), ()]
    return [rows[:count], rows[count:-count], rows[-count:]]


def render_page(report: Report) -> str:
    """Return the report as one HTML page."""
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    rows = measure_rows(report.metrics)
    leading = [row for row in rows if row.is_leading and row.split == report.split]
    all_standings = [each for found in report.findings for each in found.standings]
    return (
        make_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            headline=headline(all_standings),
            leading=_by_benchmark(leading),
            others=_by_benchmark([row for row in rows if row not in leading]),
            columns=published_columns(leading),
            styles={model: f"model-{number % 6}" for number, model in enumerate(report.models)},
            gain_scale=charts.scale(
                (end for each in all_standings for gain in each.gains.values() for end in (gain.low, gain.high)), 3
            ),
            charts=charts,
            split_rows=split_rows,
            over_pairs=curve_over_pairs(report.ablations),
            over_rounds=curves_over_rounds(report.rounds, report.findings[0].standings if report.findings else []),
            shown_confusions=SHOWN_CONFUSIONS,
            shown_score=SHOWN_SCORE,
            iou=IOU_THRESHOLD,
            css=(FOLDER / "report.css").read_text(encoding="utf-8"),
            script=script,
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def make_environment() -> jinja2.Environment:
    """Return what fills in the templates of pages: what they are given is text, and nothing of it may be missing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda value: minus(f"{value:.1f}"),
        "signed": signed,
        "share": lambda value: f"{value:.1f}\N{NO-BREAK SPACE}%",
    }
    return environment


def _by_benchmark(rows: Sequence[MeasureRow]) -> list[list[MeasureRow]]:
    return [list(group) for _, group in itertools.groupby(rows, lambda row: (row.split, row.task, row.source))]


def _curves(judged: Judged, parts: Sequence[str]) -> list[Plot]:
    """Return a plot of precision over recall at IoU 0.5 for every part, a line a model."""
    plots = []
    for part in parts if judged.by_category else ():
        lines = []
        for model, result in judged.by_category.items():
            chosen = categories_of_part(result, None if part == "all" else part)
            precision = (100 * result.curves.precision_curve(chosen)).round(2).tolist()
            end = precision.index(0) + 1 if 0 in precision else len(precision)  # beyond, the recall is not reached
            lines.append(Line(model, model, tuple(enumerate(precision[:end]))))
        title = "All categories" if part == "all" else f"{part.capitalize()} concepts"
        plots.append(Plot(title, "recall, %", "precision, %", PERCENT, PERCENT, tuple(lines)))
    return plots


def _confusions(judged: Judged, model: str) -> Confusions:
    found = judged.predictions[model]
    if judged.benchmark.task == "detection":
        return confused_categories(judged.records, judged.categories, found)
    return confused_phrases(judged.records, found)


def _shot(picture: Image.Image, who: str) -> Shot:
    picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
    return Shot(who, uri, picture.width, picture.height)
