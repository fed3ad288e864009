"""Repeat the reproduction over several seeds and write how far the results spread.

Every seed is a DVC experiment in a temporary copy of the project: it draws its own pictures, captions, initial weights
and sample order, and shares the cache with the workspace. Which concepts are novel does not change with the seed.

Run: glip seeds --seeds 0 1 2 --out metrics/seeds.json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli import run_if_program
from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

SOURCE = "embedded"
"""What is judged: the data that every seed draws anew."""
MEASURES = {
    "AP": ("detection", "AP"),
    "AP50": ("detection", "AP50"),
    "R@1": ("grounding", "R@1"),
    "P@1": ("referring", "P@1"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run (default: %(default)s)")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="split to report (default: test)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Run what is missing, then summarise."""
    from pipeline.report.compose import BASELINES
    from pipeline.settings import PROJECT_PARAMS, load_all
    from pipeline.store.atomic import write_json

    models = (*BASELINES, *load_all(PROJECT_PARAMS).rounds)
    results = []
    for seed in args.seeds:
        revision = _run_experiment(seed)
        found = {model: _metrics_at(revision, model) for model in models}
        results.append({model: each[args.split] for model, each in found.items() if args.split in each})
        logger.info("seed %d: done as experiment %s", seed, revision)
    summary = summarise(results)
    write_json(args.out, {"seeds": args.seeds, "split": args.split, **summary})
    for part, gains in summary["gains"].items():
        for name, gain in gains.items():
            logger.info("%s AP: %s %s", part, name.replace("_", " "), gain["AP"])


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fold the metrics of several seeds into means and spreads.

    Args:
        results: per seed, model name to that model's metrics of one split, the students of rounds last. Models that a
            seed lacks, because a round was skipped, are left out of all.

    Returns:
        ``models``: model → base/novel → measure → values, mean and standard deviation (n - 1).
        ``gains``: base/novel → comparison → the same for the paired difference of each seed: the last model over every
        other.
    """
    models = [model for model in results[0] if all(model in result for result in results)]
    table = {
        model: {part: _spread([_measures(result[model], part) for result in results]) for part in ("base", "novel")}
        for model in models
    }
    last = models[-1]
    gains = {
        part: {
            f"{last}_over_{other}": _spread(
                [_difference(_measures(result[last], part), _measures(result[other], part)) for result in results]
            )
            for other in models[:-1]
        }
        for part in ("base", "novel")
    }
    return {"models": table, "gains": gains}


def _measures(metrics: Mapping[str, Any], part: str) -> dict[str, float]:
    return {name: metrics[task][SOURCE][part][key] for name, (task, key) in MEASURES.items() if task in metrics}


def _difference(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {name: left[name] - right[name] for name in left}


def _spread(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return values, mean and sample standard deviation of every measure; one value alone has no deviation."""
    spread = {}
    for name in rows[0]:
        values = [round(row[name], 2) for row in rows]
        deviation = round(statistics.stdev(values), 2) if len(values) > 1 else None
        spread[name] = {"values": values, "mean": round(statistics.mean(values), 2), "std": deviation}
    return spread


def _run_experiment(seed: int) -> str:
    """Run one experiment and return its name; stages that the cache knows already are not run again."""
    name = f"seed-{seed}"
    dvc = [sys.executable, "-m", "dvc", "exp"]
    if _git("for-each-ref", _reference(name)):  # of an earlier call; what has not changed comes from the cache
        subprocess.run([*dvc, "remove", "--quiet", name], check=True)
    done = subprocess.run([*dvc, "run", "--temp", "--name", name, "--set-param", f"seed={seed}"], check=False)
    if done.returncode:
        raise PipelineError(f"seed {seed}: dvc exp run ended with status {done.returncode}; its output is above")
    return name


def _metrics_at(revision: str, model: str) -> Any:
    return json.loads(_git("show", f"{_reference(revision)}:metrics/models/{model}.json"))


def _reference(experiment: str) -> str:
    """Return where git keeps an experiment that started from the present commit."""
    commit = _git("rev-parse", "HEAD").strip()
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{experiment}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


run_if_program(__name__)
