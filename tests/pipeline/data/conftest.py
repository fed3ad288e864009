"""Servers on loopback that speak S3 and HTTP."""

from __future__ import annotations

import functools
import http.server
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Start an S3 server for the session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Give an empty bucket ``raw``; everything in this process finds the server through its environment.

    ``AWS_ENDPOINT_URL`` is read by botocore, and so by s3fs, and by ``pyarrow.fs.FileSystem.from_uri``; pyarrow's
    ``S3FileSystem()`` does not read it. ``FSSPEC_S3_ENDPOINT_URL`` is read by fsspec alone.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "THEKEYID",
        "AWS_SECRET_ACCESS_KEY": "THESECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    _forget_file_systems()
    filesystem = fsspec.filesystem("s3")
    filesystem.mkdir("raw")
    yield filesystem
    filesystem.rm("raw", recursive=True)
    _forget_file_systems()


def _forget_file_systems() -> None:
    """Drop the kept instances: they were made for the environment of before."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


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
