"""How good the pseudo-labels of a run are, from what its stages have measured."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import BenchmarkError
from pipeline.report.charts import PERCENT, Line, Plot, scale
from pipeline.report.reviewing import read_review_gain
from pipeline.store.storage import Place, read_text

_PARTS = ("base", "novel")
_LICENSES_SHOWN = 5


@dataclass(frozen=True)
class LabelFigures:
    """What is known of the pseudo-labels; what nobody has measured is empty."""

    facts: list[tuple[str, str]]
    """Names and values."""
    rejects: list[tuple[str, list[tuple[str, int, float]]]]
    """Title to reasons, how often each, and its share in percent, most frequent first."""
    plots: list[Plot]
    """Precision and recall over the threshold."""
    chosen: list[tuple[str, float, float]]
    """Part, precision and recall in percent at the threshold in use."""
    reviewing: list[Plot] = field(default_factory=list)
    """What reviewing was worth, over the number of reviewed pairs."""

    def __bool__(self) -> bool:
        """Tell whether anything is known."""
        return bool(self.facts or self.rejects or self.plots or self.reviewing)


def read_labels(metrics: Place, plots: Place, round: str | None) -> LabelFigures:
    """Read the metrics of ``phrases``, and of ``pseudo_label`` and ``calibrate`` in a round, as far as there are any.

    Args:
        metrics: folder of prepare.json and phrases.json, and of ``labels`` and ``calibration`` by round.
        plots: folder of ``calibration`` by round.
        round: its name; None where no round was run.
    """
    labels, phrases, calibration = (
        read_json(metrics / name) for name in (f"labels/{round}.json", "phrases.json", f"calibration/{round}.json")
    )
    threshold = _number(calibration.get("min_score"))
    used = calibration.get("at_min_score") or {}
    licenses = _licenses(read_json(metrics / "prepare.json"))
    chosen = [(part, used.get(f"precision_{part}"), used.get(f"recall_{part}")) for part in (*_PARTS, "all")]
    return LabelFigures(
        facts=_facts(labels, phrases, threshold) + licenses,
        rejects=_rejects(labels, phrases),
        plots=_plots(_read_curves(plots / f"calibration/{round}.csv"), threshold),
        chosen=[(part, 100 * p, 100 * r) for part, p, r in chosen if p is not None and r is not None],
        reviewing=read_review_gain(plots),
    )


def read_json(path: Place, remedy: str = "dvc repro") -> dict[str, Any]:
    """Return the object that a JSON file holds, nothing where there is no file.

    Args:
        path: the file.
        remedy: the command that writes it anew.

    Raises:
        BenchmarkError: it holds anything else.
    """
    try:
        text = read_text(path)
        found = {} if text is None else json.loads(text)
    except ValueError as error:
        raise BenchmarkError(
            f"{path}: no JSON ({error}); written by an older version or broken; run: {remedy}"
        ) from error
    if not isinstance(found, dict):
        raise BenchmarkError(f"{path}: no JSON object; written by an older version or broken; run: {remedy}")
    return found


def _facts(labels: Mapping[str, Any], phrases: Mapping[str, Any], threshold: float | None) -> list[tuple[str, str]]:
    facts = [
        ("web pairs", _count(labels.get("rows"))),
        ("with boxes", _count(labels.get("rows_labelled"))),
        ("boxes", _count(labels.get("boxes"))),
        ("boxes a pair", _decimal(labels.get("boxes_per_row"))),
        ("phrases", _count(labels.get("phrases", phrases.get("phrases")))),
        ("different phrases", _count(phrases.get("unique_phrases"))),
        ("said once", _count(phrases.get("phrases_said_once"))),
        ("least score", _decimal(threshold)),
        ("pictures a second", _decimal(labels.get("images_per_s"))),
    ]
    return [(name, value) for name, value in facts if value]


def _licenses(prepare: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return licences of pictures that people or the web gave, the most frequent first, where data sets name them."""
    counted: Counter[str] = Counter()
    for folder, figures in prepare.items():
        if folder.split("/")[0] in ("human", "web") and isinstance(figures, Mapping):
            counted.update(figures.get("licenses") or {})
    rest = len(counted) - _LICENSES_SHOWN
    told = [f"{name} ({_count(count)})" for name, count in counted.most_common(_LICENSES_SHOWN)]
    told += [f"{rest} others"] if rest > 0 else []
    return [("licences of pictures", ", ".join(told))] if told else []


def _rejects(labels: Mapping[str, Any], phrases: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, int, float]]]]:
    found = [
        ("Phrases without a box", labels.get("phrase_rejects"), labels.get("phrases")),
        ("Pairs without a box", labels.get("row_rejects"), labels.get("rows")),
    ]
    if not labels:
        found = [("Captions without phrases", phrases.get("rejects"), phrases.get("rows"))]
    return [(title, _shares(reasons, total)) for title, reasons, total in found if reasons and total]


def _shares(reasons: Mapping[str, int], total: int) -> list[tuple[str, int, float]]:
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return [(name.replace("_", " "), count, 100 * count / total) for name, count in ranked]


def _read_curves(path: Place) -> dict[str, list[float]]:
    """Return the columns of a table; cells that are no numbers are NaN."""
    text = read_text(path)
    if text is None:
        return {}
    rows = list(csv.DictReader(text.splitlines()))
    numbers = {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else ())}
    return {name: [math.nan if each is None else each for each in column] for name, column in numbers.items()}


def _plots(columns: Mapping[str, Sequence[float]], threshold: float | None) -> list[Plot]:
    if "threshold" not in columns:
        return []
    x, found = columns["threshold"], []
    for title, name, others in (
        ("Precision: labels that are right", "precision", {"false_alarms": "named, but not there"}),
        ("Recall: true boxes that labels find", "recall", {}),
    ):
        of_parts = _lines(columns, {f"{name}_{part}": part for part in _PARTS})  # say more than all together
        lines = (of_parts or _lines(columns, {f"{name}_all": "all"})) + _lines(columns, others)
        if lines:
            found.append(Plot(title, "score threshold", "%", scale(x), PERCENT, tuple(lines), threshold))
    return found


def _lines(columns: Mapping[str, Sequence[float]], names: Mapping[str, str]) -> list[Line]:
    """Return a line over the threshold for each column that is there and has any points."""
    x = columns["threshold"]
    lines = [
        Line(label, f"part-{key.rpartition('_')[2]}", _points(x, columns[key]))
        for key, label in names.items()
        if key in columns
    ]
    return [line for line in lines if line.points]


def _points(x: Sequence[float], y: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple((a, 100 * b) for a, b in zip(x, y, strict=True) if math.isfinite(a + b))


def _number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _decimal(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
