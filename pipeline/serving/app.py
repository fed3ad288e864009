"""The HTTP side: POST /predict, the page that uses it, /models, /metrics and /health, whatever answers behind it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Annotated, Any, Protocol

import aiohttp
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.serving.answering import Asked, Found
from pipeline.serving.limits import Limits, Refusal, overloaded, too_large, too_slow
from pipeline.store.web import PUBLIC_WEB, WebClient

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Names that a browser may call a server by which listens on this machine alone."""
MULTIPART_BYTES = 65_536
"""Of a body beside the picture: borders, names, the score."""
_FILES = {
    "": ("page.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; connect-src 'self'; base-uri 'none'"


class Backend(Protocol):
    """What answers."""

    async def models(self) -> Mapping[str, Sequence[str]]:
        """Return the models by name, with the names that each finds; none where one asks for names."""
        ...

    async def find(self, model: str, asked: Asked) -> Found:
        """Answer a request; Refusal where that cannot be."""
        ...


class FoundBox(BaseModel):
    """A box."""

    box: tuple[float, float, float, float]
    """Corners x1, y1, x2, y2 in pixels of the picture."""
    score: float
    name: str


class Answer(BaseModel):
    """What was found, best score first."""

    model: str
    height: int
    width: int
    boxes: list[FoundBox]
    seconds: float
    """That the model took, for all requests that it answered together."""


class Problem(BaseModel):
    """Why there is no answer."""

    code: str
    message: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "no picture, or two"},
    403: {"model": Problem, "description": "a URL, where the server fetches none"},
    404: {"model": Problem, "description": "no model of this name"},
    413: {"model": Problem, "description": "too many bytes or pixels"},
    415: {"model": Problem, "description": "not a picture"},
    422: {"model": Problem, "description": "names or a score that cannot be asked for"},
    502: {"model": Problem, "description": "the URL gives no picture"},
    503: {"model": Problem, "description": "too many requests wait, or no copy of the model is there; try again"},
    504: {"model": Problem, "description": "the time is up"},
}


class _Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        every: Any = {"registry": self.registry}
        self.requests = Counter("glip_requests", "Answered requests", ["model", "status"], **every)
        self.seconds = Histogram("glip_request_seconds", "From request to answer", ["model"], **every)
        self.batch = Histogram(
            "glip_batch_requests", "Answered together", ["model"], buckets=(1, 2, 4, 8, 16, 32, 64), **every
        )
        self.boxes = Counter("glip_boxes", "Boxes found", ["model"], **every)
        self.under_way = 0
        Gauge("glip_waiting_requests", "Under way", **every).set_function(lambda: self.under_way)

    @contextmanager
    def request(self, model: str, limits: Limits) -> Iterator[None]:
        """Count a request as under way for the length of a ``with`` block, and then by its status and its time.

        Raises:
            Refusal: too many are under way, or the block raised one or TimeoutError.
        """
        if self.under_way >= limits.max_waiting:
            self.requests.labels(model, 503).inc()
            raise overloaded(limits.max_waiting)
        start = time.perf_counter()
        status = 500  # of what is no Refusal: a bug, or a client that went away
        self.under_way += 1
        try:
            yield
            status = 200
        except Refusal as refusal:
            status = refusal.status
            raise
        except TimeoutError as error:
            status = 504
            raise too_slow(limits.timeout_s) from error
        finally:
            self.under_way -= 1
            self.requests.labels(model, status).inc()
            self.seconds.labels(model).observe(time.perf_counter() - start)


