"""Look at Parquet shards of pseudo-labels or human grounding data, on disk or at a URL such as s3://….

For LABELS below read a folder, such as data/pseudo_labels/round_2:

glip inspect LABELS                              figures: rows, boxes, scores, phrases, reject reasons
glip inspect LABELS --sample 5 --phrase dog      some pairs, at random; more filters below
glip inspect LABELS --html labels.html           a page to browse, search and share
glip inspect LABELS --row KEY --save out.png     one pair, drawn
glip inspect LABELS --against LATER              what another version, such as the next round, has changed
glip inspect LABELS --sql "SELECT phrase, count(*) FROM boxes GROUP BY 1 ORDER BY 2 DESC LIMIT 9"
glip inspect LABELS --export coco --out DIR      also yolo, voc, odvg, webdataset, fiftyone, cvat, label_studio
glip inspect LABELS --export coco --names "forklift, pallet" --out DIR    your own classes in place of phrases
glip inspect LABELS --keys | less                key and caption of every row

What is broken, such as a box that is no box, is counted in the figures and left out of all else but --sql and --keys.

For notebooks: from pipeline.inspection.reading import read_pseudo_labels
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import at_least, printable, progress, run_if_program, score
from pipeline.errors import ConfigError, ShardError
from pipeline.plain_json import to_json

if TYPE_CHECKING:
    from pipeline.inspection.search import Filter, Found
    from pipeline.store.storage import Place

logger = logging.getLogger(__name__)

MAX_PIXELS = 1_000_000_000
"""Larger pictures are not drawn."""
ON_A_PAGE = 2000
"""Pairs of a page unless --limit says otherwise."""
LINES = 50
"""Of an answer to --sql unless --limit says otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("place", help="folder of part-*.parquet shards, one of them, or a URL")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--row", metavar="KEY", help="show one pair instead of the figures")
    action.add_argument("--sample", type=at_least(0), metavar="N", help="show N pairs, at random")
    action.add_argument("--keys", action="store_true", help="list key and caption of every row")
    action.add_argument("--html", type=Path, metavar="FILE", help="write a page of pairs that needs no network")
    action.add_argument("--sql", metavar="QUERY", help="ask by SQL; tables are labels, phrases and boxes")
    parser.add_argument("--sql-unsafe", action="store_true", help="let --sql read and write files, and load extensions")
    action.add_argument(
        "--export",
        choices=("coco", "cvat", "fiftyone", "label_studio", "odvg", "voc", "webdataset", "yolo"),
        help="write the labels in another format, into --out",
    )
    add_filters(parser.add_argument_group("which pairs, for all but the figures, --row and --sql"), "at most so many")
    parser.add_argument("--against", metavar="PLACE", help="compare with another version of the labels, the later one")
    parser.add_argument("--save", type=Path, metavar="PICTURE", help="with --row: draw it into this file (.png, .jpg)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --export: a new folder")
    parser.add_argument(
        "--val-share",
        type=score,
        default=0.0,
        metavar="S",
        help="with --export coco, voc or yolo: write this share of the pictures apart (default: none)",
    )
    parser.add_argument(
        "--names",
        metavar="NAMES",
        help="with --export coco, voc, yolo or fiftyone: classes that phrases are mapped to by their last words, names "
        "divided by commas or a file as for glip label (class: [further phrases], phrase: null for none); else a file "
        "of names, to count how many of them phrases cover",
    )
    parser.add_argument(
        "--top", type=at_least(0), default=20, help="most frequent phrases to show (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print figures, or pairs as lines, as JSON")


def add_filters(group: argparse._ArgumentGroup, limit: str) -> None:
    """Declare which rows a command takes, and where their pictures may be; ``limit`` says what --limit does."""
    group.add_argument("--phrase", metavar="TEXT", help="with a phrase that holds this, whatever the case")
    group.add_argument("--min-score", type=score, metavar="S", help="that has a box of at least this score")
    group.add_argument("--max-score", type=score, metavar="S", help="that has a box of at most this score")
    group.add_argument("--reason", metavar="NAME", help="where the pair or a phrase has no box for this reason")
    group.add_argument("--source", metavar="NAME", help="of this source")
    group.add_argument("--limit", type=at_least(1), metavar="N", help=limit)
    group.add_argument("--seed", type=int, default=0, help="of what is drawn at random (default: %(default)s)")
    group.add_argument(
        "--image-root",
        action="append",
        default=[],
        metavar="PLACE",
        help="folder or URL whose pictures the shards may name, beside their own folder; may be repeated",
    )


def filter_of(args: argparse.Namespace) -> Filter:
    """Return what the arguments of ``add_filters`` ask for."""
    from pipeline.inspection.search import Filter

    return Filter(args.phrase, args.min_score, args.max_score, args.reason, args.source)


def roots_of(args: argparse.Namespace, place: Place) -> list[str]:
    """Return where pictures of the shards may be; the project's settings say nothing of shards from anywhere."""
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.images import image_roots

    return image_roots(place, allowed_roots(args.image_root))


