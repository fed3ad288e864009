"""What ways of tuning gain on own names, and what they lose on others: glip finetune again and again, one page.

    glip trade --from models/teacher --replay data/records/human/detection
    glip trade --from models/glip_t --data raccoon=../shared/data/raccoon_voc --methods plain average replay

The data sets, where --data names none: pictures of one animal (raccoon), free photographs of COCO (photographs), and
the embedded target domain, other emoji in another style (sketches), which is made here. Other names are judged by
--keep, as of glip finetune.

OUT/trade.html has the curves and the table, OUT/table.md the table alone. Each way of tuning has a folder of its own,
OUT/DATA/METHOD, as glip finetune leaves it. What is finished stays; run again, the command makes what is missing.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cli import add_params, run_if_program, run_module
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

SHARED = Path("../shared/data")
DATA = {"raccoon": SHARED / "raccoon_voc", "photographs": SHARED / "coco128_yolo_train"}
SKETCHES = "sketches"
REPLAY = "REPLAY"
"""Stands for the folder of --replay."""
METHODS: dict[str, tuple[str, ...]] = {
    "plain": ("--no-average",),
    "average": (),
    "replay": ("--no-average", "--replay", REPLAY),
    "names": ("--no-average", "--other-names", "20"),
    "distil": ("--no-average", "--distil", "1"),
    "lora": ("--no-average", "--tuning", "lora"),
    "linear": ("--no-average", "--tuning", "linear"),
    "prompt": ("--no-average", "--tuning", "prompt"),
    "all": ("--replay", REPLAY, "--distil", "1"),
}
"""Way of tuning to what it adds to the command line of glip finetune."""
COLUMNS = ("data", "method", "own before", "own after", "gained", "other before", "other after", "lost", "minutes")
TEXTS = 2
PICTURES, JUDGED = 200, 200
"""Sketches to learn from and to judge by."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    shown = "(default: %(default)s)"
    parser.add_argument("--from", dest="start", type=Path, default=Path("models/teacher"), help=f"model {shown}")
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=FOLDER", help="annotated pictures (default: the three)"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help=f"ways of tuning {shown}")
    replay = Path("data/records/human/detection")
    parser.add_argument("--replay", type=Path, default=replay, help=f"records for the ways that replay {shown}")
    parser.add_argument("--keep", default="embedded", help=f"other names, as of glip finetune {shown}")
    parser.add_argument("--steps", type=int, help="optimiser steps at most (default: by the number of pictures)")
    parser.add_argument("--workers", type=int, default=1, help=f"as of glip finetune {shown}")
    parser.add_argument("--out", type=Path, default=Path("trade"), help=f"folder {shown}")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Tune what is missing, then write page and table."""
    if args.keep == "none":
        raise ConfigError("--keep none leaves nothing to tell what is lost by; name pictures of other names")
    data = _data(args)
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for number, (name, method) in enumerate(((name, method) for name in data for method in args.methods), 1):
        logger.info("trade %d of %d: %s, %s", number, len(data) * len(args.methods), name, method)
        found[name, method] = _tuned(args, data[name], method, args.out / name / method)
        write_page(found, args.out)  # what is there can be looked at while the rest is made
    return f"trade: {len(found)} models → {args.out / 'trade.html'}"


def _data(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return data set to the words that name it to glip finetune."""
    data = {name: ["--data", str(folder)] for name, folder in DATA.items()}
    if not args.data:
        return data | {SKETCHES: _sketches(args)}
    asked = dict(text.split("=", 1) if "=" in text else ("", text) for text in args.data)
    wrong = [folder for name, folder in asked.items() if not name or "/" in name or name.startswith(".")]
    if wrong:
        raise ConfigError(f"--data {wrong[0]}: expected NAME=FOLDER, with a name for the folder of its models")
    return {name: ["--data", folder] for name, folder in asked.items()}


def _sketches(args: argparse.Namespace) -> list[str]:
    """Make the records of the embedded target domain."""
    from dataclasses import replace

    from pipeline.prepare.job import prepare
    from pipeline.ray_session import ray_session
    from pipeline.settings import load_all

    settings, out = load_all(args.params), args.out / SKETCHES / "records"
    human, dev = (({"reader": "embedded_target", "pictures": count},) for count in (PICTURES, JUDGED))
    preparing = replace(
        settings.prepare, human=human, dev=dev, web=(), test=(), held_out=(), mixtures={}, pictures="embed"
    )
    with ray_session():
        prepare(preparing, settings.seed, out)
    return ["--data", str(out / "human/detection"), "--val", str(out / "dev/detection")]


def _tuned(args: argparse.Namespace, data: list[str], method: str, out: Path) -> dict[str, Any]:
    """Run glip finetune, or read what it wrote before."""
    from pipeline.store.provenance import describe_model, fingerprint
    from pipeline.store.resume import begin_work

    words = [*data, "--from", str(args.start), "--keep", args.keep, "--workers", str(args.workers)]
    words += [str(args.replay) if word == REPLAY else word for word in METHODS[method]]
    words += ["--steps", str(args.steps)] if args.steps else []
    words += ["--params", str(args.params)]
    asked = {"words": words, "start": describe_model(args.start), "params": args.params.read_text(encoding="utf-8")}
    begin_work(out / "asked.json", fingerprint(asked))
    result = out / "finetune.json"
    if not result.is_file():
        run_module(["stages.glip", "finetune", *words, "--out", out], out)
    read: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return read


def write_page(found: Mapping[tuple[str, str], Mapping[str, Any]], out: Path) -> None:
    """Write what came of data sets and ways of tuning: a page, and a table for other pages."""
    from pipeline.report.tuning_page import Page, markdown, render, trade_plot
    from pipeline.store.atomic import replacing

    plots = []
    for name in dict.fromkeys(name for name, _ in found):
        trials = {method: each["trials"] for (data, method), each in found.items() if data == name}
        plots.append(trade_plot(trials, name))
    rows = [_row(name, method, each) for (name, method), each in found.items()]
    notes = (
        "Numbers are AP in percent, by pictures that neither taught nor chose. Curves are by those that choose: a line "
        "goes from the model before tuning, at zero, to the tuned one, along mixtures of their weights.",
    )
    page = Page("What tuning gains and what it loses", notes, plots, COLUMNS, rows, TEXTS)
    for name, text in (("trade.html", render(page)), ("table.md", markdown(COLUMNS, rows, TEXTS))):
        with replacing(out / name) as path:
            path.write_text(text, encoding="utf-8")


def _row(name: str, method: str, found: Mapping[str, Any]) -> list[str]:
    before, after = found["before"], found["after"]
    own, other = ((before.get(key, 0.0), after.get(key, 0.0)) for key in ("AP", "other"))
    numbers = (*own, own[1] - own[0], *other, other[0] - other[1], found["seconds"] / 60)
    return [name, method, *(f"{value:.1f}" for value in numbers)]


run_if_program(__name__)
