"""Models served by Ray Serve: a deployment for each, whose copies answer in batches, and one for HTTP before them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # lines for every request; they are in Ray's session folder
# A copy of a model that computes on all cores says late how many requests wait for it. By Ray's defaults (0.1 and 1 s)
# it is then asked again after growing pauses, and requests waited for seconds beside a copy that had nothing to do.
os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "2")
os.environ.setdefault("RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "5")

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.util import list_named_actors

from pipeline.errors import ConfigError
from pipeline.ray_session import ray_session
from pipeline.serving.answering import Answerer, Asked, Found, ModelPlace
from pipeline.serving.app import hosts_of, make_app
from pipeline.serving.limits import Limits, Refusal

logger = logging.getLogger(__name__)

APPLICATION = "glip"
SERVE_NAMESPACE = "serve"
"""Of Ray, in which Ray Serve keeps its actors."""
BATCH_WAIT_S = 0.002
"""How long the first request of a batch waits for others: those that come while the model works wait anyway."""
ATTEMPTS = 5
"""How often a request is tried whose copy of the model dies over it."""
BETWEEN_ATTEMPTS_S = 0.5
ON_TOP_S = 30.0
"""Of a request's time, for its body to come."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many copies of each model there are, and what each takes."""

    replicas: int = 1
    most_replicas: int = 0
    """More copies come under load, up to so many; 0: their number is fixed."""
    gpus: float = 0.0
    """Share of a GPU that each takes."""
    cpus: float = 1.0
    batch: int = 8
    """Requests that a copy answers together at most."""

    def options(self) -> dict[str, Any]:
        """Return them as Ray Serve's options of a deployment."""
        ongoing = 2 * self.batch  # one batch waits while one is answered
        options: dict[str, Any] = {
            "ray_actor_options": {"num_gpus": self.gpus, "num_cpus": self.cpus},
            "max_ongoing_requests": ongoing,
        }
        if not self.most_replicas:
            return {**options, "num_replicas": self.replicas}
        scaling = {
            "min_replicas": self.replicas,
            "max_replicas": self.most_replicas,
            "target_ongoing_requests": self.batch,
        }
        return {**options, "autoscaling_config": scaling}


class _Model:
    """A copy of a model."""

    def __init__(self, place: ModelPlace, batch: int) -> None:
        self._answerer = Answerer(place)
        together: Any = self.together  # which the decorator gave more than types know of
        together.set_max_batch_size(batch)

    def names(self) -> tuple[str, ...]:
        """Return what it finds, of a model of fixed names."""
        return self._answerer.names

    async def find(self, asked: Asked) -> Found | Refusal:
        """Answer a request, together with those that wait."""
        answer: Found | Refusal = await self.together(asked)
        return answer

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=BATCH_WAIT_S)
    async def together(self, asked: list[Asked]) -> list[Found | Refusal]:
        """Answer several requests, off the loop that takes further ones."""
        return await asyncio.to_thread(self._answerer, asked)


class _ByHandles:
    """The models of other processes."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._names: dict[str, Sequence[str]] = {}

    async def models(self) -> Mapping[str, Sequence[str]]:
        """Return the models by name, with the names that each finds."""
        for name in self._handles.keys() - self._names.keys():
            self._names[name] = await self._call(name, "names")
        return {name: self._names[name] for name in self._handles}

    async def find(self, model: str, asked: Asked) -> Found:
        """Answer a request; Refusal where that cannot be."""
        found: Found | Refusal = await self._call(model, "find", asked)
        if isinstance(found, Refusal):
            raise found
        return found

    async def _call(self, model: str, method: str, *arguments: Any) -> Any:
        """Call a copy of a model; where it dies over that, another one, and where there is none, one that comes."""
        for attempt in range(ATTEMPTS):
            try:
                return await getattr(self._handles[model], method).remote(*arguments)
            except RayTaskError:  # an error of the model's own
                raise
            except (RayError, RayServeException) as error:
                logger.warning("serve: a copy of %s is gone (%s); attempt %d", model, type(error).__name__, attempt + 1)
                await asyncio.sleep(BETWEEN_ATTEMPTS_S)
        raise Refusal(503, "no_copy", f"no copy of {model} is there to answer; try again in a minute")


@serve.ingress()
class _Front:
    """HTTP before the models; one, so that what waits and what was answered is counted in one place."""

    def __init__(self, limits: Limits, hosts: Sequence[str], handles: dict[str, DeploymentHandle[Any]]) -> None:
        self._app = make_app(_ByHandles(handles), limits, hosts)

    def __serve_build_asgi_app__(self) -> Any:
        """Return what answers."""
        return self._app


@contextmanager
def serving(models: Mapping[str, ModelPlace], scale: Scale, limits: Limits, host: str, port: int) -> Iterator[str]:
    """Serve models for the length of a ``with`` block; give the address.

    Args:
        models: by the name that requests call them by.
        scale: of each model.
        limits: of requests.
        host: to listen on; one beyond this machine lets everybody in who reaches it.
        port: the same.

    Raises:
        ConfigError: a model cannot be loaded, or nothing can listen there.
    """
    is_local = not os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if is_local:
        _check_port(host, port)
    with ray_session():
        if is_local:
            _check_gpus(len(models) * scale.replicas * scale.gpus)
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port, "request_timeout_s": limits.timeout_s + ON_TOP_S},
            )
            deploy: Any = serve.deployment
            handles = {
                name: deploy(_Model, name=f"model-{name}", **scale.options()).bind(place, scale.batch)
                for name, place in models.items()
            }
            front = deploy(
                _Front,
                name="front",
                max_ongoing_requests=limits.max_waiting * 4 + 100,
                ray_actor_options={"num_cpus": 0},
            )
            try:
                serve.run(front.bind(limits, hosts_of(host), handles), name=APPLICATION)
            except RuntimeError as error:
                raise ConfigError(f"serve: the models cannot be served: {_cause(str(error))}") from error
            yield f"http://{host}:{port}"
        finally:
            serve.shutdown()


def _check_port(host: str, port: int) -> None:
    """Raise ConfigError where nothing can listen: Ray Serve would try again and again."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise ConfigError(
            f"nothing can listen on {host}, port {port} ({error.strerror}); name another --port"
        ) from error


def _check_gpus(wanted: float) -> None:
    """Raise ConfigError for GPUs that this machine lacks: Ray Serve would wait for them without end."""
    there = ray.cluster_resources().get("GPU", 0)
    if wanted > there:
        raise ConfigError(f"the copies of all models take {wanted:g} GPUs, this machine has {there:g}; see --gpus")


def copies_of(model: str) -> list[Callable[[], None]]:
    """Return, of each copy of a served model, a call that kills it as a crash would."""
    names = [actor["name"] for actor in list_named_actors(all_namespaces=True) if f"#model-{model}#" in actor["name"]]
    return [partial(ray.kill, ray.get_actor(name, SERVE_NAMESPACE)) for name in names]


def wait_until_stopped(has_stopped: Callable[[], bool] = lambda: False) -> None:
    """Return when ``has_stopped`` says so; Ctrl-C and SIGTERM end it by an exception."""
    pause = threading.Event()
    while not has_stopped():
        pause.wait(0.5)


def _cause(message: str) -> str:
    """Return what a copy of a model said when it could not start, of all that Ray Serve says of it."""
    lines = [line for line in message.splitlines() if "ConfigError" in line]
    return lines[-1].partition("ConfigError: ")[2] if lines else message
