"""Estimates of a training that is not run: what is trained and how, for how long, and on how much data."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glip_model.checkpoint import WEIGHTS_FILE, read_config
from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from pipeline.errors import ConfigError, MissingInputError
from pipeline.settings import extended_files, load, load_all
from pipeline.store.folders import local_folder
from pipeline.store.storage import Place, exists
from pipeline.training.batches import BatchMaker, Worker
from pipeline.training.counting import count_rows, sample_weights, with_steps
from pipeline.training.memory import step_bytes
from pipeline.training.optim import learning_rate_factor, parameter_groups, weight_decay_factor
from pipeline.training.progress import peak_host_memory_gb
from pipeline.training.rows import make_sources
from pipeline.training.settings import OptimConfig, RunConfig, TrainingSettings
from pipeline.training.tuning import freeze_for

SHOWN_CHARS = 100
"""Most characters of a setting's value."""


@dataclass(frozen=True)
class Part:
    """Parameters of one part of the model that are trained alike."""

    name: str
    learning_rate: float
    weight_decay: float
    parameters: int


@dataclass(frozen=True)
class SourceEstimate:
    """Samples of one source; values are None where they follow from rows or steps that are not known."""

    name: str
    rows: int | None
    """Rows, repeats counted."""
    share: float | None
    """Share of all samples."""
    passes: float | None
    """Epochs over its rows."""


@dataclass(frozen=True)
class Loading:
    """Memory and time that rows cost each process that reads them, without pictures that lie elsewhere."""

    processes: int
    """Loader processes of each worker."""
    megabytes: float
    """Memory, approximately."""
    seconds: float
    """Time until the first batch, measured on this machine."""


@dataclass(frozen=True)
class RunEstimate:
    """The estimate of one run of params.yaml."""

    parameters: int
    trained: tuple[Part, ...]
    batch_size: int
    workers: int
    sources: tuple[SourceEstimate, ...]
    steps: int | None
    epochs: float
    """Number of epochs where the run sets no steps."""
    schedule: tuple[tuple[int, float, float], ...]
    """Steps at which a rate changes, with the learning rate and weight decay of weights that are neither biases nor of
    backbone or text encoder; empty where the steps are not known."""

    may_stop: bool
    """Evaluations lower the learning rate further, and may end training earlier."""
    loading: Loading | None
    """None where there are no records yet."""

    @property
    def images(self) -> int | None:
        """Pictures shown in all."""
        return None if self.steps is None else self.steps * self.batch_size

    def hours(self, images_per_s: float) -> float | None:
        """Return how long it takes when every worker trains on so many pictures a second."""
        return None if self.images is None else self.images / (images_per_s * self.workers) / 3600


def estimate_run(
    name: str,
    config: TrainingSettings,
    human: Place | None,
    pseudo: Place | None,
    teacher: Place | None,
    replay: Place | None = None,
) -> RunEstimate:
    """Estimate a run. No weights are read, and no more data than a worker reads before its first batch.

    Args:
        name: key of ``train.runs``.
        config: its settings.
        human: folder with detection/ and grounding/ records, or None where there are none yet.
        pseudo: folder of pseudo-label shards.
        teacher: model to start from; None takes the sizes of section ``model``.
        replay: folder of shards of other data.

    Raises:
        MissingInputError: data or teacher that are named are not there, or data that has weight is not.
        ConfigError: a source of the mixture has no rows.
    """
    run, optim = config.train.runs[name], config.train.optim
    model = _structure(run, config, teacher)
    rows = None if human is None else _rows(name, run, human, pseudo, replay)
    run = run if rows is None else with_steps(run, rows, optim.batch_size)
    return RunEstimate(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=tuple(_parts(model, optim)),
        batch_size=optim.batch_size,
        workers=max(1, config.train.num_workers),
        sources=tuple(_sources(run, rows or {}, run.steps * optim.batch_size)),
        steps=run.steps or None,
        epochs=run.epochs,
        schedule=tuple(_schedule(optim, run.steps)) if run.steps else (),
        may_stop=optim.schedule == "plateau",
        loading=None if human is None else _loading(run, config, model.config, human, pseudo, replay),
    )


