"""Evaluation of the dev set during training, and the model that scored best.

Training never suffers from it: a copy of the model is judged, by the first worker, and an evaluation that fails is a
warning and has no score. A schedule that follows scores passes over one that is not there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
import torch.distributed as dist

from glip_model.glip import GLIP
from pipeline.errors import PipelineError
from pipeline.store.folders import sent_folder
from pipeline.store.storage import Place, list_files
from pipeline.training.batches import Worker
from pipeline.training.model_folder import BEST_FOLDER, SAMPLES_FOLDER, save_model
from pipeline.training.update import Updater

logger = logging.getLogger(__name__)


class Validate(Protocol):
    """Judges a model; it crosses to other processes, so that it must pickle."""

    def __call__(self, model: GLIP, tokenizer: Any, samples: Path) -> Mapping[str, float]:
        """Return scores in percent by benchmark and measure, and draw sample pictures into the folder ``samples``."""
        ...


@dataclass(frozen=True)
class Verdict:
    """What an evaluation found."""

    score: float
    """Mean of the scores, which schedules and the choice of the best go by, on all workers; NaN without scores."""
    scores: Mapping[str, float]
    """Scores on the first worker; other workers have none."""
    pictures: tuple[str, ...] = ()
    """Files or URLs, of the first worker."""


class Judge:
    """Evaluates the model at regular steps.

    Args:
        validate: what does it.
        tokenizer: of the model.
        out: folder of the model; sample pictures and the best model are folders of it.
        worker: this process among its equals.
    """

    def __init__(self, validate: Validate, tokenizer: Any, out: Place, worker: Worker) -> None:
        self._validate, self._tokenizer, self._out, self._worker = validate, tokenizer, out, worker
        self.best = -math.inf
        """Highest score so far."""

    def __call__(self, step: int, updater: Updater) -> Verdict:
        """Evaluate the model after so many steps; all workers must call it, and wait for the first one."""
        found = self._judged(step, updater)
        if self._worker.world_size > 1:
            score = torch.tensor(found.score, device=next(updater.model.parameters()).device, dtype=torch.float64)
            dist.broadcast(score, 0)
            found = Verdict(float(score), found.scores, found.pictures)
        return found

    def _judged(self, step: int, updater: Updater) -> Verdict:
        samples = self._out / SAMPLES_FOLDER / f"step-{step:08d}"
        try:
            model = updater.model_to_judge()
            if model is None:
                return Verdict(math.nan, {})
            with sent_folder(samples) as folder:
                scores = self._validate(model, self._tokenizer, folder)
            score = fmean(scores.values()) if scores else math.nan
            if score > self.best:
                save_model(model, self._tokenizer, self._out / BEST_FOLDER)
                self.best = score
        except (PipelineError, ValueError, OSError, RuntimeError) as error:  # of memory, too
            logger.warning("evaluation after step %d failed, training goes on: %s", step, error)
            return Verdict(math.nan, {})
        return Verdict(score, scores, tuple(str(path) for path in list_files(samples, "*.jpg")))
