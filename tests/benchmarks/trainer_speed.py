"""What surrounds the steps of a training: its data, Ray Train, and a second process.

Run: make bench, or: python tests/benchmarks/trainer_speed.py --json out.json

    bare       optimiser steps alone, over batches that are in memory already
    trainer    the training loop, which reads, decodes and augments beside the steps, in a thread of its process, which
               takes turns with it at Python code, or in a process; and how long it waited for data
    ray        the same under Ray Train
    torchrun   the same in as many processes of torchrun

Over pictures of the embedded run, with its model. Every process computes with one thread, so that with one process the
other core decodes, as cores do beside a GPU; with two, decoding competes with the steps, as it never does there.
Speeds leave out what is before the first report; each is taken in a fresh process; the best of several counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from label_speed import CORES, in_rounds, local_ray, write_inputs

from pipeline.settings import load
from pipeline.training.batches import Worker
from pipeline.training.job import Paths, train
from pipeline.training.loop import Trainer
from pipeline.training.model_folder import starting_model
from pipeline.training.progress import Progress
from pipeline.training.rows import make_sources
from pipeline.training.settings import RunConfig, TrainingSettings
from pipeline.training.tuning import freeze_for

PICTURES = 2000
"""Of each kind of data."""
STEPS, REPORTED = 50, 10
IN_MEMORY = 10
"""Batches that the bare loop shows again and again."""
RUN = "speed"


def settings(folder: Path, workers: int, loader_processes: int = 0) -> TrainingSettings:
    """Return the settings of the embedded run's teacher: as many pictures a step and worker, whatever the workers."""
    config = load(folder / "params.yaml", TrainingSettings)
    run = RunConfig(init="pretrained", steps=STEPS, mixture={"detection": 0.6, "grounding": 0.4})
    optim = dataclasses.replace(config.train.optim, batch_size=24 * workers)
    changed = dataclasses.replace(
        config.train,
        optim=optim,
        runs={RUN: run},
        num_workers=workers,
        loader_processes=loader_processes,
        log_every=REPORTED,
        checkpoint_every=10**6,
    )
    return dataclasses.replace(config, train=changed)


def make_trainer(folder: Path, worker: Worker, loader_processes: int = 0) -> Trainer:
    """Return the training of this process, which computes with one thread."""
    torch.set_num_threads(1)
    config = settings(folder, worker.world_size, loader_processes)
    run = config.train.runs[RUN]
    model, tokenizer = starting_model(config, None)
    freeze_for(run, model)
    sources = make_sources(folder / "records" / "human", None, run.mixture, config.train.samples, tokenizer)
    return Trainer(model, tokenizer, sources, config.train, run, config.seed, worker=worker)


def run_bare(folder: Path) -> float:
    """Return pictures per second of the optimiser steps alone."""
    trainer = make_trainer(folder, Worker())
    batches = [trainer._inputs(trainer._batches.make(step)) for step in range(IN_MEMORY)]
    trainer.model.train()
    start = 0.0
    for step in range(STEPS):
        if step == REPORTED:
            start = time.perf_counter()
        trainer._updater.step(batches[step % IN_MEMORY], ["in memory"])
    return (STEPS - REPORTED) * trainer.config.optim.batch_size / (time.perf_counter() - start)


def steady(entries: Sequence[Progress]) -> tuple[float, float]:
    """Return pictures per second, and the share of waiting for data, behind the first report."""
    later = entries[1:]
    seconds = [1 / entry.images_per_s for entry in later]
    waited = sum(entry.data_wait_share * each for entry, each in zip(later, seconds, strict=True))
    return len(later) / sum(seconds), waited / sum(seconds)


def run_trainer(folder: Path, loader_processes: int = 0) -> tuple[float, float]:
    """Return pictures per second, and the share of waiting, of the loop in this process, one of torchrun's or alone."""
    worker = Worker(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if worker.world_size > 1:
        dist.init_process_group("gloo")
    entries: list[Progress] = []
    make_trainer(folder, worker, loader_processes).run(entries.append)
    if worker.world_size > 1:
        dist.destroy_process_group()
    return steady(entries)


def run_torchrun(folder: Path, processes: int) -> float:
    """Return pictures per second of the loop in processes of torchrun."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    out = folder / "torchrun.json"
    words += [__file__, "--only", "rank", "--folder", str(folder), "--json", str(out)]
    subprocess.run(words, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return float(json.loads(out.read_text(encoding="utf-8")))


def run_ray(folder: Path, workers: int) -> float:
    """Return pictures per second of the loop under Ray Train, each worker with a core."""
    with local_ray(workers), tempfile.TemporaryDirectory() as out:
        paths = Paths(human=folder / "records" / "human", pseudo_labels=None, teacher=None, out=Path(out))
        log = Path(out) / "log.csv"
        train(RUN, settings(folder, workers), paths, log)
        rows = [line.split(",") for line in log.read_text(encoding="utf-8").splitlines()]
        speed = rows[0].index("images_per_s")
        return (len(rows) - 2) / sum(1 / float(row[speed]) for row in rows[2:])


TASKS: dict[str, Callable[[Path], float]] = {
    "bare": run_bare,
    "trainer": lambda folder: run_trainer(folder)[0],
    "wait": lambda folder: run_trainer(folder)[1],
    "loader": lambda folder: run_trainer(folder, loader_processes=1)[0],
    **{f"torchrun-{n}": lambda folder, n=n: run_torchrun(folder, n) for n in (1, CORES)},
    **{f"ray-{n}": lambda folder, n=n: run_ray(folder, n) for n in (1, CORES)},
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", choices=[*TASKS, "rank"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "rank":
        speed, _ = run_trainer(args.folder)
        if os.environ["RANK"] == "0":
            args.json.write_text(json.dumps(speed), encoding="utf-8")
        return
    if args.only:
        print(TASKS[args.only](args.folder))
        return
    with tempfile.TemporaryDirectory(prefix="trainer-speed-") as scratch:
        folder = Path(scratch)
        write_inputs(folder, web=8, human_detection=PICTURES, human_grounding=PICTURES)
        rounds = in_rounds(__file__, folder, TASKS, args.repeats)
    found = {task: (min if task == "wait" else max)(figures[task] for figures in rounds) for task in TASKS}
    print(f"trainer    {found['trainer']:6.1f} pictures/s, {found['trainer'] / found['bare']:.3f} × of bare", end="")
    print(f", {found['bare']:.1f}; waiting for data {100 * found['wait']:.1f} % of the time")
    print(f"in process {found['loader']:6.1f} pictures/s, {found['loader'] / found['bare']:.3f} × of bare")
    for n in (1, CORES):
        ray, torchrun = found[f"ray-{n}"], found[f"torchrun-{n}"]
        print(f"ray {n}      {ray:6.1f} pictures/s, {ray / torchrun:.3f} × of torchrun with {n}, {torchrun:.1f}")
    one, all_cores = found["torchrun-1"], found[f"torchrun-{CORES}"]
    print(f"scaling    {all_cores / one:.2f} × of one process with {CORES}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
