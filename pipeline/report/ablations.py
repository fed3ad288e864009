"""What ``glip ablations`` has found: rounds with one thing changed, and what more web pairs are worth."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ShardError
from pipeline.report.charts import PERCENT, Line, Plot, Scale
from pipeline.store.storage import Place

WEB_PAIRS = "web pairs"
"""Column of the table: the pairs that the teacher was asked about."""
_MEASURE, _REFERENCE = "novel AP", "base"
"""What is drawn over web pairs, and the ablation of round 1 that changes nothing."""
_SCALED = "web_"
"""How the names of the ablations begin that change the number of web pairs alone."""


@dataclass(frozen=True)
class Ablations:
    """The table of ``glip ablations``; a cell is empty where there is nothing to say."""

    columns: Sequence[str] = ()
    rows: Sequence[Mapping[str, str]] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)


def read_ablations(table: Place) -> Ablations:
    """Return the table; none where it has not been made.

    Raises:
        ShardError: it is not what ``glip ablations`` writes.
    """
    try:
        text = table.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Ablations()
    reader = csv.DictReader(io.StringIO(text))
    columns = list(reader.fieldnames or ())
    missing = [name for name in ("name", "what", "round", _MEASURE, WEB_PAIRS) if name not in columns]
    if missing:
        raise ShardError(f"{table}: no column {', '.join(missing)}; glip ablations writes it")
    return Ablations(columns, list(reader))


def curve_over_pairs(found: Ablations) -> Plot | None:
    """Return novel AP over the number of web pairs, on a logarithmic axis; None for fewer than three numbers."""
    points = sorted(
        (float(row[WEB_PAIRS]), float(row[_MEASURE]))
        for row in found.rows
        if row["name"] == _REFERENCE or row["name"].startswith(_SCALED)
        if row[WEB_PAIRS] and row[_MEASURE]
    )
    if len(points) < 3:
        return None
    counts = tuple(count for count, _ in points)
    x = Scale(counts[0], counts[-1], counts, is_logarithmic=True)
    title = f"{_MEASURE.capitalize()} on dev after one round, by the number of web pairs"
    line = Line("round 1", "part-novel", tuple(points))
    return Plot(title, WEB_PAIRS, "%", x, PERCENT, (line,))
