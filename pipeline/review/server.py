"""The review page behind HTTP: on loopback, or for those who have a token.

Other pages that a browser has open cannot write here: a decision is JSON with a header of its own, which they would
have to ask leave for, and a host that another name leads to is not answered.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from glip_model.images import ImageError
from pipeline.errors import ConfigError, ShardError, StorageError
from pipeline.inspection.gallery import Page, render_page
from pipeline.review.decisions import MOST_BYTES, DecisionError, parse_decision
from pipeline.review.session import ReviewSession

TOKEN_VARIABLE = "GLIP_REVIEW_TOKEN"
"""Environment variable: what people must know to reach a server that is not on loopback alone."""
LEAST_TOKEN = 16
"""Characters of a token."""
_COOKIE, _HEADER = "glip-review", "x-glip-review"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class _Look(BaseModel):
    """Who looks at which row."""

    model_config = ConfigDict(extra="forbid")

    number: int | None
    reviewer: Annotated[str, Field(min_length=1, max_length=100)]


def is_loopback(host: str) -> bool:
    """Tell whether nothing but this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(host: str, token: str | None) -> str | None:
    """Return the token that visitors must show, None on loopback without one.

    Raises:
        ConfigError: others can reach the host, and there is no token or a short one.
    """
    if token is not None and len(token) < LEAST_TOKEN:
        raise ConfigError(f"{TOKEN_VARIABLE} has {len(token)} characters; take at least {LEAST_TOKEN}")
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: others could read the pictures and decide; set {TOKEN_VARIABLE} in the environment, for "
            f"example by export {TOKEN_VARIABLE}=$(openssl rand -hex 16), or leave --host out"
        )
    return token


def make_app(session: ReviewSession, page: Page, token: str | None = None) -> FastAPI:
    """Return the server of a session; with a token, visitors must have it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    html = render_page(page, session.pairs)

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refusal(request, token)
        response = await answer(request) if refused is None else refused
        response.headers.update(_SAFE)
        return response

    @app.get("/")
    def show(token: str | None = None) -> Response:  # the guard has looked at the token: it moves into a cookie
        if token is None:
            return HTMLResponse(html)
        response = RedirectResponse("/", 303)
        response.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
        return response

    @app.get("/favicon.ico")
    def icon() -> Response:  # browsers ask for one
        return Response(status_code=204)

    @app.get("/picture/{number}")
    def picture(number: int) -> Response:
        try:
            return Response(session.picture(number), media_type="image/jpeg")
        except (IndexError, ImageError, ShardError) as error:
            raise HTTPException(404, str(error)) from error

    @app.get("/state")
    def state(since: int = 0) -> dict[str, object]:
        return session.state(since)

    @app.post("/open")
    def look(said: _Look) -> dict[str, object]:
        session.look(said.number, said.reviewer)
        return {}

    @app.post("/decisions")
    async def decide(request: Request) -> dict[str, object]:
        try:
            decision = parse_decision(await _body(request))
            await run_in_threadpool(session.save, decision)
        except DecisionError as error:
            raise HTTPException(400, str(error)) from error
        except StorageError as error:
            raise HTTPException(503, str(error)) from error
        return {"saved": decision.id}

    return app


def serve(app: FastAPI, host: str, port: int, on_start: Callable[[str], None]) -> None:
    """Serve until the process is told to end.

    Args:
        app: what ``make_app`` returned.
        host: to listen at.
        port: 0 takes a free one.
        on_start: told the address once it is open.

    Raises:
        ConfigError: it cannot be listened at.
    """
    # Addresses may have a token in them, which no log gets.
    config = uvicorn.Config(app, host=host, port=port, access_log=False, log_level="warning", lifespan="off")
    try:
        listening = config.bind_socket()
        listening.listen(config.backlog)  # who comes at once waits for the server, which starts below
    except (SystemExit, OSError) as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be listened at; name another port") from error
    shown = f"[{host}]" if ":" in host else host
    on_start(f"http://{shown}:{listening.getsockname()[1]}/")
    uvicorn.Server(config).run([listening])


async def _body(request: Request) -> bytes:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BYTES:
            raise DecisionError(f"more than {MOST_BYTES:,} bytes")
    return data


def _refusal(request: Request, token: str | None) -> Response | None:
    """Return the answer to those who may not come in; None for others."""
    if token is None and not _is_named(request.headers.get("host", ""), _LOOPBACK_NAMES):
        return JSONResponse({"detail": "this server answers to localhost alone"}, 421)
    if token is not None:
        shown = request.query_params.get("token") or request.cookies.get(_COOKIE) or ""
        if not hmac.compare_digest(shown.encode(), token.encode()):
            return JSONResponse({"detail": "open the address with ?token=… once"}, 401)
    if request.method == "POST" and _HEADER not in request.headers:
        return JSONResponse({"detail": "not from this page"}, 403)
    return None


def _is_named(host: str, names: Sequence[str]) -> bool:
    return any(host == name or host.startswith(f"{name}:") for name in names)
