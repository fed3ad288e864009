"""Turn raw data sets into records: human data, web pairs, dev and test.

Run: glip prepare --out data/records --metrics metrics/prepare.json
"""

from __future__ import annotations

import argparse
from collections import Counter

from pipeline.cli import add_params, run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--out", required=True, help="folder or URL for human/, web/, dev/ and test/")
    parser.add_argument("--metrics", help="JSON file for counts and reject reasons")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Prepare all sources that params.yaml names."""
    from pipeline.prepare.job import prepare
    from pipeline.ray_session import ray_session
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place

    settings, out = load_all(args.params), to_place(args.out)
    with alone_in(out), ray_session():
        metrics = prepare(settings.prepare, settings.seed, out, image_roots=settings.image_roots)
    if args.metrics:
        write_json(to_place(args.metrics), metrics)
    rows, boxes = (sum(folder[name] for folder in metrics.values()) for name in ("rows", "boxes"))
    rejects, dropped, converted = (
        sum((Counter(folder.get(name, {})) for folder in metrics.values()), Counter[str]())
        for name in ("rejects", "dropped_boxes", "converted")
    )
    held_out = rejects.pop("held_out", 0)
    figures = f"{rows} rows, {_by_reason(rejects, 'rejected')}, {boxes} boxes, {_by_reason(dropped, 'dropped')}"
    if converted:
        figures += f", {_by_reason(converted, 'converted')}"
    if held_out:
        figures += f", {held_out} held out because models are judged by their pictures"
    return f"prepare: {figures} → {args.out}"


def _by_reason(counts: Counter[str], what: str) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return f"{counts.total()} {what}" + (f" ({reasons})" if reasons else "")


run_if_program(__name__)
