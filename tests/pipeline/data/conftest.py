"""Servers on loopback that speak S3 and HTTP."""

from __future__ import annotations

import functools
import http.server
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest


@pytest.fixture
def s3_denied(s3: Any, s3_endpoint: str) -> Callable[[], AbstractContextManager[None]]:
    """Makes the S3 server refuse every request inside of a ``with``."""

    def demand_rights(after_requests: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        address = f"{s3_endpoint}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(address, data=after_requests, headers=headers)).close()

    @contextmanager
    def denied() -> Iterator[None]:
        demand_rights(b"0")
        try:
            yield
        finally:
            demand_rights(b"inf")

    return denied


@pytest.fixture
def memory() -> Iterator[Any]:
    """Give the file system ``memory://``, empty."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


@dataclass
class Web:
    """A folder behind HTTP."""

    url: str
    folder: Path
    requests: list[str] = field(default_factory=list)
    """Method and path of what was asked for."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """Serve a folder; what lies in ``denied`` is refused. The server knows no ranges and sends whole files for them."""
    folder = tmp_path / "web"
    folder.mkdir()
    served = Web("", folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            served.requests.append(f"{self.command} {self.path}")
            if self.path.startswith("/denied/"):
                self.send_error(403)
                return None
            return super().send_head()

        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield served
        server.shutdown()