def run(args: argparse.Namespace) -> None:
    """Print or write what was asked for."""
    from pipeline.inspection.defects import format_defects
    from pipeline.inspection.search import Filter, list_keys
    from pipeline.inspection.versions import compare, format_comparison
    from pipeline.store.storage import to_place

    if args.save and not args.row:
        raise ConfigError("--save draws one pair; name it with --row KEY")
    if args.names and args.export in ("cvat", "label_studio", "odvg", "webdataset"):
        raise ConfigError(f"--names: {args.export} has phrases and no classes; --export coco, voc or yolo has them")
    if bool(args.export) != bool(args.out):
        raise ConfigError("--export FORMAT and --out DIR go together")
    place, against = to_place(args.place), to_place(args.against) if args.against else None
    wanted = filter_of(args)
    defects: Counter[str] = Counter()
    if args.row:
        _show_row(args, place, against, defects)
    elif args.sql:
        _answer(args, place)
    elif args.html:
        _write_page(args, place, wanted, defects)
    elif args.export:
        _export(args, place, wanted, defects)
    elif args.keys:
        for key, caption in itertools.islice(list_keys(place, wanted), args.limit):
            print(f"{printable(key, kept='')}\t{printable(caption, kept='')}")
    elif args.sample is not None or wanted != Filter():
        _show_sample(args, place, wanted, defects)
    elif against:
        found = compare(place, against, args.top)
        defects = found.defects
        titles = (args.place, args.against)
        print(to_json(found.to_dict(), indent=2) if args.json else format_comparison(found, titles))
    else:
        _show_figures(args, place)
    if defects:
        logger.warning("inspect: broken and left out: %s; glip inspect PLACE explains", format_defects(defects))


def _show_figures(args: argparse.Namespace, place: Place) -> None:
    from pipeline.inspection.figures import collect_statistics, format_statistics
    from pipeline.phrases.statistics import count_phrases

    stats = collect_statistics(place, args.top)
    values = stats.to_dict()
    lines = [format_statistics(stats, args.place)]
    if args.names:
        names = count_phrases(place, Path(args.names))
        values |= {"names": names.names, "names_covered": names.names_covered}
        lines += ["", f"{names.names_covered:,} of {names.names:,} names in {args.names} are covered by phrases"]
    print(to_json(values, indent=2) if args.json else "\n".join(lines))


def _show_row(args: argparse.Namespace, place: Place, against: Place | None, defects: Counter[str]) -> None:
    from glip_model.images import ImageError
    from glip_model.whole_files import save_picture
    from pipeline.inspection.search import find_record, format_record
    from pipeline.inspection.versions import draw_both
    from pipeline.store.drawing import draw_phrases
    from pipeline.store.images import load_image

    record = find_record(place, args.row, defects)
    other = find_record(against, args.row, defects) if against else None
    print(format_record(record))
    if other is not None:
        print(f"\n{args.against}:\n{format_record(other)}")
    if args.save is None:
        return
    try:
        image = load_image(record.image, MAX_PIXELS, roots_of(args, place))
    except ImageError as error:
        raise ShardError(f"{args.place}: row {args.row}: {error.reason}: {error}") from error
    picture = draw_both(image, record, other) if other else draw_phrases(image, record.phrases, record.caption)
    try:
        save_picture(picture, args.save)
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"--save {args.save}: {error}; name a file ending in .png or .jpg where you may write"
        ) from error
    print(f"drawn → {args.save}")


def _show_sample(args: argparse.Namespace, place: Place, wanted: Filter, defects: Counter[str]) -> None:
    from pipeline.inspection.reading import read_records
    from pipeline.inspection.search import format_record, sample_rows

    count = args.sample if args.sample is not None else (args.limit or 10)
    found = sample_rows(place, wanted, count, args.seed)
    if not found:
        print("no pair is like that")
    for number, record in enumerate(read_records(found, defects)):
        if args.json:
            boxes = [[phrase.text, [[*box.xyxy, box.score] for box in phrase.boxes]] for phrase in record.phrases]
            print(to_json({"key": record.key, "caption": record.caption, "phrases": boxes}))
        else:
            print(("\n" if number else "") + format_record(record))


def _answer(args: argparse.Namespace, place: Place) -> None:
    from pipeline.inspection.queries import format_table, query

    table = query(place, args.sql, args.sql_unsafe)
    if args.json:
        for row in table.to_pylist():
            print(to_json(row))
    elif sys.stdout.isatty() or args.limit:
        print(format_table(table, args.limit or LINES))
    else:
        print(format_table(table, max(len(table), 1)))


def _write_page(args: argparse.Namespace, place: Place, wanted: Filter, defects: Counter[str]) -> None:
    from pipeline.inspection.gallery import Page, write_gallery
    from pipeline.inspection.search import draw_rows

    found, total = draw_rows(place, wanted, args.limit or ON_A_PAGE, args.seed)
    page = Page(args.place, f"{len(found):,} of {total:,} rows, drawn at random" if len(found) < total else "")
    with progress(len(found), "page", "pairs") as bar:
        count = write_gallery(found, args.html, page, MAX_PIXELS, bar.update, roots_of(args, place), defects)
    print(f"{count:,} pairs, {args.html.stat().st_size / 1e6:.1f} MB → {args.html}")


def _export(args: argparse.Namespace, place: Place, wanted: Filter, defects: Counter[str]) -> None:
    from pipeline.inspection.exports import export
    from pipeline.inspection.reading import labelled_names
    from pipeline.inspection.search import find_rows
    from pipeline.store.ontology import Ontology

    ontology = Ontology.read(args.names) if args.names else None
    found: Iterator[Found] = itertools.islice(find_rows(place, wanted), args.limit)
    with progress(None, "export", "pairs") as bar:
        count = export(
            args.export,
            found,
            args.out,
            bar.update,
            roots_of(args, place),
            defects,
            args.val_share,
            labelled_names(place),
            ontology,
        )
    print(f"{count:,} pairs with boxes as {args.export} → {args.out}")


run_if_program(__name__)
