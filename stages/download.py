"""Download the pictures of lists of URLs into tar shards, as img2dataset lays them out.

Every URL ends as a picture or a reason. Hosts are asked politely: few requests at a time, pauses where they want them.
Sites that opt out (robots.txt, X-Robots-Tag: noai, noimageai) are left alone, and so are addresses that are not public.
Interrupted, it keeps its finished shards; run again, it makes only what is missing.

glip download --out data/downloads --metrics metrics/download.json     what download.lists of params.yaml names
glip download --out s3://YOUR-BUCKET/web --hosts hosts.csv             into a store; URLs by host and outcome
glip download --out data/downloads --retry-failed                      shards again whose failures may have passed

Then prepare reads them: prepare.web: [{reader: webdataset, shards: "data/downloads/NAME/*.tar", name: NAME}]
"""

from __future__ import annotations

import argparse

from pipeline.cli import add_params, run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--out", required=True, help="folder or URL; each list gets a folder of its name below")
    parser.add_argument("--metrics", help="JSON file for counts by reason")
    parser.add_argument("--hosts", help="CSV file for counts by host and outcome, the busiest host first")
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="make shards anew in which URLs failed for reasons that may pass: timeouts, connections, busy servers",
    )
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Download all lists that params.yaml names."""
    from pipeline.download.job import download
    from pipeline.ray_session import ray_session
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_csv, write_json
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place

    settings, out = load_all(args.params), to_place(args.out)
    with alone_in(out), ray_session():
        metrics, by_host = download(
            settings.download, settings.prepare, settings.seed, out, settings.image_roots, args.retry_failed
        )
    if args.hosts:
        totals: dict[str, int] = {}
        for (host, _), count in by_host.items():
            totals[host] = totals.get(host, 0) + count
        rows = sorted(((host, outcome, n) for (host, outcome), n in by_host.items()), key=lambda row: (row[0], row[1]))
        rows.sort(key=lambda row: -totals[row[0]])
        write_csv(to_place(args.hosts), [("host", "outcome", "urls"), *rows], end="\n")
    if args.metrics:
        write_json(to_place(args.metrics), metrics)
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in sorted(metrics["reasons"].items(), key=lambda r: -r[1])
    )
    return f"download: {metrics['urls']} URLs, {metrics['pictures']} pictures" + (
        f" ({reasons}) → {args.out}" if reasons else f" → {args.out}"
    )


run_if_program(__name__)
