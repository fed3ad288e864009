"""Keep the web pairs that are worth a teacher's time: no doubles, blank pictures, boilerplate or strange languages.

Section curate of params.yaml has the filters; each is optional. Rows that stay keep their order and their bytes, every
other one has a reason. What is measured of pictures, and what models say of pairs, rests in columns beside the records:
thresholds change without looking again. Interrupted, it goes on from what is finished.

glip curate --records data/records/web --out data/curated --measures data/curation --metrics metrics/curate.json

Then phrases and pseudo_label read data/curated; glip repro --curate runs the whole graph so.
"""

from __future__ import annotations

import argparse

from pipeline.cli import add_params, run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", required=True, help="shards of web pairs: a folder or a URL such as s3://…")
    parser.add_argument("--out", required=True, help="place for shards of the pairs that stay")
    parser.add_argument("--measures", required=True, help="place for what is measured, and for verdicts/ with reasons")
    parser.add_argument("--metrics", help="JSON file for counts, shares and quantiles of scores")
    parser.add_argument("--plot", help="CSV file for pairs and shares by outcome")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Measure, judge, write."""
    from pipeline.curation.job import Inputs, curate, metrics_table
    from pipeline.ray_session import ray_session
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_csv, write_json
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place

    settings, out, measures = load_all(args.params), to_place(args.out), to_place(args.measures)
    inputs = Inputs(
        to_place(args.records),
        out,
        measures,
        settings.prepare.max_image_pixels,
        tuple(allowed_roots(settings.image_roots)),
    )
    with alone_in(out), alone_in(measures), ray_session():
        metrics = curate(settings.curate, inputs)
    if args.metrics:
        write_json(to_place(args.metrics), metrics)
    if args.plot:
        write_csv(to_place(args.plot), metrics_table(metrics), end="\n")
    reasons = ", ".join(f"{count} {reason}" for reason, count in metrics["rejects"].items()) or "none rejected"
    return f"curate: {metrics['kept']} of {metrics['rows']} pairs stay ({reasons}) → {args.out}"


run_if_program(__name__)
