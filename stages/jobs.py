"""Look at the jobs that glip submit has sent to a cluster.

glip jobs                     the last ones: name, state, what they do
glip jobs --follow JOB        its log, from the beginning to its end; ends with its exit status
glip jobs --stop JOB          end it; submitted again, it goes on from its finished stages, shards and checkpoints
"""

from __future__ import annotations

import argparse
import logging
import time
from typing import TYPE_CHECKING

from pipeline.cli import INTERRUPTED_STATUS, at_least, run_if_program

if TYPE_CHECKING:
    from pipeline.submission.job import Job, JobServer

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--follow", metavar="JOB", help="print its log until it ends")
    action.add_argument("--stop", metavar="JOB", help="end it and wait until it has")
    parser.add_argument("--last", type=at_least(1), default=20, help="how many to list (default: %(default)s)")
    add_address(parser)


def add_address(parser: argparse.ArgumentParser) -> None:
    """Declare where the job server is."""
    shown = "of the job server (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)"
    parser.add_argument("--address", metavar="URL", help=shown)


def run(args: argparse.Namespace) -> None:
    """List, follow or stop."""
    from pipeline.submission.job import JobServer

    server = JobServer(args.address)
    if args.follow:
        show(server, args.follow)
    elif args.stop:
        print(_line(server.stop(args.stop)))
    else:
        for job in server.jobs()[-args.last :]:
            print(_line(job))


def show(server: JobServer, id: str) -> None:
    """Print a job's log until it ends; end this process with its exit status unless it is 0."""
    try:
        job = server.follow(id)
    except KeyboardInterrupt:
        logger.info("\njob %s goes on; see it: glip jobs --follow %s; stop it: glip jobs --stop %s", id, id, id)
        raise SystemExit(INTERRUPTED_STATUS) from None
    logger.info("job %s: %s", id, job.status.lower())
    if job.exit_code:
        raise SystemExit(job.exit_code)


def _line(job: Job) -> str:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
    where = f" in {job.task.folder}" if job.task.folder else ""
    return f"{job.id}  {job.status.lower():9}  {began}  {job.task.command}{where}"


run_if_program(__name__)
