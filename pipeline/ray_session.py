"""Where Ray starts, on this machine or on the cluster that ``RAY_ADDRESS`` names, and how workers share it."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keeps a warning about future defaults away

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cli import WAIT_POLICY, share_cores
from pipeline.errors import ConfigError, MissingInputError, PipelineError, ShardError

T = TypeVar("T")
W = TypeVar("W")

logger = logging.getLogger(__name__)

CODE_ROOT = Path(__file__).resolve().parent.parent
"""Folder that holds the packages, shipped to a cluster that is joined."""

CONNECT_SECONDS = 10.0
"""How long the head of a cluster may take to answer."""

RESTARTS = 4
"""How often what a worker was at when it died is begun anew."""

WANTED_VARIABLE = "GLIP_RESOURCES"
"""Environment variable: what a joined cluster shall grow to before the work is divided, as ``{"GPU": 8}``."""

GROW_SECONDS = 900.0
"""How long the machines may take to come."""

OBJECT_STORE_BYTES = 1 << 30
"""Shared memory of a local Ray: pictures pass through it shard by shard, 1 GiB holds dozens of shards."""


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to Ray for the length of a ``with`` block; a local Ray ends with it, a joined cluster stays.

    Inside a running session (a test, a notebook) it does nothing and leaves Ray running.

    Raises:
        MissingInputError: no cluster answers at ``RAY_ADDRESS``, or none can be started here.
        ConfigError: ``GLIP_RESOURCES`` says no resources.
    """
    if ray.is_initialized():
        yield
        return
    share_cores()
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # The native part of Ray prints what it could not do for actors to restart; what fails reaches us as an exception.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    address = os.environ.get("RAY_ADDRESS")
    wanted = _wanted_resources() if address else {}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address:
        _join(address)
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        # Processes start when there is work for them. Ray would start one a core at once and wait for all; those of a
        # training, which have an environment of their own, cannot take their place.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        with _native_stderr_discarded(), _ended_by(on_sigterm):
            _start()
    if callable(on_sigterm):
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own
    try:
        if wanted:
            _grow(wanted)
        yield
    finally:
        if wanted:
            request_resources(bundles=[])  # idle machines may go
        ray.shutdown()


