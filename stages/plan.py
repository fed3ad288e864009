"""Say what pseudo-labelling will take before anything is paid for: shards, GPU-hours, wall time, size and cost.

The teacher is measured on a sample of the input on this machine, so run it on one of the machines that are to do the
work; or name a speed. The whole is then played through for several numbers of GPUs.

glip plan                                             measure, for the input of params.yaml and dvc.yaml
glip plan --pairs 24e6 --gpus 64 256 --price 2.5      the same pictures, as if there were 24 million
glip plan --images-per-s 40 --interrupted-every 6     a speed that is known, on spot machines
glip plan --teacher A --teacher B                     each of them looks at every picture
glip plan --rounds 3                                  three rounds of self-training: each labels all pairs anew

What comes before labelling is planned by the metrics of a sample, of this machine or one like those to come:

glip plan --download metrics/download.json --pairs 12.4e6 --machines 1 8 --price-per-gb 0.09
glip plan --curate metrics/curate.json --pairs 9e6
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import add_params, add_teachers, at_least, run_if_program
from pipeline.errors import ConfigError
from pipeline.plain_json import to_json

if TYPE_CHECKING:
    from pipeline.pseudo_labels.planning import Rates, Workload


TEACHER = "models/teacher"
"""Where none is named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("--records", default="data/records/web", help="shards of web pairs (default: %(default)s)")
    add_teachers(parser, TEACHER)
    parser.add_argument("--pairs", type=float, help="plan for so many pairs like these, for example 24e6")
    parser.add_argument("--rows-per-shard", type=int, help="with --pairs: in shards of so many rows")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 256, 512], help="(default: %(default)s)")
    parser.add_argument("--price", type=float, help="of one GPU-hour, in any currency")
    parser.add_argument(
        "--images-per-s", type=float, nargs="+", help="of one GPU, of each teacher or of all alike; nothing is measured"
    )
    parser.add_argument("--sample", type=int, default=256, help="rows to measure by (default: %(default)s)")
    parser.add_argument("--interrupted-every", type=float, metavar="HOURS", help="how long a spot machine lasts")
    parser.add_argument("--restart", type=float, default=300, metavar="S", help="until it is replaced (default: 300)")
    parser.add_argument(
        "--rounds", type=at_least(1), default=1, help="that label all pairs anew (default: %(default)s)"
    )
    parser.add_argument(
        "--download", metavar="JSON", help="plan a download of --pairs URLs, by metrics of glip download"
    )
    parser.add_argument("--curate", metavar="JSON", help="plan curation of --pairs pairs, by metrics of glip curate")
    parser.add_argument("--machines", type=at_least(1), nargs="+", default=[1, 8, 64], help="for these two (1 8 64)")
    parser.add_argument("--price-per-gb", type=float, help="of what is read out of a store, in any currency")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_params(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, play through, print."""
    if args.download or args.curate:
        print(_of_collection(args))
        return
    from pipeline.pseudo_labels.ensemble import short_names
    from pipeline.pseudo_labels.plan_text import describe_endpoint, describe_plan, format_endpoints, format_plan
    from pipeline.pseudo_labels.planning import Interruptions, simulate, survey
    from pipeline.store.endpoint import Endpoint, is_endpoint
    from pipeline.store.storage import to_place

    workload = _scaled(survey(to_place(args.records)), args)
    teachers = args.teacher or [TEACHER]
    models = [name for name in teachers if not is_endpoint(name)]
    endpoints = [Endpoint.read(Path(name)) for name in teachers if is_endpoint(name)]
    asked = [describe_endpoint(endpoint, workload.pairs * args.rounds) for endpoint in endpoints]
    names = short_names(teachers)
    if not models:
        plan = {"input": dataclasses.asdict(workload), "teachers": names, "endpoints": asked}
        print(to_json(plan, indent=2) if args.json else format_endpoints(workload, asked))
        return
    rates = _given(args.images_per_s, len(models)) if args.images_per_s else _measure(args, models)
    rates = rates.beside([endpoint.requests_per_minute / 60 for endpoint in endpoints])
    spot = Interruptions(args.interrupted_every, args.restart) if args.interrupted_every else None
    outcomes = [simulate(workload, rates, gpus, spot).times(args.rounds) for gpus in args.gpus]
    device = None if args.images_per_s else _device()
    plan = describe_plan(workload, rates, outcomes, device, args.price, args.rounds, names) | {"endpoints": asked}
    text = format_plan(plan, args.sample, spot) + (f"\n\n{format_endpoints(workload, asked)}" if asked else "")
    print(to_json(plan, indent=2) if args.json else text)


def _given(speeds: list[float], num_teachers: int) -> Rates:
    """Return the rates of teachers whose speeds are known, by one number for all or one for each."""
    from pipeline.pseudo_labels.planning import Rates, one_after_another

    if len(speeds) not in (1, num_teachers):
        raise ConfigError(
            f"--images-per-s has {len(speeds)} numbers for {num_teachers} teachers; expected one for all, or one for "
            "each that is no endpoint"
        )
    return Rates(one_after_another(speeds * num_teachers if len(speeds) == 1 else speeds))


def _of_collection(args: argparse.Namespace) -> str:
    """Say what download and curation will take; nothing is measured for that."""
    from pipeline.curation.planning import NEEDED, format_curation, plan_curation
    from pipeline.download.planning import format_download, plan_download, read_metrics
    from pipeline.settings import load_all
    from pipeline.store.storage import to_place

    if args.pairs is not None and not args.pairs >= 1:
        raise ConfigError(f"--pairs is {args.pairs}; expected at least 1")
    pairs = None if args.pairs is None else int(args.pairs)
    plans, texts = {}, []
    if args.download:
        pause_s = load_all(args.params).download.host_pause_s
        plans["download"] = plan_download(to_place(args.download), pairs, args.machines, pause_s)
        texts.append(format_download(plans["download"], args.price_per_gb))
    if args.curate:
        plans["curate"] = plan_curation(read_metrics(to_place(args.curate), NEEDED), pairs, args.machines)
        texts.append(format_curation(plans["curate"]))
    return to_json(plans, indent=2) if args.json else "\n".join(texts)


def _scaled(found: Workload, args: argparse.Namespace) -> Workload:
    """Return as much as was asked for, of shards and pictures like those found."""
    if not found.pairs:
        raise ConfigError(f"{args.records}: there are no pairs to plan for")
    if args.pairs is None:
        return found
    if not args.pairs >= 1:
        raise ConfigError(f"--pairs is {args.pairs}; expected at least 1")
    pairs = int(args.pairs)
    rows = args.rows_per_shard or math.ceil(found.pairs / found.shards)
    return dataclasses.replace(
        found, pairs=pairs, shards=math.ceil(pairs / rows), bytes=round(found.bytes / found.pairs * pairs)
    )


def _measure(args: argparse.Namespace, teachers: list[str]) -> Rates:
    from pipeline.pseudo_labels.ensemble import open_teachers
    from pipeline.pseudo_labels.planning import measure
    from pipeline.settings import load_all
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.images import image_roots
    from pipeline.store.storage import to_place

    settings = load_all(args.params)
    place = to_place(args.records)
    return measure(
        place,
        open_teachers(teachers, settings.pseudo_label),
        settings.pseudo_label,
        settings.phrases,
        settings.prepare.max_image_pixels,
        args.sample,
        os.cpu_count() or 1,
        image_roots(place, allowed_roots(settings.image_roots)),
    )


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"


run_if_program(__name__)
