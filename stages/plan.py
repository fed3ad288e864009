"""Say what pseudo-labelling will take before anything is paid for: shards, GPU-hours, wall time, size and cost.

The teacher is measured on a sample of the input on this machine, so run it on one of the machines that are to do the
work; or name a speed. The whole is then played through for several numbers of GPUs.

glip plan                                             measure, for the input of params.yaml and dvc.yaml
glip plan --pairs 24e6 --gpus 64 256 --price 2.5      the same pictures, as if there were 24 million
glip plan --images-per-s 40 --interrupted-every 6     a speed that is known, on spot machines
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.pseudo_labels.planning import Interruptions, Outcome, Rates, Workload, measure, simulate, survey
from pipeline.pseudo_labels.teachers import open_teacher
from pipeline.settings import load_all
from pipeline.store.storage import to_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("--records", default="data/records/web", help="shards of web pairs (default: %(default)s)")
    parser.add_argument("--teacher", default="models/teacher", help="see pseudo_label (default: %(default)s)")
    parser.add_argument("--pairs", type=float, help="plan for so many pairs like these, for example 24e6")
    parser.add_argument("--rows-per-shard", type=int, help="with --pairs: in shards of so many rows")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 256, 512], help="(default: %(default)s)")
    parser.add_argument("--price", type=float, help="of one GPU-hour, in any currency")
    parser.add_argument("--images-per-s", type=float, help="of one GPU; nothing is measured then")
    parser.add_argument("--sample", type=int, default=256, help="rows to measure by (default: %(default)s)")
    parser.add_argument("--interrupted-every", type=float, metavar="HOURS", help="how long a spot machine lasts")
    parser.add_argument("--restart", type=float, default=300, metavar="S", help="until it is replaced (default: 300)")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(args: argparse.Namespace) -> None:
    """Measure, play through, print."""
    workload = _scaled(survey(to_place(args.records)), args)
    rates = Rates(args.images_per_s) if args.images_per_s else _measure(args)
    spot = Interruptions(args.interrupted_every, args.restart) if args.interrupted_every else None
    outcomes = [simulate(workload, rates, gpus, spot) for gpus in args.gpus]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    if args.json:
        print(json.dumps(_as_dict(workload, rates, outcomes, args, device), indent=2))
    else:
        print("\n".join(_lines(workload, rates, outcomes, args, device)))


def _scaled(found: Workload, args: argparse.Namespace) -> Workload:
    if not found.pairs:
        raise ConfigError(f"{args.records}: there are no pairs to plan for")
    if args.pairs is None:
        return found
    if not args.pairs >= 1:
        raise ConfigError(f"--pairs is {args.pairs}; expected at least 1")
    pairs = int(args.pairs)
    rows = args.rows_per_shard or math.ceil(found.pairs / found.shards)
    return Workload(pairs, math.ceil(pairs / rows), round(found.bytes / found.pairs * pairs))


def _measure(args: argparse.Namespace) -> Rates:
    settings = load_all(args.params)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return measure(
        to_place(args.records),
        open_teacher(args.teacher, device),
        settings.pseudo_label,
        settings.phrases,
        settings.prepare.max_image_pixels,
        args.sample,
        os.cpu_count() or 1,
    )


def _as_dict(
    workload: Workload, rates: Rates, outcomes: list[Outcome], args: argparse.Namespace, device: str
) -> dict[str, Any]:
    runs = [dataclasses.asdict(outcome) | {"cost": _cost(outcome, args.price)} for outcome in outcomes]
    return {
        "input": dataclasses.asdict(workload),
        "device": None if args.images_per_s else device,
        "rates": dataclasses.asdict(rates),
        "output": _output(workload, rates),
        "runs": runs,
    }


def _output(workload: Workload, rates: Rates) -> dict[str, float | None]:
    boxes, size = rates.boxes_per_pair, rates.bytes_per_pair
    return {
        "bytes": None if size is None else size * workload.pairs,
        "boxes": None if boxes is None else boxes * workload.pairs,
        "decoder_cores_per_gpu": _cores(rates),
        "phrase_core_hours": rates.captions_per_core_s and workload.pairs / rates.captions_per_core_s / 3600,
    }


def _cores(rates: Rates) -> float | None:
    return rates.decoded_per_core_s and rates.images_per_s / rates.decoded_per_core_s


def _cost(outcome: Outcome, price: float | None) -> float | None:
    return None if price is None else outcome.gpu_hours * price


def _lines(
    workload: Workload, rates: Rates, outcomes: list[Outcome], args: argparse.Namespace, device: str
) -> list[str]:
    known = "as given" if args.images_per_s else f"measured on {device} over {args.sample} pairs"
    lines = [
        f"input     {workload.pairs:,} pairs in {workload.shards:,} shards, {workload.bytes / 1e9:,.2f} GB",
        f"teacher   {rates.images_per_s:,.1f} images/s a GPU, {known}",
    ]
    output = _output(workload, rates)
    if output["bytes"] is not None and output["boxes"] is not None:
        lines.append(f"output    about {output['bytes'] / 1e9:,.2f} GB, {output['boxes']:,.0f} boxes")
    if output["decoder_cores_per_gpu"] is not None and output["phrase_core_hours"] is not None:
        lines.append(
            f"pictures  {output['decoder_cores_per_gpu']:.2f} CPU cores a GPU decode as fast as the teacher looks"
        )
        lines.append(f"phrases   {output['phrase_core_hours']:,.2f} core-hours, before")
    if args.interrupted_every:
        lines.append(f"machines  last {args.interrupted_every:g} h and are replaced within {args.restart:g} s")
    lines += [
        "",
        f"{'GPUs':>6} {'wall time':>12} {'GPU-hours':>12} {'wasted':>8}" + (f"{'cost':>12}" if args.price else ""),
    ]
    for outcome in outcomes:
        cost = _cost(outcome, args.price)
        lines.append(
            f"{outcome.gpus:>6} {_duration(outcome.wall_hours):>12} {outcome.gpu_hours:>12,.1f} "
            f"{100 * outcome.wasted_share:>6.2f} %" + (f"{cost:>12,.2f}" if cost is not None else "")
        )
    return lines


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