def differences(settings: Any, base: Any) -> dict[str, tuple[Any, Any]]:
    """Return dotted settings of two sections that differ, with their value and that of ``base``."""
    values, others = dict(flat_settings(settings)), dict(flat_settings(base))
    return {name: (value, others[name]) for name, value in values.items() if value != others[name]}


def describe_run(
    name: str,
    params: Path,
    human: Place | None,
    pseudo: Place | None,
    teacher: Place | None,
    images_per_s: float | None,
    replay: Place | None = None,
) -> str:
    """Describe the estimate of a run, and the settings that its params file changes in the one that all others extend.

    See ``estimate_run``; with the speed of one worker the text contains the time, too.
    """
    config = load(params, TrainingSettings)
    found = estimate_run(name, config, human, pseudo, teacher, replay)
    kept = step_bytes(_structure(config.train.runs[name], config, teacher), config.train, found.workers)
    return "\n".join([*_lines(found, kept, images_per_s), *_changed(params)])


def _structure(run: RunConfig, config: TrainingSettings, teacher: Place | None) -> GLIP:
    """Build the model without memory for its weights, frozen as the run asks for."""
    sizes = config.model.glip_config()
    if run.init == "teacher" and teacher is not None:
        if not exists(teacher / WEIGHTS_FILE):
            raise MissingInputError(f"{teacher}: holds no model")
        try:
            with local_folder(teacher) as folder:
                sizes = read_config(folder)
        except ValueError as error:
            raise MissingInputError(str(error)) from error
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisation of what has no values
        model = GLIP(sizes)
        freeze_for(run, model)
    return model


def _rows(name: str, run: RunConfig, human: Place, pseudo: Place | None, replay: Place | None) -> dict[str, int]:
    if run.learns_from_labels and pseudo is None:
        raise MissingInputError(f"train.runs.{name}.mixture gives pseudo-labels weight; pass --pseudo-labels FOLDER")
    if run.mixture.get("replay", 0) > 0 and replay is None:
        raise MissingInputError(f"train.runs.{name}.mixture gives replay weight; pass --replay FOLDER")
    rows = count_rows(human, pseudo, run.mixture, replay)
    for source, count in rows.items():
        if not count:
            raise ConfigError(
                f"train.runs.{name}.mixture gives {source!r} weight, but it has no usable rows; metrics/prepare.json "
                "and the labels' metrics count what was left out, and why"
            )
    return rows


def _loading(
    run: RunConfig,
    config: TrainingSettings,
    model: GLIPConfig,
    human: Place,
    pseudo: Place | None,
    replay: Place | None,
) -> Loading:
    """Open the data as a worker does, and see what that takes; where all rows would be read, judge by the first."""
    train, samples = config.train, config.train.samples
    begin, before = time.perf_counter(), peak_host_memory_gb()
    streamed = dataclasses.replace(samples, shuffle_window=samples.shuffle_window or sys.maxsize)
    sources = make_sources(human, pseudo, run.mixture, streamed, None, replay=replay)
    if samples.shuffle_window:
        BatchMaker(sources, train, run, model, None, config.seed, Worker(0, max(1, train.num_workers)))
    seconds, num_bytes = time.perf_counter() - begin, 1e9 * (peak_host_memory_gb() - before)
    is_held = bool(samples.shuffle_window)
    for source in (source for source in sources.values() if source.is_streamed):  # others were read
        group_bytes, group_seconds = source.cost_of_a_group()
        num_bytes += group_bytes * (source.held_groups() if is_held else len(source.groups))
        seconds += 0 if is_held else group_seconds * len(source.groups)
    return Loading(max(1, train.loader_processes), num_bytes / 1e6, seconds)


def _sources(run: RunConfig, rows: Mapping[str, int], samples: int) -> Iterator[SourceEstimate]:
    weights = sample_weights(run, rows)
    total = sum(weights.values())
    for name in (name for name, weight in run.mixture.items() if weight > 0):
        share = weights[name] / total if total else None
        known = name in rows and share is not None and samples > 0
        yield SourceEstimate(name, rows.get(name), share, samples * (share or 0) / rows[name] if known else None)


