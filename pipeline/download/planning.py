"""What a download will take, by the metrics of a smaller one: hours, traffic, storage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.store.storage import Place, read_text

_NEEDED = ("urls", "pictures", "bytes", "urls_per_s", "busiest_host_urls")


def read_metrics(place: Place, needed: Sequence[str]) -> dict[str, Any]:
    """Read the metrics of an earlier run.

    Args:
        place: JSON file that a stage wrote by ``--metrics``.
        needed: numbers above 0 that it must have.

    Raises:
        MissingInputError: there is no such file, or it lacks one of them.
    """
    text = read_text(place)
    if text is None:
        raise MissingInputError(f"{place}: no such file of metrics; run the stage on a sample with --metrics {place}")
    try:
        metrics = json.loads(text)
        lacking = [name for name in needed if not (isinstance(metrics[name], int | float) and metrics[name] > 0)]
    except (ValueError, KeyError, TypeError) as error:
        raise MissingInputError(f"{place}: no metrics of that stage ({error!r})") from error
    if lacking:
        raise MissingInputError(
            f"{place}: {', '.join(lacking)}: expected a number above 0, found {metrics[lacking[0]]!r}; a run "
            "that found all finished measured nothing: make a sample anew"
        )
    return dict(metrics)


def plan_download(place: Place, urls: int | None, machines: Sequence[int], host_pause_s: float) -> dict[str, Any]:
    """Scale the metrics of a sample.

    Args:
        place: of the metrics.
        urls: to plan for; None takes those of the sample.
        machines: numbers of machines such as the one that measured.
        host_pause_s: section ``download``: no number of machines asks the busiest host more often.

    Returns:
        URLs, pictures and bytes, and hours by machines.

    Raises:
        MissingInputError: as ``read_metrics``.
    """
    sample = read_metrics(place, _NEEDED)
    scale = 1.0 if urls is None else urls / sample["urls"]
    wanted = sample["urls"] * scale
    least_s = sample["busiest_host_urls"] * scale * host_pause_s
    return {
        "urls": round(wanted),
        "urls_per_s": sample["urls_per_s"],
        "pictures": round(sample["pictures"] * scale),
        "bytes": round(sample["bytes"] * scale),
        "hours_of_busiest_host": least_s / 3600,
        "hours": {str(n): max(wanted / sample["urls_per_s"] / n, least_s) / 3600 for n in machines},
    }


def format_download(plan: Mapping[str, Any], price_per_gb: float | None) -> str:
    """Lay out for a terminal what ``plan_download`` returned."""
    gigabytes = plan["bytes"] / 1e9
    hours = ", ".join(f"{hours:,.1f} h by {n}" for n, hours in plan["hours"].items())
    lines = [
        f"download  {plan['urls']:,} URLs, {plan['urls_per_s']:,.1f} a second and machine: {hours}",
        f"          {plan['hours_of_busiest_host']:,.1f} h at least, at the pace that the busiest host is asked",
        f"storage   {gigabytes:,.1f} GB of {plan['pictures']:,} pictures, which come in as traffic first",
    ]
    if price_per_gb is not None:
        lines.append(f"egress    {gigabytes * price_per_gb:,.2f} each time that all is read out of the store")
    return "\n".join(lines)
