"""Where the models of a run stand, in words and as numbers for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.scoring import ALL
from pipeline.evaluation.standings import Standing


def summarise(found: Sequence[Standing]) -> dict[str, Any]:
    """Return the numbers for JSON: ``models`` and ``gains``, each task → source → part → who → value, low, high."""
    summary: dict[str, Any] = {"models": {}, "gains": {}}
    for each in found:
        gains = {f"{one}_over_{other}": value for (one, other), value in each.gains.items()}
        for name, values in (("models", each.models), ("gains", gains)):
            if values:
                source = summary[name].setdefault(each.task, {}).setdefault(each.source, {})
                source[each.part] = {who: _to_dict(value, each) for who, value in values.items()}
    return summary


def headline(found: Sequence[Standing]) -> list[str]:
    """Return what the run shows in two sentences, from its first two standings; none where there are none."""
    with_source = len({each.source for each in found}) > 1
    return [_sentence(each, with_source, is_first=number == 0) for number, each in enumerate(found[:2])]


def _to_dict(value: Interval, standing: Standing) -> dict[str, float]:
    return value.to_dict() if standing.is_resampled else {"value": value.value}


def _sentence(standing: Standing, with_source: bool, is_first: bool) -> str:
    focus = next(iter(standing.gains), (next(reversed(standing.models)), ""))[0]
    value = standing.models[focus]
    text = f"{_where(standing, with_source)} {_called(focus)} reaches {value.value:.1f} {standing.measure}"
    name = "95 % interval " if is_first else ""  # of the first number with one
    if not standing.gains:
        return text + (f" ({name}{value.low:.1f} to {value.high:.1f})." if standing.is_resampled else ".")
    clauses = []
    for (_, other), gain in standing.gains.items():
        chance = ", may be chance" if gain.low <= 0 <= gain.high else ""
        note = f" ({name}{signed(gain.low)} to {signed(gain.high)}{chance})" if standing.is_resampled else ""
        clauses.append(f"{signed(gain.value)} {'over' if gain.value >= 0 else 'against'} {_called(other)}{note}")
        name = ""
    return f"{text}: {', '.join(clauses[:-1])}{' and ' if clauses[1:] else ''}{clauses[-1]}."


def _where(standing: Standing, with_source: bool) -> str:
    source = standing.source if with_source or standing.part == ALL else ""
    if standing.part == ALL:
        return f"On {source}"
    return f"On {standing.part} concepts{' of ' if source else ''}{source}"


def _called(model: str) -> str:
    return f"the {model}" if model in ("teacher", "student", "control") else model


def signed(value: float) -> str:
    """Return a number with its sign, one digit."""
    return minus(f"{value:+.1f}")


def minus(text: str) -> str:
    """Return a number with a minus sign as typesetters write it, zero without any sign before it but ``+``."""
    is_zero = not text.strip("+-0.%")
    return text.replace("-", "+" if is_zero else "−")
