"""Weights between those of before and after tuning: less forgotten for a little less learnt.

Source: WiSE-FT, Robust fine-tuning of zero-shot models (Wortsman et al., CVPR 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from glip_model.glip import GLIP

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the tuned weights that are tried; 1 is the tuned model itself."""


@dataclass(frozen=True)
class Trial:
    """What a model between two others is worth on data that may choose among them."""

    share: float
    """Of the tuned weights, 0 to 1."""
    own: float
    """AP of the names that the model was tuned on, in percent."""
    other: float | None
    """AP of other names; None where nothing tells."""


def between(start: GLIP, tuned: GLIP, share: float) -> GLIP:
    """Return a model whose weights lie between those of two others.

    Weights that the starting model lacks, the offset of prompt tuning, count as 0 in it.

    Args:
        start: before tuning.
        tuned: after it, of the same sizes.
        share: of the tuned weights, 0 to 1.
    """
    model, before = copy.deepcopy(tuned), start.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                old = before.get(name)
                value.lerp_(torch.zeros_like(value) if old is None else old.to(value), 1 - share)
    return model


def choose(trials: Sequence[Trial], may_lose: float) -> tuple[Trial, bool]:
    """Return the trial that is best at its own names among those that lose no more of others than allowed.

    Args:
        trials: that of share 0, the starting model, among them.
        may_lose: points of AP.

    Returns:
        The trial, and whether it keeps within what may be lost; where none does, it is the one that loses least.
    """
    [start] = [trial for trial in trials if trial.share == 0]
    others = [trial for trial in trials if trial.share > 0]
    kept = [trial for trial in others if _lost(trial, start) <= may_lose]
    if not kept:
        return min(others, key=lambda trial: _lost(trial, start)), False
    return max(kept, key=lambda trial: (trial.own, -_lost(trial, start))), True


def _lost(trial: Trial, start: Trial) -> float:
    return 0.0 if trial.other is None or start.other is None else start.other - trial.other
