"""The training loop in plain PyTorch: it runs the same in one process, under Ray Train, and in a test."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from glip_model.glip import GLIP
from glip_model.structures import GroundingBatch
from glip_model.text_encoder import TextStateCache
from pipeline.errors import TrainingError
from pipeline.store.storage import Place
from pipeline.training.adapters import merged
from pipeline.training.batches import MODEL_STREAM, BatchMaker, TrainingBatch, Worker, rng_for
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.distillation import Distillation
from pipeline.training.judge import Judge
from pipeline.training.progress import Progress, Window, peak_memory_gb
from pipeline.training.rows import Rows
from pipeline.training.settings import RunConfig, TrainConfig
from pipeline.training.update import Updater, trained_state

logger = logging.getLogger(__name__)


class Trainer:
    """One training: model, data order, optimiser, and where its checkpoints rest.

    Args:
        model: with its starting weights; its device is where training runs.
        tokenizer: of the model.
        sources: by the names of the mixture.
        config: shared settings.
        run: steps and mixture.
        seed: of data order and augmentation.
        checkpoints: for resuming; None keeps none.
        worker: this process among its equals; torch.distributed must run when there are several.
        judge: evaluates the model every ``evaluate_every`` steps and after the last one.
        diverged: JSON file for the batches that led to giving up, see ``Updater``.
        distillation: see ``Updater``.
    """

    def __init__(
        self,
        model: GLIP,
        tokenizer: Any,
        sources: Mapping[str, Rows],
        config: TrainConfig,
        run: RunConfig,
        seed: int,
        checkpoints: Checkpoints | None = None,
        worker: Worker | None = None,
        *,
        judge: Judge | None = None,
        diverged: Place | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        self.model, self.config, self.run_config, self.seed = model, config, run, seed
        self.checkpoints, self.worker = checkpoints, worker or Worker()
        self._batches = BatchMaker(sources, config, run, model.config, tokenizer, seed, self.worker)
        is_text_frozen = not any(parameter.requires_grad for parameter in model.text_encoder.parameters())
        self._text_states = TextStateCache(model.text_encoder, tokenizer) if is_text_frozen else None
        self._fingerprint = _fingerprint(config, run, seed, sources, model)
        self._updater = Updater(
            model, config.optim, run.steps, config.distribution, config.compile, diverged, distillation
        )
        self._judge = judge
        self._history: list[Progress] = []

    def run(self, report: Callable[[Progress], None] | None = None) -> None:
        """Train to the end, from the newest checkpoint where there is one.

        Args:
            report: called every ``log_every`` steps, after every evaluation and after the last step; a resumed training
                first repeats the reports of the steps that it need not do again.

        Raises:
            TrainingError: the gradient was not finite, or pictures were unreadable, too many times in a row.
        """
        with self.checkpoints or nullcontext():
            self._run(report)

    def _run(self, report: Callable[[Progress], None] | None) -> None:
        start = self._resume()
        report = report or (lambda entry: None)
        for entry in self._history:
            report(entry)
        self._updater.wrapped.train()
        for part in self.model.children():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        window, began = Window(start), time.monotonic()
        batches = self._batches.ahead(start)
        for step in range(start + 1, self.run_config.steps + 1):
            asked = time.monotonic()
            batch = next(batches)
            window.waited += time.monotonic() - asked
            # A stream per step and worker instead of a saved state: a resumed step draws what it would have drawn.
            torch.manual_seed(int(rng_for(self.seed, MODEL_STREAM, step, self.worker.rank).integers(2**63)))
            window.add(self._updater.step(self._inputs(batch), batch.keys))
            is_last = step == self.run_config.steps
            is_judged = self._judge is not None and (is_last or step % self.config.evaluate_every == 0)
            if step % self.config.log_every == 0 or is_last or is_judged:
                entry, is_over = self._progress(step, window), False
                if is_judged:
                    entry, is_over = self._judged(entry)
                pace = (time.monotonic() - began) / (step - start)
                self._history.append(replace(entry, seconds_left=pace * (self.run_config.steps - step)))
                report(self._history[-1])
                window = Window(step)
                if is_over:
                    logger.info("stopping after step %d: evaluations get no better", step)
                    break
            if step % self.config.checkpoint_every == 0 and not is_last:
                self._save(step)
        if self.config.optim.saved_weights == "average":
            self.load_average()

    def load_average(self) -> bool:
        """Give the model the moving average of its weights; return False where there is none."""
        return self._updater.load_average()

    def whole_model(self) -> GLIP | None:
        """Return the model with all of its weights, adapters merged, on the first worker; all workers must call it."""
        whole = self._updater.whole_model()
        return None if whole is None else merged(whole)

    def _inputs(self, made: TrainingBatch) -> GroundingBatch:
        """Move a batch to the model; the states of a frozen text encoder, which encodes every string once, join it."""
        batch = made.inputs
        if self._text_states is not None:
            batch = replace(batch, text_states=nn.utils.rnn.pad_sequence(self._text_states(made.segments), True))
        return batch.to(next(self.model.parameters()).device, non_blocking=True)

    def _progress(self, step: int, window: Window) -> Progress:
        steps, seconds = step - window.start, time.monotonic() - window.began
        # Every worker counts the same skipped steps; the sums and the unreadable pictures are its own.
        *sums, unreadable = self._over_workers([*window.sums.values(), self._batches.unreadable])
        counted = window.counted * self.worker.world_size
        means = [total / counted if counted else math.nan for total in sums]
        return Progress(
            step=step,
            losses=dict(zip(window.sums, means, strict=True)),
            learning_rate=self._updater.learning_rate,
            images_per_s=steps * self.config.optim.batch_size / seconds,
            data_wait_share=window.waited / seconds,
            skipped_steps=self._updater.skipped,
            unreadable_pictures=round(unreadable),
            memory_gb=round(self._over_workers([peak_memory_gb()], dist.ReduceOp.MAX)[0], 3),
        )

    def _judged(self, entry: Progress) -> tuple[Progress, bool]:
        """Evaluate the model; return the report with what was found, and whether training shall stop."""
        assert self._judge is not None
        found = self._judge(entry.step, self._updater)
        is_over = self._updater.step_plateau(found.score)
        rate = self._updater.learning_rate
        return replace(entry, learning_rate=rate, scores=found.scores, pictures=found.pictures), is_over

    def _over_workers(self, values: Sequence[float], how: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> list[float]:
        """Return the values of all workers, summed or reduced otherwise."""
        if self.worker.world_size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=next(self.model.parameters()).device)
        dist.all_reduce(found, how)
        return found.tolist()

    def _save(self, step: int) -> None:
        if self.checkpoints is None:
            return
        trained = self._updater.state_dict()  # on every worker: what is spread over them comes together
        (unreadable,) = self._over_workers([self._batches.unreadable])
        if self.worker.rank == 0:
            state = {
                "trained": trained,
                "history": [asdict(entry) for entry in self._history],
                "unreadable": round(unreadable),
                "best": None if self._judge is None else self._judge.best,
            }
            last = self._history[-1].scores if self._history and self._history[-1].step == step else {}
            self.checkpoints.save(step, self._fingerprint, state, fmean(last.values()) if last else None)

    def _resume(self) -> int:
        if self.checkpoints is None:
            return 0
        is_first = self.worker.rank == 0
        state = self.checkpoints.load(self._fingerprint) if is_first else None
        # The first worker decides for all, so that none resumes from another step.
        (found,) = self._over_workers([state["step"] if state else 0])
        if not found:
            return 0
        state = state if is_first else self.checkpoints.load(self._fingerprint, round(found))
        if state is None:
            raise TrainingError(
                f"{self.checkpoints.folder}: worker {self.worker.rank} cannot read the checkpoint of step {found:.0f}, "
                "which the first worker reads; all nodes must see that folder: pass --checkpoints with one or a URL"
            )
        self._updater.load_state_dict(state["trained"])
        self._history = [Progress(**entry) for entry in state["history"]]
        self._batches.unreadable = state["unreadable"] if is_first else 0
        if self._judge is not None and state["best"] is not None:
            self._judge.best = state["best"]
        logger.info("resuming after step %d of %d", state["step"], self.run_config.steps)
        return int(state["step"])


def _fingerprint(config: TrainConfig, run: RunConfig, seed: int, sources: Mapping[str, Rows], model: GLIP) -> str:
    """Hash what a checkpoint depends on: settings, data, model shape and starting weights."""
    settings = {"optim": asdict(config.optim), "samples": asdict(config.samples), "run": asdict(run)}
    digests = {name: source.digest() for name, source in sources.items()}
    text = json.dumps([settings, seed, digests, model.config.to_dict()], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(trained_state(model).items()):
        digest.update(name.encode())
        # Bytes, for sums depend on the number of threads.
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
