"""What a training leaves behind when it gives up because its gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    from pipeline.store.storage import Place

DIVERGED_FILE = "diverged.json"
"""File in the model's folder that holds the last skipped steps."""


@dataclass(frozen=True)
class SkippedStep:
    """One worker's share of a step whose gradient was not finite."""

    step: int
    learning_rate: float
    keys: Sequence[str]
    """Keys of the rows."""
    losses: Mapping[str, float]


def write_divergence(path: Place, skipped: Sequence[SkippedStep]) -> None:
    """Write a JSON file of the skipped steps, with what every worker saw; all workers must call it.

    Numbers that are not finite stand there as strings, which JSON has no numbers for.
    """
    by_worker = [skipped]
    if dist.is_initialized():
        by_worker = [[]] * dist.get_world_size()
        dist.all_gather_object(by_worker, list(skipped))
        if dist.get_rank() > 0:
            return
    steps: list[dict[str, Any]] = [
        {
            "step": shares[0].step,
            "learning_rate": shares[0].learning_rate,
            "workers": [{"keys": list(share.keys), "losses": _plain(share.losses)} for share in shares],
        }
        for shares in zip(*by_worker, strict=True)
    ]
    from pipeline.store.atomic import write_json  # a machine that measures steps alone has no stores

    write_json(path, {"skipped": steps})


def _plain(losses: Mapping[str, float]) -> dict[str, float | str]:
    return {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