def _parts(model: GLIP, optim: OptimConfig) -> Iterator[Part]:
    counts: dict[tuple[str, float, float], int] = {}
    for (rate, decay), group in parameter_groups(model, optim).items():
        for name, parameter in group.items():
            key = name.partition(".")[0], rate, decay
            counts[key] = counts.get(key, 0) + parameter.numel()
    order = [name for name, _ in model.named_children()]
    for name, rate, decay in sorted(counts, key=lambda key: (order.index(key[0]) if key[0] in order else -1, -key[2])):
        yield Part(name, rate, decay, counts[name, rate, decay])


def _schedule(optim: OptimConfig, steps: int) -> Iterator[tuple[int, float, float]]:
    drops = [math.ceil(share * steps) for share in optim.decay_at] if optim.schedule == "steps" else []
    lighter = [math.ceil(share * optim.weight_decay_drops * steps) for share in optim.decay_at]
    points = {0, optim.warmup_steps, *drops, *(lighter if optim.weight_decay_drops else []), steps - 1}
    for step in sorted(point for point in points if point < steps):
        rate = optim.learning_rate * learning_rate_factor(optim, step, steps)
        yield step, rate, optim.weight_decay * weight_decay_factor(optim, step, steps)


def flat_settings(section: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every setting below ``where``."""
    for each in dataclasses.fields(section):
        value, name = getattr(section, each.name), f"{where}{each.name}"
        if dataclasses.is_dataclass(value):
            yield from flat_settings(value, f"{name}.")
        else:
            yield name, value


def _lines(found: RunEstimate, kept_bytes: int, images_per_s: float | None) -> Iterator[str]:
    """Return lines about a training and its memory of a step; with the speed of a worker also about its time."""
    trained = sum(part.parameters for part in found.trained)
    yield f"model     {found.parameters:,} parameters, {trained:,} of them trained"
    yield f"          {'part':16} {'parameters':>13} {'learning rate':>14} {'weight decay':>13}"
    for part in found.trained:
        yield f"          {part.name:16} {part.parameters:>13,} {part.learning_rate:>14g} {part.weight_decay:>13g}"
    for source in found.sources:
        rows = "rows unknown without --human" if source.rows is None else f"{source.rows:,} rows"
        share = "" if source.share is None else f", {100 * source.share:.1f} % of the samples"
        passes = "" if source.passes is None else f", {source.passes:.2f} epochs"
        yield f"data      {source.name}: {rows}{share}{passes}"
    length = f"{found.epochs:g} epochs" if found.steps is None else f"{found.steps:,} steps, {found.images:,} pictures"
    limit = "at most " if found.may_stop else ""
    yield f"length    {limit}{length}; {found.batch_size} pictures a step on {found.workers} workers"
    for i, (step, rate, decay) in enumerate(found.schedule):
        yield f"{'' if i else 'schedule':9} step {step:>9,}: learning rate {rate:g}, weight decay {decay:g}"
    if found.may_stop:
        yield f"{'':9} evaluations that bring no gain lower the rate further, and may end training earlier"
    yield f"memory    {kept_bytes / 1e9:,.1f} GB of activations a worker, kept from forward to backward pass"
    if found.loading is not None:
        each = f"a worker has {found.loading.processes}" if found.loading.processes > 1 else "one a worker"
        yield (
            f"          {found.loading.megabytes:,.0f} MB of rows in each process that reads data ({each}); "
            f"they start in {found.loading.seconds:,.1f} s"
        )
    hours = found.hours(images_per_s) if images_per_s else None
    if hours is not None:
        yield f"time      {hours:,.1f} h, {hours / 24:,.1f} days, at {images_per_s:g} images/s a worker"


def _changed(params: Path) -> Iterator[str]:
    """Say which settings differ from the file that all others extend."""
    base = extended_files(params)[-1]
    if base != params:
        yield f"settings  that differ from {os.path.relpath(base)}:"
        for name, (value, other) in differences(load_all(params), load_all(base)).items():
            yield f"          {name}: {_short(value)} instead of {_short(other)}"


def _short(value: Any) -> str:
    """Write a setting on one line."""
    text = json.dumps(value, ensure_ascii=False, default=dataclasses.asdict)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
