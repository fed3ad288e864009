"""What rounds of self-training have made of labels and models, and whether they amplify mistakes of their teachers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.gain import GAIN
from pipeline.evaluation.standings import CONCEPTS, Standing
from pipeline.inspection.versions import compare
from pipeline.report.charts import PERCENT, Line, Plot, Scale
from pipeline.report.labels import read_json
from pipeline.store.storage import Place

SKIPPED = "skipped"
"""Key of the note that stands in place of the metrics of a round that was not run."""
CERTAIN = 3.0
"""Standard deviations by which a share has to fall before it is called worse."""
NAMED = 5
"""Nouns of a round that a note names."""


@dataclass(frozen=True)
class Worse:
    """A noun whose labels are less often right than in the round before."""

    noun: str
    before: float
    """Precision in percent."""
    now: float
    boxes: int
    """Labels of it now, on dev."""


@dataclass(frozen=True)
class Round:
    """One round: who labelled, how good the labels were, and what the student gained."""

    name: str
    teacher: str
    skipped: str | None = None
    """Why it was not run."""
    rows: int | None = None
    """Web pairs with labels."""
    boxes: int | None = None
    precision: Mapping[str, float] = field(default_factory=dict)
    """Of labels on dev, in percent, by part of the concepts and by how often a noun is said."""
    recall: Mapping[str, float] = field(default_factory=dict)
    false_alarms: float | None = None
    """Share in percent of phrases that name nothing in a picture and were given a box."""
    drift: float | None = None
    """Share in percent of the distribution of scores that lies elsewhere than in the round before."""
    changed: float | None = None
    """Share in percent of the labels of both rounds that only one of them has."""
    worse: Sequence[Worse] = ()
    gain: Mapping[str, Any] | None = None
    """Of the student over its teacher on dev."""


def why_skipped(metrics: Place) -> str | None:
    """Return why the round of these metrics was not run; None where it was, or nobody knows."""
    found = read_json(metrics).get(SKIPPED)
    return None if found is None else str(found)


def read_rounds(names: Mapping[str, str], metrics: Place, labels: Place) -> list[Round]:
    """Read what the stages of all rounds have measured.

    Args:
        names: round to its teacher, in order.
        metrics: folder of ``models``, ``labels`` and ``calibration`` by round.
        labels: folder of pseudo-labels by round.
    """
    rounds: list[Round] = []
    before: tuple[str, Mapping[str, Any]] | None = None
    for name, teacher in names.items():
        made, calibration, model = (
            read_json(metrics / folder / f"{name}.json") for folder in ("labels", "calibration", "models")
        )
        if SKIPPED in model or SKIPPED in made:
            rounds.append(Round(name, teacher, skipped=str(model.get(SKIPPED) or made[SKIPPED])))
            continue
        if not (made or calibration or model):
            continue
        rounds.append(_round(name, teacher, made, calibration, model, before, labels))
        before = name, calibration
    return rounds


def curves_over_rounds(rounds: Sequence[Round], standings: Sequence[Standing]) -> list[Plot]:
    """Return a plot for each part of the first benchmark: where the models stand, from round to round.

    The teacher stands at 0. Baselines are drawn from where they began to the last round, whose steps they had.

    Args:
        rounds: see ``read_rounds``.
        standings: of one benchmark.
    """
    run = [each.name for each in rounds if each.skipped is None]
    plots = []
    for standing in standings:
        models = standing.models
        chain = [(0, models.get("teacher")), *((i, models.get(name)) for i, name in enumerate(run, 1))]
        reached = [(x, value) for x, value in chain if value is not None]
        if len(reached) < 2:
            continue
        last = reached[-1][0]
        lines = [_line("self-training", run[-1], reached, standing.is_resampled)]
        for name, start in (("control", "teacher"), ("one_round", run[0])):
            if name in models and start in models and last > (start != "teacher"):
                ends = [(int(start != "teacher"), models[start]), (last, models[name])]
                lines.append(_line(name, name, ends, standing.is_resampled))
        x = Scale(0, last, tuple(range(last + 1)))
        title = f"{standing.part.capitalize()} {standing.measure} of {standing.source}"
        plots.append(Plot(title, "round", "%", x, PERCENT, tuple(lines)))
    return plots


def notes_on_rounds(rounds: Sequence[Round]) -> list[str]:
    """Return what has to be known: rounds that were skipped, and rounds that made labels worse."""
    notes = [f"{each.name} was skipped: {each.skipped}." for each in rounds if each.skipped]
    for each in rounds:
        named = [f"{worse.noun} ({worse.before:.0f} → {worse.now:.0f} %)" for worse in each.worse[:NAMED]]
        more = f" and {len(each.worse) - NAMED} more" if len(each.worse) > NAMED else ""
        if named:
            notes.append(f"Labels of {each.name} are less often right than those before: {', '.join(named)}{more}.")
    return notes


def _round(
    name: str,
    teacher: str,
    made: Mapping[str, Any],
    calibration: Mapping[str, Any],
    model: Mapping[str, Any],
    before: tuple[str, Mapping[str, Any]] | None,
    labels: Place,
) -> Round:
    used = calibration.get("at_min_score") or {}
    by_frequency = calibration.get("by_frequency") or {}
    shares = {
        kind: {
            part: 100 * used[f"{kind}_{part}"] for part in (*CONCEPTS, "all") if used.get(f"{kind}_{part}") is not None
        }
        | {part: 100 * each[kind] for part, each in by_frequency.items() if each[kind] is not None}
        for kind in ("precision", "recall")
    }
    alarms = used.get("false_alarms")
    return Round(
        name=name,
        teacher=teacher,
        rows=made.get("rows_labelled"),
        boxes=made.get("boxes"),
        precision=shares["precision"],
        recall=shares["recall"],
        false_alarms=None if alarms is None else 100 * alarms,
        drift=None if before is None else _drift(before[1].get("scores"), calibration.get("scores")),
        changed=None if before is None else _changed(labels / before[0], labels / name),
        worse=() if before is None else _worse(before[1], calibration),
        gain=model.get(GAIN),
    )


def _drift(before: Sequence[float] | None, now: Sequence[float] | None) -> float | None:
    """Return the total variation distance of two histograms, in percent."""
    if not before or not now or len(before) != len(now):
        return None
    return 50 * sum(abs(a - b) for a, b in zip(before, now, strict=True))


def _changed(before: Place, now: Place) -> float | None:
    try:
        found = compare(before, now, examples=0)
    except MissingInputError:
        return None
    different = found.boxes_gained + found.boxes_lost
    total = different + found.boxes_kept + found.boxes_unchanged
    return 100 * different / total if total else None


def _worse(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Worse]:
    """Return what is less often right than before by more than chance, largest loss first: parts, then nouns."""
    found = []
    earlier, later = ({**(each.get("by_part") or {}), **(each.get("by_noun") or {})} for each in (before, now))
    for name, mine in later.items():
        theirs = earlier.get(name)
        if theirs is None or not (theirs["boxes"] and mine["boxes"]):
            continue
        was, now_is = theirs["right"] / theirs["boxes"], mine["right"] / mine["boxes"]
        # One success and one failure more on each side: no noun of a few boxes is certain.
        shares = [(each["right"] + 1) / (each["boxes"] + 2) for each in (theirs, mine)]
        spread = math.sqrt(
            sum(p * (1 - p) / (each["boxes"] + 2) for p, each in zip(shares, (theirs, mine), strict=True))
        )
        if shares[0] - shares[1] > CERTAIN * spread:
            found.append(Worse(name, 100 * was, 100 * now_is, mine["boxes"]))
    return sorted(found, key=lambda each: (each.noun not in CONCEPTS, each.now - each.before, each.noun))


def _line(name: str, style: str, points: Sequence[tuple[int, Interval]], is_resampled: bool) -> Line:
    band = tuple((x, value.low, value.high) for x, value in points) if is_resampled else ()
    return Line(name, style, tuple((x, value.value) for x, value in points), band)
