"""The geometry of charts: scales with round ticks, and lines over them. The marks are in charts.html.j2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 280
"""Of a plot in its own units, about a pixel each."""
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 20, 42
"""Margins of a plot for ticks and labels."""
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Scale:
    """A range of values with ticks at round ones."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_logarithmic: bool = False
    """Whether equal factors take equal room; then all values are positive."""

    def at(self, value: float) -> float:
        """Return where a value lies, in percent of the scale; beyond its ends, at its ends."""
        low, high = self.low, self.high
        if self.is_logarithmic:
            low, high, value = (math.log(each) for each in (low, high, value))
        return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 2)


@dataclass(frozen=True)
class Line:
    """A line of a plot."""

    name: str
    style: str
    """Whose colour it has: a model, or a class such as ``part-base``."""
    points: tuple[tuple[float, float], ...]
    """In values of the scales, rising in x."""
    band: tuple[tuple[float, float, float], ...] = ()
    """x, low and high of the interval around the line; empty where there is none."""


@dataclass(frozen=True)
class Plot:
    """Lines over two scales."""

    title: str
    x_label: str
    y_label: str
    x: Scale
    y: Scale
    lines: tuple[Line, ...]
    mark: float | None = None
    """A vertical line at this x."""

    def across(self, value: float) -> float:
        """Return where an x lies on the drawing."""
        return round(LEFT + self.x.at(value) / 100 * (WIDTH - LEFT - RIGHT), 1)

    def down(self, value: float) -> float:
        """Return where a y lies on the drawing, counted from the top."""
        return round(HEIGHT - BOTTOM - self.y.at(value) / 100 * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, line: Line) -> str:
        """Return the points of a line on the drawing."""
        return " ".join(f"{self.across(x):g},{self.down(y):g}" for x, y in line.points)

    def outline(self, line: Line) -> str:
        """Return the outline of a line's band on the drawing: along its lows and back along its highs."""
        lows = [(x, low) for x, low, _ in line.band]
        highs = [(x, high) for x, _, high in reversed(line.band)]
        return " ".join(f"{self.across(x):g},{self.down(y):g}" for x, y in (*lows, *highs))

    def spots(self, line: Line, count: int = 11) -> Sequence[tuple[float, float]]:
        """Return some points of a line, evenly spread, that tell their values."""
        step = max(1, (len(line.points) - 1) // max(count - 1, 1))
        return line.points[::step]


def scale(values: Iterable[float], num_ticks: int = 5) -> Scale:
    """Return a scale that holds zero and all values, from round number to round number.

    Args:
        values: finite ones; none give a scale from 0 to 1.
        num_ticks: about so many.
    """
    known = [0.0, *filter(math.isfinite, values)]
    low, high = min(known), max(known)
    if high - low < 1e-9:
        high = low + 1
    rough = (high - low) / num_ticks
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in _STEPS if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


PERCENT = Scale(0, 100, (0, 25, 50, 75, 100))
