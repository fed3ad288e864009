"""Write down what a folder of shards holds, for DVC to track in place of the shards: names, rows, bytes and hashes.

The ends of the shards are read, and no picture. Two folders with equal shards have equal manifests.

Run: glip manifest --shards s3://bucket/records/web --out manifests/web.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--shards", required=True, help="folder or URL of Parquet shards")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")


def run(args: argparse.Namespace) -> str:
    """Write the manifest."""
    from pipeline.store.atomic import write_json
    from pipeline.store.manifest import describe_shards
    from pipeline.store.storage import to_place

    shards = describe_shards(to_place(args.shards))
    write_json(args.out, {"shards": shards})
    return f"manifest: {len(shards)} shards, {sum(shard['rows'] for shard in shards)} rows → {args.out}"


run_if_program(__name__)
