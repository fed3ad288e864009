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

from pipeline.cli import run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("what", nargs="+", help="a stage, all, or a command line")
    parser.add_argument("--run", dest="run_name", required=True, help="the run's name")
    parser.add_argument("--sent", required=True, help="hash of code and settings")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--take-over", action="store_true", help="take places from the run that has them")


def run(args: argparse.Namespace) -> None:
    """Claim, then run."""
    from pipeline.ray_session import CODE_ROOT
    from pipeline.store.filesystem import is_url
    from pipeline.store.storage import to_place
    from pipeline.submission.ownership import Owner, claim
    from pipeline.submission.package import unpack

    owner = Owner(run=args.run_name, since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), sent=args.sent)
    if args.folder:
        claim(args.folder, owner, args.take_over)
    for text in places_written(args.what):
        place = to_place(text if is_url(text) else os.path.abspath(Path(args.folder or "/") / text))
        if not (args.folder and isinstance(place, Path) and args.folder in place.parents):
            claim(place, owner, args.take_over)
    with tempfile.TemporaryDirectory(prefix="glip-job-") as none_of_its_own:
        folder = args.folder or Path(none_of_its_own)
        unpack(CODE_ROOT, folder)
        os.chdir(folder)  # Ray may clear away what it unpacked while it is in use
        if len(args.what) > 1:
            _call(args.what, folder)
        else:
            _reproduce([] if args.what == ["all"] else args.what, folder, args.run_name)


def places_written(command: Sequence[str]) -> list[str]:
    """Return what a command line names by ``--out``."""
    found = [following for word, following in itertools.pairwise(command) if word == "--out"]
    return found + [word.removeprefix("--out=") for word in command if word.startswith("--out=")]


def _reproduce(targets: list[str], folder: Path, name: str) -> None:
    from pipeline.submission.results import has_remote, send_results

    local = folder / ".dvc/config.local"
    if not local.exists():
        local.parent.mkdir(exist_ok=True)
        local.write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    dvc = [sys.executable, "-m", "dvc"]
    remote = has_remote(folder)
    _call([*dvc, "repro", *(["--pull"] if remote else []), *targets], folder)
    if remote:
        _call([*dvc, "push"], folder)
        send_results(folder, name)


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
