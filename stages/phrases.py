"""Find the noun phrases of web captions with spaCy, and count what all captions together speak of.

Interrupted, it keeps its finished shards; run again, it makes only what is missing.

Run: glip phrases --records data/records/web --out data/phrases --metrics metrics/phrases.json \
    --curve plots/phrase_frequency.csv
"""

from __future__ import annotations

import argparse

from pipeline.cli import add_params, run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", required=True, help="shards of web pairs: a folder or a URL such as s3://…")
    parser.add_argument("--out", required=True, help="place for shards of phrases")
    parser.add_argument("--metrics", help="JSON file for counts")
    parser.add_argument("--curve", help="CSV file for how often phrases are said, by rank")
    parser.add_argument("--curve-before", help="with phrases.max_per_phrase: the same of all pairs, before the balance")
    parser.add_argument("--names", help="count how many of these names captions cover: LVIS or COCO JSON")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Parse every caption."""
    from pipeline.phrases.balance import BEFORE
    from pipeline.phrases.job import extract_phrases
    from pipeline.phrases.settings import PhrasesConfig
    from pipeline.phrases.statistics import count_phrases, write_curve
    from pipeline.ray_session import ray_session
    from pipeline.settings import load
    from pipeline.store.atomic import write_json
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place

    config = load(args.params, PhrasesConfig)
    out = to_place(args.out)
    with alone_in(out), ray_session():
        metrics = extract_phrases(config, to_place(args.records), out)
    stats = count_phrases(out, to_place(args.names) if args.names else None)
    metrics |= {"unique_phrases": stats.unique, "phrases_said_once": stats.said_once}
    if args.names:
        metrics |= {"names": stats.names, "names_covered": stats.names_covered}
    if args.curve:
        write_curve(stats, to_place(args.curve))
    if args.curve_before:
        before = count_phrases(out / BEFORE) if config.max_per_phrase else stats
        write_curve(before, to_place(args.curve_before))
    if args.metrics:
        write_json(to_place(args.metrics), metrics)
    counts = f"{metrics['rows']} captions, {metrics['phrases']} phrases, {metrics['unique_phrases']} unique"
    return f"phrases: {counts}, {sum(metrics['rejects'].values())} rejected → {args.out}"


run_if_program(__name__)