def _start() -> None:
    try:
        ray.init(
            address="local",  # and not a cluster that somebody else started on this machine
            num_cpus=os.cpu_count(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # Ray has no type of its own for what does not start in time
        raise MissingInputError(
            f"Ray did not start on this machine: {error}; are memory, processes or the disk of /tmp short? Logs are "
            "in /tmp/ray/session_latest/logs. Run the command again, or join a cluster by RAY_ADDRESS"
        ) from error


@dataclass(frozen=True)
class Share:
    """What each of a number of equal workers gets of the running cluster."""

    workers: int
    cpus: int
    """Cores to ask Ray for: none where the worker holds a GPU."""
    gpus: int
    threads: int

    def per_worker(self) -> dict[str, Any]:
        """Return the options of a Ray actor or task."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


def share_cluster(wanted: int) -> Share:
    """Divide the cluster among at most ``wanted`` workers: a GPU for each where there are GPUs, otherwise its cores."""
    nodes = _node_resources()
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        threads = min(int(node.get("CPU", 1) / node["GPU"]) for node in nodes if node.get("GPU"))
        return Share(workers=max(1, min(wanted, gpus)), cpus=0, gpus=1, threads=max(1, threads))
    workers = max(1, min(wanted, int(sum(node.get("CPU", 0) for node in nodes))))
    cores = cores_per_worker(workers)
    return Share(workers, cpus=cores, gpus=0, threads=max(1, cores))


def cores_per_worker(workers: int) -> int:
    """Return how many cores each worker can have so that every one of them finds a node; 0 with too few cores."""
    cores = [int(node.get("CPU", 0)) for node in _node_resources()]
    return next((n for n in range(max(cores, default=0), 0, -1) if sum(c // n for c in cores) >= workers), 0)


def run_pool(workers: Sequence[W], call: Callable[[W, T], Any], work: Iterable[T]) -> Iterator[tuple[T, Any]]:
    """Give each piece of work to a worker that is free; yield the pieces with what came of them, as it comes.

    Args:
        workers: actors, which are ended in the end, or remote functions, as often as they may run at once.
        call: begins a piece of work.
        work: is asked for the next piece when a worker is free.

    Raises:
        PipelineError: as a worker raised it, at once; one that a worker returned is raised when the other pieces are
            done, of several the first in the order of their texts, whichever came first.
        ShardError: a worker died over a piece as often as it may; when the others are done.
        RayTaskError: a worker raised something else, which is a bug; with its traceback.
    """
    pieces, free = iter(work), list(workers)
    under_way: dict[Any, tuple[W, T]] = {}
    errors: list[PipelineError] = []
    try:
        while True:
            for piece in islice(pieces, len(free)):
                worker = free.pop()
                under_way[call(worker, piece)] = worker, piece
            if not under_way:
                break
            (done, *_), _ = ray.wait(list(under_way))
            worker, piece = under_way.pop(done)
            free.append(worker)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, PipelineError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as death:
                result = ShardError(f"{piece}: its worker died {RESTARTS + 1} times ({death})")
            if isinstance(result, PipelineError):
                errors.append(result)
            else:
                yield piece, result
    finally:
        for worker in workers:
            if isinstance(worker, ray.actor.ActorHandle):
                ray.kill(worker)  # now, rather than when the last reference goes: whoever comes next needs the cores
    if errors:
        raise min(errors, key=str)


def on_all_machines(function: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """Call a function that takes a core as ``map`` does, in tasks of Ray; return what it returned, in order."""
    task = ray.remote(num_cpus=1)(function)
    found: list[T] = ray.get([task.remote(*each) for each in zip(*arguments, strict=True)])
    return found


def on_gpu_machines(function: Callable[[], bool]) -> bool:
    """Call a function on every machine that has GPUs, one of them in view; say whether there are some, and all say so.

    It waits for the GPUs that others hold: whoever asks is to work on them.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    here = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]  # one may go meanwhile
    task = ray.remote(num_cpus=0, num_gpus=0.01)(function)
    answers = ray.get([task.options(scheduling_strategy=each).remote() for each in here])
    return bool(answers) and all(answers)


def _node_resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _wanted_resources() -> dict[str, int]:
    text = os.environ.get(WANTED_VARIABLE) or "{}"
    try:
        wanted = json.loads(text)
    except json.JSONDecodeError:
        wanted = None
    if not isinstance(wanted, dict) or not all(type(count) is int and count > 0 for count in wanted.values()):
        raise ConfigError(f'{WANTED_VARIABLE}={text}: expected whole numbers by resource, such as {{"GPU": 8}}')
    return wanted


def _grow(wanted: dict[str, int]) -> None:
    """Ask the autoscaler for machines and wait for them: stages divide their work among the nodes they find.

    The work begins with what is there when the time is up, as spot machines may be short.
    """
    request_resources(bundles=[{name: 1} for name, count in wanted.items() for _ in range(count)])
    deadline = time.monotonic() + GROW_SECONDS
    while True:
        there = ray.cluster_resources()
        if all(there.get(name, 0) >= count for name, count in wanted.items()):
            return
        if time.monotonic() > deadline:
            found = {name: int(there.get(name, 0)) for name in wanted}
            logger.warning("Ray: %s wanted, %s there after %.0f s; going on with that", wanted, found, GROW_SECONDS)
            return
        time.sleep(1)


def _join(address: str) -> None:
    """Connect to a cluster, which gets this checkout's code, whatever its nodes have installed.

    Data and models go by URL; or by path, and then the nodes must see the same files. Processes work in the driver's
    folder, where their node has it.
    """
    folder = Path.cwd()

    def enter_folder() -> None:
        if folder.is_dir():
            os.chdir(folder)

    runtime_env = {
        "py_modules": [str(CODE_ROOT / package) for package in ("glip_model", "pipeline")],
        "excludes": ["**/__pycache__"],
        "worker_process_setup_hook": enter_folder,
        "env_vars": {WAIT_POLICY: os.environ[WAIT_POLICY]},
    }
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal() and "/" not in host:
            # Where nobody listens, Ray would try for minutes and end the process.
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        with _native_stderr_discarded():
            found = ray.init(address=address, runtime_env=runtime_env, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError) as error:
        raise MissingInputError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); "
            "start one with: ray start --head, or unset RAY_ADDRESS to run on this machine alone"
        ) from error
    if found.dashboard_url:
        warn_of_open_port(found.dashboard_url.rpartition(":")[0], "the cluster's dashboard", encrypted=False)


def warn_of_open_port(host: str, what: str, encrypted: bool) -> None:
    """Warn where something that runs anybody's code listens beyond this machine, and say how to close it."""
    is_here = host == "localhost"
    with suppress(ValueError):  # a name
        is_here = is_here or ipaddress.ip_address(host.strip("[]")).is_loopback
    if is_here:
        return
    if os.environ.get("RAY_AUTH_MODE") == "token":
        if not encrypted:
            logger.warning("%s at %s: its token travels unencrypted; use https or an SSH tunnel", what, host)
        return
    logger.warning(
        "%s at %s is open to its network: whoever reaches it runs code there with the nodes' rights, without a "
        "password. Let it listen on 127.0.0.1 and come by ssh -L 8265:127.0.0.1:8265, or start all nodes with "
        "RAY_AUTH_MODE=token",
        what,
        host,
    )


@contextmanager
def _ended_by(on_sigterm: Any) -> Iterator[None]:
    """Let SIGTERM have the effect it had before Ray, which exits with 1 or 15 while it starts."""
    try:
        yield
    except SystemExit as error:
        if callable(on_sigterm) and error.code in (1, signal.SIGTERM):
            on_sigterm(signal.SIGTERM, None)
        raise


@contextmanager
def _native_stderr_discarded() -> Iterator[None]:
    """Discard what native code writes to the terminal; Ray announces there that its log level was set."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
