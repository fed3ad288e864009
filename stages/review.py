"""Judge labels in a browser: accept, reject, move, resize, draw, rename, by mouse, keys or touch.

glip review data/pseudo_labels/round_1 --store reviews/                    500 rows, drawn at random
glip review labels/ --store s3://bucket/reviews --order uncertain --limit 300
glip review labels/ --store reviews/ --phrase dog --max-score 0.5
glip review labels/ --store reviews/ --order uncertain --against other_teacher/
glip review data/records/human/detection --store reviews_human/            what people drew, likewise

Several people may review at once, at one server or at several with one store. What the page shows as saved is in the
store; decisions that a server did not take stay in the browser and are sent again. glip merge puts them into shards.

Other people's editors: glip inspect LABELS --export label_studio --out ls/ (or cvat, coco, odvg, fiftyone), and back:

glip review LABELS --store reviews/ --take ls/export.json --format label_studio --reviewer ann

takes up what was changed there as decisions, and serves nothing. Rows that nobody changed are left open, unless
--take-all says that they were looked at.

The server is for this machine alone. With --host others reach it who know the token in GLIP_REVIEW_TOKEN; what goes
over the network is not encrypted: prefer ssh -L 8000:127.0.0.1:8000.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import at_least, run_if_program
from pipeline.errors import ConfigError
from stages.inspect import MAX_PIXELS, add_filters, filter_of, roots_of

if TYPE_CHECKING:
    from pipeline.inspection.search import Found
    from pipeline.store.storage import Place

logger = logging.getLogger(__name__)

ROWS = 500
"""To review unless --limit says otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("place", help="folder of part-*.parquet shards, one of them, or a URL")
    parser.add_argument(
        "--store", required=True, help="folder or URL for decisions; those that are there are gone on with"
    )
    parser.add_argument(
        "--order",
        choices=("random", "stored", "uncertain"),
        default="random",
        help="uncertain: what is worth a person's time first (default: %(default)s)",
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="PLACE",
        help="with --order uncertain: labels of the same rows by another teacher or student; may be repeated",
    )
    add_filters(parser.add_argument_group("which rows"), f"rows to review (default: {ROWS})")
    parser.add_argument("--reviewer", metavar="NAME", help="who reviews, unless another name is given on the page")
    parser.add_argument("--take", metavar="FILE", help="what an editor exported (of fiftyone the name of a dataset)")
    parser.add_argument("--format", choices=("coco", "cvat", "fiftyone", "label_studio", "odvg"), help="of --take")
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="keys.csv of the export (default: the one beside the --take file)"
    )
    parser.add_argument("--take-all", action="store_true", help="with --take: rows that nobody changed are accepted")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=at_least(0), default=8000, help="0 takes a free one (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Serve the page until the command is interrupted, or take up what an editor exported."""
    if bool(args.take) != bool(args.format):
        raise ConfigError("--take FILE and --format NAME go together")
    if args.take:
        _take(args)
    else:
        _serve(args)


def _serve(args: argparse.Namespace) -> None:
    from pipeline.inspection.defects import format_defects
    from pipeline.inspection.gallery import Page
    from pipeline.review.server import TOKEN_VARIABLE, check_token, is_loopback, make_app, serve
    from pipeline.review.session import ReviewSession
    from pipeline.review.store import DecisionStore, read_decisions
    from pipeline.store.storage import is_folder, to_place

    token = check_token(args.host, os.environ.get(TOKEN_VARIABLE))
    place, store = to_place(args.place), to_place(args.store)
    found, total = _rows(args, place)
    defects, broken = Counter[str](), Counter[str]()
    decided = read_decisions([store], broken) if is_folder(store) else []
    session = ReviewSession(found, DecisionStore(store), decided, MAX_PIXELS, roots_of(args, place), defects)
    if defects:
        logger.warning("review: broken and left out: %s; glip inspect PLACE explains", format_defects(defects))
    if broken:
        logger.warning(
            "review: %d lines in %s are no decisions: %s", broken.total(), store, broken.most_common(1)[0][0]
        )
    if session.strangers:
        logger.info("review: %d decisions in %s speak of other rows, or of rows as they were", session.strangers, store)
    how = {"random": "drawn at random", "stored": "the first ones", "uncertain": "the most uncertain ones"}[args.order]
    page = Page(
        title=args.place,
        note=f"{len(found):,} of {total:,} rows, {how}" if len(found) < total else "",
        order="most uncertain first" if args.order == "uncertain" else "as stored",
        reviewer=args.reviewer or (getpass.getuser() if is_loopback(args.host) else ""),
        is_served=True,
    )
    if not is_loopback(args.host):
        logger.warning("review: others can reach this server who know the token; what is sent is not encrypted")

    def tell(address: str) -> None:
        hint = "?token=… (the value of GLIP_REVIEW_TOKEN)" if token else ""
        print(
            f"{len(session.pairs):,} rows to review → {address}{hint}  (Ctrl-C ends; decisions rest in {store})",
            flush=True,
        )

    serve(make_app(session, page, token), args.host, args.port, tell)


def _take(args: argparse.Namespace) -> None:
    """Put into the store what people changed in another editor."""
    from datetime import UTC, datetime

    from pipeline.inspection.reading import read_records
    from pipeline.inspection.search import find_rows
    from pipeline.review.editors import read_sheets
    from pipeline.review.store import DecisionStore, read_decisions
    from pipeline.review.taking import to_decisions
    from pipeline.store.storage import is_folder, to_place

    place, store, problems = to_place(args.place), to_place(args.store), Counter[str]()
    sheets = read_sheets(args.format, args.take, args.keys, problems)
    before = {each.id for each in read_decisions([store], Counter())} if is_folder(store) else set()
    records = read_records(find_rows(place, filter_of(args)), Counter())
    reviewer, now = args.reviewer or getpass.getuser(), datetime.now(UTC)
    made = list(to_decisions(records, sheets, reviewer, now, args.take_all, problems))
    new = [decision for decision in made if decision.id not in before]
    DecisionStore(store).add(new)
    for what, count in problems.items():
        logger.warning("review: %d %s", count, what)
    known = f", {len(made) - len(new):,} that were there already" if len(new) < len(made) else ""
    print(f"{len(sheets):,} pictures read, {len(new):,} decisions taken{known} → {args.store}")


def _rows(args: argparse.Namespace, place: Place) -> tuple[list[Found], int]:
    """Return the rows to review, in their order, and among how many they were chosen."""
    from pipeline.inspection.search import draw_rows, find_rows
    from pipeline.review.ranking import rank_rows
    from pipeline.store.storage import to_place

    wanted, count = filter_of(args), args.limit or ROWS
    if args.order == "uncertain":
        return rank_rows(place, wanted, count, [to_place(other) for other in args.against])
    if args.order == "random":
        return draw_rows(place, wanted, count, args.seed)
    found = list(find_rows(place, wanted))
    return found[:count], len(found)


run_if_program(__name__)
