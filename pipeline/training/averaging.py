"""Interpolation between the weights before and after tuning: less is forgotten for a little less learnt.

Source: WiSE-FT, Robust fine-tuning of zero-shot models (Wortsman et al., CVPR 2022).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from glip_model.checkpoint import WEIGHTS_FILE
from glip_model.glip import GLIP
from glip_model.text_encoder import load_tokenizer
from pipeline.cli import progress
from pipeline.store.folders import local_folder
from pipeline.store.storage import Place, exists
from pipeline.training.judge import Validate
from pipeline.training.model_folder import BEST_FOLDER, save_model

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the tuned weights that are tried; 1 is the tuned model itself."""


@dataclass(frozen=True)
class Trial:
    """Validation scores of an interpolated model."""

    share: float
    """Share of the tuned weights, 0 to 1."""
    own: float
    """AP of the names that the model was tuned on, in percent."""
    other: float | None
    """AP of other names; None where no data judges them."""


def save_interpolated(
    start: Place, tuned: Place, own: Validate, other: Validate | None, may_lose: float | None, out: Place
) -> tuple[list[Trial], bool]:
    """Save the interpolated model that validation data chooses, see ``choose``.

    Args:
        start: folder of the model before tuning.
        tuned: folder of the model after it; its best checkpoint counts where there is one.
        own: evaluates models on the names that were tuned.
        other: evaluates them on others; without it the tuned model is saved.
        may_lose: most points of AP that other names may lose; None saves the tuned model whatever they lose.
        out: folder for the model.

    Returns:
        The trials, the chosen one first, and whether that one loses no more than allowed.
    """
    best = tuned / BEST_FOLDER if exists(tuned / BEST_FOLDER / WEIGHTS_FILE) else tuned
    before, _ = _load(start)
    after, tokenizer = _load(best)

    def trial(share: float) -> Trial:
        model = before if share == 0 else interpolate(before, after, share)
        scores = [None if each is None else _score(each, model, tokenizer) for each in (own, other)]
        return Trial(share, scores[0] or 0.0, scores[1])

    if other is None:
        save_model(after, tokenizer, out)
        return [trial(1.0)], True
    trials = []
    with progress(1 + len(SHARES), "average", "models") as bar:
        for share in (0.0, *SHARES):
            trials.append(trial(share))
            bar.update()
    chosen, keeps = (trials[-1], True) if may_lose is None else choose(trials, may_lose)
    save_model(interpolate(before, after, chosen.share), tokenizer, out)
    return [chosen, *(each for each in trials if each is not chosen)], keeps


def _load(folder: Place) -> tuple[GLIP, Any]:
    with local_folder(folder) as files:
        model = GLIP.from_pretrained(files).eval()
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), load_tokenizer(
            files, model.config.text.vocab_size
        )


def _score(judge: Validate, model: GLIP, tokenizer: Any) -> float:
    with tempfile.TemporaryDirectory() as samples:
        scores = judge(model, tokenizer, Path(samples))
    return fmean(scores.values()) if scores else 0.0


def interpolate(start: GLIP, tuned: GLIP, share: float) -> GLIP:
    """Return a model with linearly interpolated weights.

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
        trials: one of them has share 0, which is the starting model.
        may_lose: points of AP.

    Returns:
        The trial, and whether it loses no more than allowed; where none does, it is the one that loses least.
    """
    [start] = [trial for trial in trials if trial.share == 0]
    others = [trial for trial in trials if trial.share > 0]
    kept = [trial for trial in others if _lost(trial, start) <= may_lose]
    if not kept:
        return min(others, key=lambda trial: _lost(trial, start)), False
    return max(kept, key=lambda trial: (trial.own, -_lost(trial, start))), True


def _lost(trial: Trial, start: Trial) -> float:
    return 0.0 if trial.other is None or start.other is None else start.other - trial.other
