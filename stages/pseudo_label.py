"""Let the teacher ground the noun phrases of web captions; write self-describing Parquet shards.

Interrupted, it keeps its finished shards; run again, it makes only what is missing.

Several teachers are asked as one (--teacher A --teacher B), and boxes say which of them agree.
Phrases may be mapped to classes of your own (--names, pseudo_label.names and other_phrases).

Run: glip pseudo_label --records data/records/web --phrases data/phrases --teacher models/teacher \
    --out data/pseudo_labels/round_1 --metrics metrics/labels/round_1.json
"""

from __future__ import annotations

import argparse

from pipeline.cli import add_params, add_teachers, run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", required=True, help="shards of web pairs: a folder or a URL such as s3://…")
    parser.add_argument("--phrases", required=True, help="shards of their phrases")
    parser.add_argument("--human", help="records of people, whose words pseudo_label.skip_known knows")
    add_teachers(parser)
    parser.add_argument(
        "--names",
        help="your own classes, which phrases are mapped to by their last words: names divided by commas, or a file as "
        "for glip label (default: pseudo_label.names)",
    )
    parser.add_argument("--out", required=True, help="place for shards of pseudo-labels")
    parser.add_argument(
        "--round", metavar="NAME", help="key of rounds in params.yaml, whose settings of pseudo_label apply"
    )
    parser.add_argument("--metrics", help="JSON file for counts")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Label every shard that is not finished."""
    from pipeline.pseudo_labels.job import Inputs, pseudo_label
    from pipeline.pseudo_labels.settings import of_round, with_names
    from pipeline.ray_session import ray_session
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.known_words import known_words
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place

    settings = load_all(args.params)
    config = with_names(of_round(settings.pseudo_label, settings.rounds, args.round), args.names)
    allowed = allowed_roots(settings.image_roots)
    known = known_words(to_place(args.human), config.skip_known) if args.human and config.skip_known else frozenset()
    places = to_place(args.records), to_place(args.phrases), tuple(args.teacher), to_place(args.out)
    inputs = Inputs(*places, allowed, known=known)
    with alone_in(inputs.out), ray_session():
        metrics = pseudo_label(inputs, config, settings.prepare.max_image_pixels)
    if args.metrics:
        write_json(to_place(args.metrics), metrics)
    rows = f"{metrics['shards']} shards, {metrics['rows_labelled']} of {metrics['rows']} rows labelled"
    found = f"{metrics['phrases']} phrases, {metrics['boxes']} boxes, {metrics['images_per_s'] or 'no'} images/s"
    note = "; without --human no word is known" if config.skip_known and not args.human else ""
    return f"pseudo_label: {rows}, {found}{note} → {args.out}"


run_if_program(__name__)
