"""What a run of ``prepare`` reports of a folder: metrics, warnings, the message that ends it."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.prepare.parts import PartResult
from pipeline.prepare.raw import LOOKS_HELD_OUT
from pipeline.store.image_roots import HOW_TO_ALLOW, OUTSIDE

logger = logging.getLogger(__name__)

_ENDS_SHOWN = 100
"""Characters at either end of a name in a message."""
_CHOSEN = ("held_out", "license_refused")
"""Rejects that the settings ask for: no fault of the data."""


def num_faults(result: PartResult) -> int:
    """Return how many rows were rejected for a fault of the data."""
    return result.rejects.total() - sum(result.rejects[reason] for reason in _CHOSEN)


def metrics_of(result: PartResult) -> dict[str, Any]:
    """Return the counts of a folder for the metrics file."""
    metrics = {
        "rows": result.rows,
        "boxes": result.boxes,
        "rejects": dict(result.rejects),
        "dropped_boxes": dict(result.dropped_boxes),
    }
    for name, counts in (("converted", result.converted), ("licenses", result.licenses)):
        if counts:
            metrics[name] = dict(counts)
    return metrics


def warn_of_rejects(folder: str, result: PartResult) -> None:
    """Warn of what is left out or used in another form, and of a split whose parts look alike."""
    lines = _rejects_by_reason(result)
    for counts, what in ((result.dropped_boxes, "boxes dropped"), (result.converted, "used in another form")):
        if counted := [f"{reason} {n}" for reason, n in sorted(counts.items()) if reason != LOOKS_HELD_OUT]:
            lines.append(f"  {what}: {', '.join(counted)}")
    if lines:
        logger.warning("prepare: %s: not all is as it stands in the data:\n%s", folder, "\n".join(lines))
    if result.rejects["held_out"]:
        logger.warning(
            "prepare: %s: %d pictures are left out, for they are, or look like, ones that models are judged by; where "
            "both are parts of one data set whose own split shall stand, give both sources the same data_set",
            folder,
            result.rejects["held_out"],
        )
    if result.converted[LOOKS_HELD_OUT]:
        logger.warning(
            "prepare: %s: %d of %d pictures look like ones of the same data set that models are judged by; they stay, "
            "for the split is the data set's own, but scores may be flattered: a fixed camera or the frames of a video "
            "are better divided by place or day",
            folder,
            result.converted[LOOKS_HELD_OUT],
            result.rows,
        )


def _rejects_by_reason(result: PartResult) -> list[str]:
    return [
        f"  {reason}: {count}"
        + (f", for example {', '.join(map(_shortened, result.examples[reason]))}" if reason in result.examples else "")
        for reason, count in sorted(result.rejects.items())
        if reason not in _CHOSEN
    ] + [f"  {OUTSIDE}: {HOW_TO_ALLOW}"] * (OUTSIDE in result.rejects)


def _shortened(example: str) -> str:
    return example if len(example) <= 2 * _ENDS_SHOWN else f"{example[:_ENDS_SHOWN]}…{example[-_ENDS_SHOWN:]}"


def reject_summary(folder: str, total: int, result: PartResult, limit: float) -> str:
    """Return the message that ends a run in which too large a share of rows was rejected."""
    return "\n".join(
        [
            f"{folder}: {num_faults(result)} of {total} rows rejected, more than prepare.max_reject_share = {limit}:",
            *_rejects_by_reason(result),
            "mend the data or raise the limit, then run: dvc repro prepare",
        ]
    )
