"""Run a stage of a round of self-training, unless dev saw no gain in the round before.

What dvc.yaml runs. A round that is skipped leaves a note of why in place of everything that its stages would write, so
that the rounds after it are skipped as well and the report can say so; a folder of an earlier run is emptied.

Run: python -m stages.in_round round_2 --after metrics/round_1.json -- pseudo_label --records … --out … --round round_2
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pipeline.cli import add_params, run_if_program

if TYPE_CHECKING:
    from pipeline.store.storage import Place

SKIPPED = "skipped"
"""Name of the note, and its key in metrics and column in tables."""
OUTPUTS = ("out", "metrics", "log", "table", "curves")
"""Options of the stages that name what they write."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("round", help="key of rounds in params.yaml")
    parser.add_argument("--after", required=True, metavar="FILE", help="metrics of the round's teacher")
    parser.add_argument("stage", help="module of stages to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the stage")
    add_params(parser)


def run(args: argparse.Namespace) -> str | None:
    """Run the stage, or write notes in place of its outputs."""
    from pipeline.errors import ConfigError
    from pipeline.settings import load_all
    from pipeline.store.storage import exists, remove, to_place

    rounds = load_all(args.params).rounds
    if args.round not in rounds:
        raise ConfigError(f"{args.params}: rounds has no {args.round!r}; rounds: {', '.join(rounds) or 'none'}")
    stage: Any = importlib.import_module(f"stages.{args.stage}")
    parser = argparse.ArgumentParser(prog=f"stages.{args.stage}", description=stage.__doc__)
    stage.add_arguments(parser)
    inner = parser.parse_args(args.arguments)
    if hasattr(inner, "params"):
        inner.params = args.params
    outputs = [to_place(given) for name in OUTPUTS if (given := getattr(inner, name, None))]
    reason = None if rounds[args.round].always else _reason_to_skip(to_place(args.after))
    if reason is None:
        for note in (place / f"{SKIPPED}.json" for place in outputs if not PurePath(place.name).suffix):
            if exists(note):
                remove(note)
        done: str | None = stage.run(inner)
        return done
    for place in outputs:
        _write_note(place, reason)
    return f"{args.stage}: {args.round} is skipped: {reason}"


def _reason_to_skip(metrics: Place) -> str | None:
    """Return why the round after the model of these metrics is not run; None where it is."""
    from pipeline.errors import MissingInputError
    from pipeline.store.storage import read_text

    text = read_text(metrics)
    if text is None:
        raise MissingInputError(f"{metrics}: no such file; run: dvc repro evaluate")
    found = json.loads(text)
    if SKIPPED in found:
        return str(found[SKIPPED])
    gain = found.get("gain")  # see pipeline/evaluation/gain.py; a teacher that nobody taught has none
    if gain is None or gain["is_beyond_chance"]:
        return None
    model = PurePath(metrics.name).stem
    return (
        f"on {gain['split']} {model} gained {gain['value']:+.1f} {gain['part']} {gain['measure']} over {gain['over']} "
        f"(95 % interval {gain['low']:+.1f} to {gain['high']:+.1f}), which may be chance"
    )


def _write_note(place: Place, reason: str) -> None:
    """Put the reason in place of a file or of a folder's files."""
    from pipeline.store.atomic import write_csv, write_json
    from pipeline.store.storage import remove_folder

    match PurePath(place.name).suffix:
        case ".json":
            write_json(place, {SKIPPED: reason})
        case ".csv":
            write_csv(place, [[SKIPPED], [reason]])
        case _:
            remove_folder(place)
            write_json(place / f"{SKIPPED}.json", {SKIPPED: reason})


run_if_program(__name__)