class _BodyLimit:
    """Refuses bodies beyond a limit: by their header before they are read, others as soon as they are too long."""

    def __init__(self, app: Any, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Be the application in all else."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit + MULTIPART_BYTES:
            await _refused(too_large(self._limit))(scope, receive, send)
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit + MULTIPART_BYTES:
                raise HTTPException(413, "too many bytes")
            return message

        await self._app(scope, counted, send)


def make_app(backend: Backend, limits: Limits, hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """Return the application.

    Args:
        backend: what answers.
        limits: of requests.
        hosts: names that it may be called by, ``*`` any: a page of another site that points its own name at this
            machine is refused.
    """
    app = FastAPI(title="GLIP", description="Find things in pictures by name.", redoc_url=None)
    metrics = _Metrics()
    app.add_middleware(_BodyLimit, limit=limits.max_bytes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    _add_files(app)
    _add_errors(app, limits)

    @app.get("/models")
    async def models() -> dict[str, list[str]]:
        """Return the models by name, with the names that each finds; none where one asks for names."""
        return {name: list(names) for name, names in (await backend.models()).items()}

    @app.get("/health")
    async def health() -> str:
        """Say that the server is there."""
        return "ok"

    @app.get("/metrics", include_in_schema=False)
    async def told() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/predict", responses=_PROBLEMS)
    async def predict(
        image: Annotated[UploadFile | None, File(description="the picture")] = None,
        names: Annotated[str, Form(description="what to find, divided by commas")] = "",
        min_score: Annotated[float, Form(ge=0, le=1, description="boxes below are left out")] = 0.3,
        model: Annotated[str, Form(description="of /models; the first one where none is named")] = "",
        url: Annotated[str, Form(description="of the picture, where the server fetches any")] = "",
    ) -> Answer:
        """Find things in a picture."""
        known = await backend.models()
        chosen = model or next(iter(known))
        if chosen not in known:
            raise Refusal(404, "no_such_model", f"{model[:80]!r} is none of {', '.join(known)}")
        asked_for = names_of(names, limits, known[chosen])
        with metrics.request(chosen, limits):
            async with asyncio.timeout(limits.timeout_s):
                data = await _picture(image, url, limits)
                found = await backend.find(chosen, Asked(data, asked_for, min_score, limits.max_pixels))
        metrics.batch.labels(chosen).observe(found.batch)
        metrics.boxes.labels(chosen).inc(len(found.boxes))
        boxes = [FoundBox(box=box, score=score, name=name) for box, score, name in found.boxes]  # type: ignore[arg-type]
        return Answer(model=chosen, height=found.height, width=found.width, boxes=boxes, seconds=found.seconds)

    return app


def hosts_of(host: str) -> tuple[str, ...]:
    """Return the names that a server which listens there may be called by."""
    return LOOPBACK if is_loopback(host) else ("*",)


def is_loopback(host: str) -> bool:
    """Tell whether what listens there is reached from this machine alone."""
    return host in ("127.0.0.1", "localhost", "::1")


def names_of(text: str, limits: Limits, fixed: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a request, each once; Refusal where there are none or too many, and the model has none."""
    if len(text) > limits.max_characters:
        raise Refusal(422, "names", f"{len(text)} characters of names; at most {limits.max_characters} are read")
    by_word = {name.lower(): name for name in reversed([each.strip() for each in re.split(r"[,\n]", text)]) if name}
    names = tuple(reversed(by_word.values()))
    if not names and not fixed:
        raise Refusal(422, "names", "no names; say what to find, divided by commas: a dog, a red frisbee")
    if len(names) > limits.max_names:
        raise Refusal(422, "names", f"{len(names)} names; at most {limits.max_names} are asked for at once")
    return names


async def _picture(image: UploadFile | None, url: str, limits: Limits) -> bytes:
    """Return the encoded picture of a request."""
    if (image is None) == (not url):
        raise Refusal(400, "no_picture", "send one picture, as the file field image")
    if image is not None:
        data = await image.read(limits.max_bytes + 1)
    else:
        if not limits.allows_urls:
            raise Refusal(403, "no_urls", "this server fetches no URLs; send the picture itself as the field image")
        if not url.startswith(PUBLIC_WEB) or "#" in url or "::" in url:
            raise Refusal(422, "url", "expected the http or https URL of a picture")
        data = await _fetched(url, limits.max_bytes)
    if len(data) > limits.max_bytes:
        raise too_large(limits.max_bytes)
    return data


async def _fetched(url: str, most: int) -> bytes:
    """Return what a public host sends, no more than a byte beyond the limit."""
    try:
        async with await WebClient(PUBLIC_WEB)() as session, session.get(url) as response:
            response.raise_for_status()
            data = bytearray()
            async for chunk in response.content.iter_chunked(MULTIPART_BYTES):
                data += chunk
                if len(data) > most:
                    break
            return bytes(data)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Refusal(502, "url", f"the URL gives no picture: {error}") from error


def _refused(refusal: Refusal) -> JSONResponse:
    headers = {"Retry-After": "1"} if refusal.status == 503 else None
    return JSONResponse({"code": refusal.code, "message": refusal.message}, refusal.status, headers)


def _add_errors(app: FastAPI, limits: Limits) -> None:
    """Give all errors one form."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        return _refused(refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _refused(Refusal(422, "field", f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 413:
            return _refused(too_large(limits.max_bytes))
        return _refused(Refusal(error.status_code, "request", str(error.detail)))


def _add_files(app: FastAPI) -> None:
    """Serve the page."""

    def serve(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
        content = resources.files("pipeline.serving").joinpath(name).read_bytes()
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}

        async def file() -> Response:
            return Response(content, media_type=kind, headers=headers)

        return file

    for path, (name, kind) in _FILES.items():
        app.add_api_route(f"/{path}", serve(name, kind), include_in_schema=False)
