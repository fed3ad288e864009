"""What glip submit runs on the cluster: claims the places that are written, then runs DVC or the command there."""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import run_if_program

if TYPE_CHECKING:
    from pipeline.store.storage import Place

DVC = (sys.executable, "-m", "dvc")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("what", nargs="+", help="a stage, all, or a command line")
    parser.add_argument("--run", dest="run_name", required=True, help="the run's name")
    parser.add_argument("--sent", required=True, help="hash of code and settings")
    parser.add_argument("--folder", help="where to work, or the URL of the run's data")
    parser.add_argument("--take-over", action="store_true", help="take places from the run that has them")


def run(args: argparse.Namespace) -> None:
    """Claim, then run."""
    from pipeline.ray_session import CODE_ROOT
    from pipeline.store.storage import is_remote, to_place
    from pipeline.store.urls import is_url
    from pipeline.submission.ownership import Owner, claim
    from pipeline.submission.package import unpack

    owner = Owner(run=args.run_name, since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), sent=args.sent)
    where = to_place(args.folder) if args.folder else None
    if where is not None:
        claim(where, owner, args.take_over)
    for text in places_written(args.what):
        place = to_place(text if is_url(text) else os.path.abspath(Path(args.folder or "/") / text))
        if where is None or where not in place.parents:
            claim(place, owner, args.take_over)
    with tempfile.TemporaryDirectory(prefix="glip-job-") as none_of_its_own:
        folder = where if isinstance(where, Path) else Path(none_of_its_own)
        in_store = where is not None and is_remote(where)
        unpack(CODE_ROOT, folder, with_lock=not in_store)  # it is that of the graph on disk
        os.chdir(folder)  # Ray may clear away what it unpacked while it is in use
        if len(args.what) > 1:
            _call(args.what, folder)
            return
        target = None if args.what == ["all"] else args.what[0]
        make_repository(folder)
        if where is not None and in_store:
            _reproduce_in_store(target, folder, where)
        else:
            _reproduce_with_remote(target, folder, args.run_name)


def places_written(command: Sequence[str]) -> list[str]:
    """Return what a command line names by ``--out``."""
    found = [following for word, following in itertools.pairwise(command) if word == "--out"]
    return found + [word.removeprefix("--out=") for word in command if word.startswith("--out=")]


def make_repository(folder: Path) -> None:
    """Let DVC take a folder for one of its own, without git."""
    local = folder / ".dvc/config.local"
    if not local.exists():
        local.parent.mkdir(exist_ok=True)
        local.write_text("[core]\n    no_scm = true\n", encoding="utf-8")


def reproduce(target: str | None, folder: Path, *options: str) -> None:
    """Run ``dvc repro`` in a folder with the code that it holds; end this process with its status unless it is 0."""
    _call([*DVC, "repro", *options, *([target] if target else [])], folder)


def _reproduce_with_remote(target: str | None, folder: Path, name: str) -> None:
    from pipeline.submission.results import has_remote, send_results

    remote = has_remote(folder)
    reproduce(target, folder, *(["--pull"] if remote else []))
    if remote:
        _call([*DVC, "push"], folder)
        send_results(folder, name)


def _reproduce_in_store(target: str | None, folder: Path, store: Place) -> None:
    """Run stages whose data is in a store; what is known of them goes there after each, as this machine may go."""
    from pipeline.submission.graph import put_in_store, stages_in_order
    from pipeline.submission.results import keep_results, kept_results

    put_in_store(folder / "dvc.yaml", str(store))
    kept_results(folder, store, with_lock=True)
    for stage in stages_in_order(folder, target):
        _call([*DVC, "repro", "--single-item", stage], folder)
        keep_results(folder, store)


def _call(command: list[str], folder: Path) -> None:
    """Run a command with the code of a folder; end this process with its status unless it is 0."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(folder),
        "PYTHONUNBUFFERED": "1",  # or lines of the log come late
        "DVC_NO_ANALYTICS": "1",
    }
    status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
    if status:
        sys.exit(status if status > 0 else 128 - status)


run_if_program(__name__)
