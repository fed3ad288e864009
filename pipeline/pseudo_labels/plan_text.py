"""A plan of labelling, as JSON and for a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cli import printable
from pipeline.pseudo_labels.planning import Interruptions, Outcome, Rates, Workload
from pipeline.store.endpoint import Endpoint


def describe_plan(
    workload: Workload,
    rates: Rates,
    outcomes: Sequence[Outcome],
    device: str | None,
    price: float | None,
    rounds: int = 1,
    teachers: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the plan for JSON; what follows from rates that were not measured is None.

    ``device`` was measured, None where the speed was given; ``price`` is that of one GPU-hour; ``outcomes`` and the
    output are those of all ``rounds``, whose phrases are found once; ``rates`` are those of all ``teachers`` in turn.
    """
    boxes, size = rates.boxes_per_pair, rates.bytes_per_pair
    asked, prepared, captions = rates.asked_per_s, rates.prepared_per_core_s, rates.captions_per_core_s
    return {
        "input": dataclasses.asdict(workload),
        "rounds": rounds,
        "teachers": list(teachers),
        "device": device,
        "rates": dataclasses.asdict(rates),
        "output": {
            "bytes": None if size is None else size * workload.pairs * rounds,
            "boxes": None if boxes is None else boxes * workload.pairs * rounds,
            "preparing_cores_per_gpu": asked and prepared and asked / prepared,
            "teacher_busy_share": asked and min(1.0, rates.images_per_s / asked),
            "phrase_core_hours": captions and workload.pairs / captions / 3600,
        },
        "runs": [
            dataclasses.asdict(outcome) | {"cost": None if price is None else outcome.gpu_hours * price}
            for outcome in outcomes
        ],
    }


def describe_endpoint(endpoint: Endpoint, requests: int) -> dict[str, Any]:
    """Return for JSON what asking an endpoint comes to, at a request a picture."""
    return {
        "model": endpoint.model,
        "requests": requests,
        "requests_per_minute": endpoint.requests_per_minute,
        "wall_hours_of_one_process": requests / endpoint.requests_per_minute / 60,
        "cost": requests * endpoint.price_per_request if endpoint.price_per_request else None,
    }


def format_endpoints(workload: Workload, endpoints: Sequence[Mapping[str, Any]]) -> str:
    """Lay out for a terminal what ``describe_endpoint`` returned of each."""
    lines = [f"input     {workload.pairs:,} pairs in {workload.shards:,} shards"]
    for each in endpoints:
        cost = "price_per_request in its file says what they cost" if each["cost"] is None else f"{each['cost']:,.2f}"
        hours, rate = each["wall_hours_of_one_process"], each["requests_per_minute"]
        lines += [
            f"endpoint  {printable(each['model'])}: {each['requests']:,} requests, more where answers are unusable",
            f"time      {hours:,.1f} h of one process at {rate:g} requests a minute",
            f"cost      {cost}",
        ]
    return "\n".join(lines)


def format_plan(plan: Mapping[str, Any], sample: int, interruptions: Interruptions | None) -> str:
    """Lay out for a terminal what ``describe_plan`` returned, measured over ``sample`` pairs."""
    given, output = plan["input"], plan["output"]
    known = "as given" if plan["device"] is None else f"measured on {plan['device']} over {sample} pairs"
    lines = [
        f"input     {given['pairs']:,} pairs in {given['shards']:,} shards, {given['bytes'] / 1e9:,.2f} GB",
        f"teacher   {plan['rates']['images_per_s']:,.1f} images/s a GPU, {known}",
    ]
    if len(plan["teachers"]) > 1:
        told = ", ".join(map(printable, plan["teachers"]))
        lines.append(f"teachers  {len(plan['teachers'])} look at every picture in turn, at that speed together: {told}")
    if plan["rounds"] > 1:
        lines.append(f"rounds    {plan['rounds']}: what follows is of all; the trainings between them are not in it")
    if output["bytes"] is not None and output["boxes"] is not None:
        lines.append(f"output    about {output['bytes'] / 1e9:,.2f} GB, {output['boxes']:,.0f} boxes")
    if output["preparing_cores_per_gpu"] is not None:
        cores, busy = output["preparing_cores_per_gpu"], 100 * output["teacher_busy_share"]
        lines.append(
            f"cores     {cores:.2f} a GPU read, decode and resize as fast as the teacher looks, one more drives it"
        )
        lines.append(f"          here the teacher was busy for {busy:.0f} % of the time")
    if output["phrase_core_hours"] is not None:
        lines.append(f"phrases   {output['phrase_core_hours']:,.2f} core-hours, before")
    if interruptions is not None:
        lasting, pause = interruptions.mean_hours, interruptions.restart_s
        lines.append(f"machines  last {lasting:g} h and are replaced within {pause:g} s")
    priced = any(run["cost"] for run in plan["runs"])
    lines.append(
        f"\n{'GPUs':>6} {'wall time':>12} {'GPU-hours':>12} {'wasted':>8}" + (f"{'cost':>12}" if priced else "")
    )
    lines += [
        f"{run['gpus']:>6} {_duration(run['wall_hours']):>12} {run['gpu_hours']:>12,.1f} "
        f"{100 * run['wasted_share']:>6.2f} %" + (f"{run['cost']:>12,.2f}" if priced else "")
        for run in plan["runs"]
    ]
    return "\n".join(lines)


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
