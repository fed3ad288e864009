"""Weights of pseudo-labelled boxes in the losses, by their scores."""

from __future__ import annotations

import csv
from collections.abc import Callable

import numpy as np

from pipeline.errors import MissingInputError, TrainingError
from pipeline.store.storage import Place, read_text
from pipeline.training.settings import SamplesConfig


def weigher(config: SamplesConfig, calibration: Place | None) -> Callable[[float], float] | None:
    """Return the function from a score to a weight, 0 to 1; None where all boxes count alike.

    Args:
        config: ``pseudo_weight`` says what weights are.
        calibration: the CSV file of ``calibrate``, needed where they are ``precision``.

    Raises:
        TrainingError: ``precision`` is asked for without a calibration, or with one that has no hit rates.
        MissingInputError: the file is not there.
    """
    if config.pseudo_weight == "one":
        return None
    if config.pseudo_weight == "score":
        return float
    if calibration is None:
        raise TrainingError("train.samples.pseudo_weight is precision; pass --calibration FILE, written by calibrate")
    return HitRate(calibration)


class HitRate:
    """The share of correct boxes by score, interpolated between the thresholds of a calibration."""

    def __init__(self, calibration: Place) -> None:
        text = read_text(calibration)
        if text is None:
            raise MissingInputError(f"{calibration}: no such file; run: dvc repro calibrate")
        rows = list(csv.DictReader(text.splitlines()))
        try:
            points = [(float(row["threshold"]), float(row["hit_rate"])) for row in rows if row["hit_rate"]]
        except (KeyError, ValueError, TypeError) as error:
            raise TrainingError(
                f"{calibration}: expected the columns threshold and hit_rate ({error}); run: dvc repro calibrate"
            ) from error
        if not points:
            raise TrainingError(f"{calibration}: no box was compared with human ones; calibrate on more rows")
        self._scores, self._rates = (np.array(column) for column in zip(*sorted(points), strict=True))

    def __call__(self, score: float) -> float:
        """Return the hit rate of boxes of this score, 0 to 1."""
        return float(np.interp(score, self._scores, self._rates))
