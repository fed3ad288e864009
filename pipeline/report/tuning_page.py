"""The pages about tuning: curves over shots, or of what is gained over what is lost, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from pipeline.evaluation.bootstrap import CONFIDENCE, Interval
from pipeline.report import charts
from pipeline.report.charts import Line, Plot
from pipeline.report.page import FOLDER, make_environment

NUM_STYLES = 6


@dataclass(frozen=True)
class Page:
    """What is shown."""

    title: str
    notes: Sequence[str]
    plots: Sequence[Plot]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int
    """Columns from the left that are words."""


def render(page: Page) -> str:
    """Return the page as HTML that loads nothing; names in it are text."""
    names = dict.fromkeys(line.style for plot in page.plots for line in plot.lines)
    return (
        make_environment()
        .get_template("tuning.html.j2")
        .render(
            page=page,
            charts=charts,
            styles={name: f"model-{i % NUM_STYLES}" for i, name in enumerate(names)},
            css=(FOLDER / "report.css").read_text(encoding="utf-8"),
        )
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Return a table as Markdown has it, its first columns words and the others numbers."""
    line = ["---"] * texts + ["---:"] * (len(columns) - texts)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, line, *rows)) + "\n"


def over_seeds(values: Sequence[float]) -> Interval:
    """Return a mean and its 95 % interval by Student's t; of one value alone nobody knows how far it may be off."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, mean, mean)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 100.0))


def shots_plot(cells: Mapping[tuple[str, int], Interval], title: str) -> Plot:
    """Return AP over the number of shots, a line with its interval for each way of tuning.

    Args:
        cells: way and shots to AP in percent.
        title: of the plot.
    """
    names = list(dict.fromkeys(name for name, _ in cells))
    lines = []
    for name in names:
        points = sorted((shots, found) for (each, shots), found in cells.items() if each == name)
        lines.append(
            Line(
                name,
                name,
                tuple((float(shots), found.value) for shots, found in points),
                tuple((float(shots), found.low, found.high) for shots, found in points),
            )
        )
    x = charts.scale([float(shots) for _, shots in cells])
    y = charts.scale([found.high for found in cells.values()])
    return Plot(title, "shots", "AP, %", x, y, tuple(lines))


def trade_plot(trials: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Plot:
    """Return own AP gained over other AP lost, a line for each way of tuning along the shares of its weights.

    Args:
        trials: way to models between before and after, that of share 0 among them.
        title: of the plot.
    """
    lines = []
    for name, found in trials.items():
        [start] = [trial for trial in found if trial["share"] == 0]
        points = sorted((start["other"] - each["other"], each["own"] - start["own"]) for each in found)
        lines.append(Line(name, name, tuple(points)))
    x, y = (charts.scale([point[axis] for line in lines for point in line.points]) for axis in (0, 1))
    return Plot(title, "AP of other names lost", "AP of own names gained", x, y, tuple(lines))
