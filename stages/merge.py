"""Put what people decided into shards: reviewed rows have people's boxes, with score 1, and say that they are reviewed.

glip merge data/pseudo_labels/round_1 --reviews reviews/ --out data/corrected/round_1
glip merge labels/ --reviews reviews/ decisions.jsonl --out corrected/ --metrics metrics/merge.json

What is rejected is gone; a phrase that is nowhere in its picture says so, and training takes it as a negative. Rows
that have changed since they were reviewed stay as they are, and are told. Of several people's decisions about a row the
latest counts. Shards of schema version 1 become version 2. Run again, it writes the shards anew whose rows or decisions
have changed.

Training takes reviewed rows apart where train.runs.NAME.mixture gives the source "reviewed" weight.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter

from pipeline.cli import progress, run_if_program

logger = logging.getLogger(__name__)
KEYS_SHOWN = 5
"""Of rows that have changed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("labels", help="folder or URL of part-*.parquet shards that were reviewed")
    parser.add_argument(
        "--reviews", nargs="+", required=True, metavar="PLACE", help="stores of decisions, or files of them"
    )
    parser.add_argument("--out", required=True, help="folder or URL for the shards")
    parser.add_argument("--metrics", help="JSON file for what became of the decisions")


def run(args: argparse.Namespace) -> str:
    """Merge."""
    from pipeline.inspection.defects import format_defects
    from pipeline.inspection.reading import label_shards
    from pipeline.review.decisions import settle
    from pipeline.review.merging import merge
    from pipeline.review.store import read_decisions
    from pipeline.store.atomic import write_json
    from pipeline.store.storage import to_place

    broken, defects = Counter[str](), Counter[str]()
    decisions = read_decisions(map(to_place, args.reviews), broken)
    labels, out = to_place(args.labels), to_place(args.out)
    with progress(sum(1 for _ in label_shards(labels)), "merge", "shards") as bar:
        found = merge(labels, settle(decisions), out, bar.update, defects)
    if args.metrics:
        write_json(to_place(args.metrics), found.to_dict() | {"lines_broken": broken.total()})
    if found.changed:
        named = ", ".join(found.changed[:KEYS_SHOWN]) + (" …" if len(found.changed) > KEYS_SHOWN else "")
        logger.warning(
            "merge: %d rows have changed since they were reviewed, and stay as they are: %s; review them again",
            len(found.changed),
            named,
        )
    for number, what in (
        (broken.total(), "lines are no decisions"),
        (found.unknown, "decisions speak of rows that are not here"),
        (found.outside, "decisions have places outside of their picture or caption, and are left out"),
        (found.disputed, "rows were judged differently by several people; the latest decision counts"),
    ):
        if number:
            logger.warning("merge: %d %s", number, what)
    if defects:
        logger.warning("merge: broken and left out: %s; glip inspect PLACE explains", format_defects(defects))
    boxes = ", ".join(f"{found.boxes[name]:,} {name}" for name in ("accepted", "moved", "drawn", "rejected"))
    return (
        f"merge: {found.reviewed:,} of {found.rows:,} rows reviewed; boxes: {boxes}; {found.absent:,} phrases not "
        f"there → {args.out}"
    )


run_if_program(__name__)
