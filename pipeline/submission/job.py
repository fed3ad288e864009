"""Jobs of a cluster through Ray's job server: sent once, followed from anywhere, stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.errors import ConfigError, MissingInputError
from pipeline.ray_session import WANTED_VARIABLE, warn_of_open_port

logger = logging.getLogger(__name__)

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Environment variable that Ray's own commands read too."""
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
STOP_SECONDS = 60.0
"""How long a job may take to end; Ray kills what has not ended after three."""
RECONNECT_SECONDS = 2.0
_PREFIX = "glip_"
"""Of the names under which a task's fields stand in a job's metadata."""


@dataclass(frozen=True)
class Task:
    """What a run wants done."""

    run: str
    command: str
    """As it is shown: a stage, or a command line."""
    folder: str
    """Where it works on the cluster, empty for nowhere."""
    sent: str
    """Hash of code and settings."""


@dataclass(frozen=True)
class Job:
    """One job of the project, as the server knows it."""

    id: str
    task: Task
    status: str
    message: str
    exit_code: int
    started: float
    """Seconds since 1970."""

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return JobStatus(self.status).is_terminal()


class JobServer:
    """The job server of a cluster.

    Args:
        address: its URL; None takes RAY_API_SERVER_ADDRESS, else this machine's.

    Raises:
        MissingInputError: nobody answers there, or not to us; of all methods.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        url = urlsplit(self.address)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"--address {self.address}: expected a URL such as {DEFAULT_ADDRESS}")
        warn_of_open_port(url.hostname, "the job server", encrypted=url.scheme == "https")
        with self._answering():
            self._client = JobSubmissionClient(self.address)

    def jobs(self) -> list[Job]:
        """Return the project's jobs, the oldest first."""
        with self._answering():
            found = [_job(each) for each in self._client.list_jobs()]
        return sorted((job for job in found if job.task.run), key=lambda job: job.started)

    def job(self, id: str) -> Job:
        """Return a job.

        Raises:
            MissingInputError: there is none of that name.
        """
        jobs = self.jobs()
        found = next((job for job in jobs if job.id == id), None)
        if found is not None:
            return found
        known = ", ".join(job.id for job in jobs[-10:]) or "none"
        raise MissingInputError(f"{self.address}: no job {id!r}; the last ones: {known}")

    def send(self, task: Task, package: Path, entrypoint: str) -> tuple[str, bool]:
        """Start a job, or find the one that does the same already.

        Args:
            task: what it is to do.
            package: folder to send, in which the entry point starts.
            entrypoint: command line.

        Returns:
            The job's name, and whether it is new.

        Raises:
            ConfigError: a job of the run is at the same with other code or settings, or works in the same folder.
        """
        for _ in range(2):
            jobs = self.jobs()
            for job in jobs:
                if not job.ended and job.task == task:
                    return job.id, False
                if not job.ended and _disturbs(job.task, task):
                    raise ConfigError(
                        f"run {task.run}: its job {job.id} is at {job.task.command!r} with "
                        f"{'the same' if job.task.sent == task.sent else 'other'} code and settings; wait for it with: "
                        f"glip jobs --follow {job.id}, or stop it with: glip jobs --stop {job.id}"
                    )
            numbers = [job.id.rpartition("-")[2] for job in jobs if job.task.run == task.run]
            id = f"{task.run}-{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"
            if self._submit(id, task, package, entrypoint):
                return id, True
        raise ConfigError(f"run {task.run}: somebody else submits under this name; choose another with --run")

    def follow(self, id: str) -> Job:
        """Print a job's log from its beginning until it ends, over lost connections."""
        shown = 0
        while True:
            try:
                shown = asyncio.run(self._print_log(id, shown))
            except (aiohttp.ClientError, RuntimeError, OSError) as error:
                logger.warning("%s: lost the connection (%s)", self.address, error)
            job = self.job(id)
            if job.ended:
                return job
            time.sleep(RECONNECT_SECONDS)

    def stop(self, id: str) -> Job:
        """End a job and wait until it has."""
        if not self.job(id).ended:
            with self._answering():
                self._client.stop_job(id)
        deadline = time.monotonic() + STOP_SECONDS
        while not (job := self.job(id)).ended and time.monotonic() < deadline:
            time.sleep(0.5)
        return job

    def _submit(self, id: str, task: Task, package: Path, entrypoint: str) -> bool:
        wanted = {name: os.environ[name] for name in (WANTED_VARIABLE,) if name in os.environ}
        with self._answering():
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=id,
                    runtime_env={"working_dir": str(package), "env_vars": wanted},
                    metadata={f"{_PREFIX}{name}": value for name, value in vars(task).items()},
                )
            except RuntimeError as error:
                if "already exists" in str(error):  # another client was quicker
                    return False
                raise
        return True

    async def _print_log(self, id: str, shown: int) -> int:
        """Print what comes after the characters that were shown already; return how many there are now."""
        seen = 0
        async for text in self._client.tail_job_logs(id):
            fresh = text[max(0, shown - seen) :]
            seen += len(text)
            sys.stdout.write(fresh.replace("\r", "\n"))  # progress bars: a line a state
            sys.stdout.flush()
            shown = max(shown, seen)
        return shown

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise MissingInputError(
                f"{self.address}: asks for a token; set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN, "
                "in the file that RAY_AUTH_TOKEN_PATH names or in ~/.ray/auth_token"
            ) from error
        except (ConnectionError, RuntimeError) as error:
            raise MissingInputError(
                f"{self.address}: no job server answers there ({str(error).strip()}); name another with --address or "
                f"{ADDRESS_VARIABLE}; one far away is reached by: ssh -L 8265:127.0.0.1:8265 HEAD"
            ) from error


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    failed = details.status in (JobStatus.FAILED, JobStatus.STOPPED)
    return Job(
        id=details.submission_id or "",
        task=Task(**{field.name: metadata.get(f"{_PREFIX}{field.name}", "") for field in fields(Task)}),
        status=str(details.status),
        message=details.message or "",
        exit_code=details.driver_exit_code or 1 if failed else 0,
        started=(details.start_time or 0) / 1000,
    )


def _disturbs(running: Task, wanted: Task) -> bool:
    return running.run == wanted.run and (
        running.command == wanted.command or (bool(wanted.folder) and running.folder == wanted.folder)
    )
