"""Run a stage, the whole graph or a command on a Ray cluster, through its job server.

glip submit all --folder s3://YOUR-BUCKET/YOUR-RUN     the whole graph; metrics, plots and reports come back
glip submit train@round_1 --folder s3://YOUR-BUCKET/YOUR-RUN    one stage of dvc.yaml, and what it needs
glip submit all --folder /data/YOUR-RUN                the same in a folder that all nodes see, by dvc repro there
glip submit -- python -m stages.phrases --records s3://YOUR-BUCKET/records/web --out s3://YOUR-BUCKET/YOUR-RUN/phrases

Code and settings travel: glip_model/, pipeline/, stages/, params.yaml, and dvc.yaml with its hashes; data and keys do
not. Where --folder is a URL, data, models and hashes rest below it, and the nodes share nothing. Where it is a folder,
data goes between it and DVC's remote: here dvc pull brings it, if it is wanted, and dvc repro has nothing to do.

The log follows here. Ctrl-C, or a lost connection, leaves the job alone: the same command again follows the job that is
running, and goes on with what is unfinished where none is. glip jobs lists, follows and stops.

A place belongs to the run that wrote there first: another one is refused, whatever it wants there.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import re
import shlex
import tempfile
from pathlib import Path, PurePosixPath

from pipeline.cli import run_if_program
from pipeline.errors import ConfigError
from stages.jobs import add_address, show
from stages.submitted import places_written

logger = logging.getLogger(__name__)

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("what", nargs="+", help="a stage of dvc.yaml, all, or behind -- a command line")
    parser.add_argument(
        "--folder", help="where data and models are: a URL, or an absolute path that all nodes see; stages need it"
    )
    parser.add_argument(
        "--run", dest="run_name", metavar="NAME", help="whose the results are (default: you and this folder)"
    )
    add_address(parser)
    parser.add_argument("--detach", action="store_true", help="do not wait: print the job's name and end")
    parser.add_argument("--take-over", action="store_true", help="take places from the run that has them")


def run(args: argparse.Namespace) -> None:
    """Send the work, or find it at work, and follow it."""
    from pipeline.ray_session import CODE_ROOT
    from pipeline.submission.job import JobServer, Task
    from pipeline.submission.package import check_stage, pack

    project, is_stage = Path.cwd(), len(args.what) == 1
    name = args.run_name or re.sub(r"[^\w.-]", "-", f"{getpass.getuser()}-{project.name}")
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ConfigError(f"--run {name}: expected letters, digits, '.', '_' and '-'")
    _check_places(args)
    if is_stage and args.what != [ALL]:
        check_stage(project, CODE_ROOT, args.what[0])
    server = JobServer(args.address)
    with tempfile.TemporaryDirectory(prefix="glip-submit-") as package:
        sent = pack(project, CODE_ROOT, is_stage, Path(package))
        task = Task(run=name, command=shlex.join(args.what), folder=args.folder or "", sent=sent)
        words = ["python", "-m", "stages.submitted", "--run", name, "--sent", sent]
        words += ["--folder", args.folder] if args.folder else []
        words += ["--take-over"] if args.take_over else []
        job, is_new = server.send(task, Path(package), shlex.join([*words, "--", *args.what]))
    logger.info("job %s: %s at %s", job, "sent" if is_new else "is running already", server.address)
    if args.detach:
        logger.info("follow it by the same command, or: glip jobs --follow %s; stop it: glip jobs --stop %s", job, job)
        return
    show(server, job)
    if is_stage:
        _bring_home(project, name, args.folder)


def _check_places(args: argparse.Namespace) -> None:
    from pipeline.store.storage import to_place
    from pipeline.store.urls import is_url

    if len(args.what) == 1 and not args.folder:
        raise ConfigError(
            f"{args.what[0]}: a stage needs --folder, where its data is: a URL such as s3://YOUR-BUCKET/YOUR-RUN, or a "
            "folder that all nodes see"
        )
    if args.folder and is_url(args.folder):
        to_place(args.folder)
        if len(args.what) > 1:
            raise ConfigError(
                f"--folder {args.folder}: a command cannot work in a URL; name URLs in the command itself"
            )
    elif args.folder and not PurePosixPath(args.folder).is_absolute():
        raise ConfigError(
            f"--folder {args.folder}: expected a URL, or an absolute path that all nodes see, such as /data/my-run"
        )
    for place in places_written(args.what):
        to_place(place)  # refuses credentials
        if not args.folder and not is_url(place) and not PurePosixPath(place).is_absolute():
            raise ConfigError(
                f"--out {place}: a job works in a folder that goes when it ends; name a URL, an absolute path that "
                "all nodes see, or --folder"
            )


def _bring_home(project: Path, name: str, folder: str) -> None:
    from pipeline.store.storage import is_remote, to_place
    from pipeline.submission.results import fetch_results, has_remote, kept_results

    where = to_place(folder)
    if is_remote(where):
        names = kept_results(project, where, with_lock=False)
        logger.info("%d files are here: metrics, plots and reports; data and models: %s", len(names), folder)
    elif not has_remote(project):
        logger.info("results are in %s on the cluster; to bring them here: dvc remote add --default NAME URL", folder)
    else:
        names = fetch_results(project, name)
        logger.info("%d files are here: hashes, metrics, plots and reports; for data and models: dvc pull", len(names))


run_if_program(__name__)
