"""What reviewing labels was worth where ``glip review_gain`` has measured it: over the number of reviewed pairs."""

from __future__ import annotations

import csv

from pipeline.errors import BenchmarkError
from pipeline.report.charts import PERCENT, Line, Plot, scale
from pipeline.store.storage import Place, read_text

FILE = "review_gain.csv"
_STYLES = {"uncertain": "part-novel", "random": "part-all"}
_MEASURES = {"novel_ap": "Novel AP of students", "precision_novel": "Precision of labels of novel phrases"}
_START = "none"
"""Order of the line without reviewed pairs, where the lines of all orders begin."""


def read_review_gain(plots: Place) -> list[Plot]:
    """Return a plot a measure with a line an order, none where nobody has measured it.

    Raises:
        BenchmarkError: the table is broken.
    """
    text = read_text(plots / FILE)
    if text is None:
        return []
    rows = list(csv.DictReader(text.splitlines()))
    try:
        found = []
        for name, title in _MEASURES.items():
            points = [(row["order"], float(row["reviewed"]), float(row[name])) for row in rows if row.get(name)]
            lines = [
                Line(order, style, tuple(sorted((x, y) for by, x, y in points if by in (order, _START))))
                for order, style in _STYLES.items()
                if any(by == order for by, _, _ in points)
            ]
            if lines:
                found.append(Plot(title, "reviewed pairs", "%", scale(x for _, x, _ in points), PERCENT, tuple(lines)))
    except (KeyError, ValueError, TypeError) as error:
        raise BenchmarkError(f"{plots / FILE}: not as glip review_gain writes it ({error}); run it again") from error
    return found
