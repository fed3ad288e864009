"""What curation will take, by the metrics of a smaller one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NEEDED = ("rows", "kept", "pairs_per_s")
"""Numbers that are taken from the metrics."""


def plan_curation(sample: Mapping[str, Any], pairs: int | None, machines: Sequence[int]) -> dict[str, Any]:
    """Scale the metrics of a sample.

    Args:
        sample: metrics of ``glip curate`` that have ``NEEDED``.
        pairs: to plan for; None takes those of the sample.
        machines: numbers of machines such as the one that measured.

    Returns:
        Pairs, those that stay, and hours by machines.
    """
    wanted = sample["rows"] if pairs is None else pairs
    return {
        "pairs": wanted,
        "kept": round(wanted * sample["kept"] / sample["rows"]),
        "pairs_per_s": sample["pairs_per_s"],
        "hours": {str(n): wanted / sample["pairs_per_s"] / n / 3600 for n in machines},
    }


def format_curation(plan: Mapping[str, Any]) -> str:
    """Lay out for a terminal what ``plan_curation`` returned."""
    hours = ", ".join(f"{hours:,.1f} h by {n}" for n, hours in plan["hours"].items())
    return (
        f"curate    {plan['pairs']:,} pairs, {plan['pairs_per_s']:,.1f} a second and machine: {hours}\n"
        f"          about {plan['kept']:,} stay; doubles are more the more pairs there are"
    )
