"""Look at Parquet shards of pseudo-labels or human grounding data.

glip inspect data/pseudo_labels                              figures: rows, boxes, scores, phrases, reject reasons
glip inspect data/pseudo_labels --keys | less                key and caption of every row
glip inspect data/pseudo_labels --row KEY --save out.png     one pair, drawn
glip inspect data/pseudo_labels --json                       the figures for a program
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from glip_model.images import ImageError
from pipeline.cli import run_stage
from pipeline.data.drawing import draw_phrases
from pipeline.data.images import load_image
from pipeline.errors import ConfigError, ShardError
from pipeline.pseudo_labels.inspection import (
    collect_statistics,
    find_record,
    format_record,
    format_statistics,
    list_keys,
)

MAX_PIXELS = 1_000_000_000
"""Larger pictures are not drawn."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("folder", type=Path, help="folder of part-*.parquet shards, or one of them")
    parser.add_argument("--row", metavar="KEY", help="show one pair instead of the figures")
    parser.add_argument("--save", type=Path, metavar="PICTURE", help="with --row: draw it into this file (.png, .jpg)")
    parser.add_argument("--keys", action="store_true", help="list key and caption of every row")
    parser.add_argument("--top", type=int, default=20, help="most frequent phrases to show (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> None:
    """Print what was asked for."""
    if args.save and not args.row:
        raise ConfigError("--save draws one pair; name it with --row KEY")
    if args.row:
        _show_row(args.folder, args.row, args.save)
    elif args.keys:
        for key, caption in list_keys(args.folder):
            print(f"{key}\t{caption}")
    else:
        stats = collect_statistics(args.folder)
        if args.json:
            print(json.dumps(stats.to_dict(args.top), ensure_ascii=False, indent=2))
        else:
            print(format_statistics(stats, str(args.folder), args.top))


def _show_row(folder: Path, key: str, save: Path | None) -> None:
    record = find_record(folder, key)
    print(format_record(record))
    if save is None:
        return
    try:
        picture = draw_phrases(load_image(record.image, MAX_PIXELS), record.phrases, record.caption)
    except ImageError as error:
        raise ShardError(f"{folder}: row {key}: {error.reason}: {error}") from error
    try:
        save.parent.mkdir(parents=True, exist_ok=True)
        picture.save(save)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--save {save}: {error}; name a file ending in .png or .jpg where you may write") from error
    print(f"drawn → {save}")


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
