"""A web server on loopback with all the bad manners that a crawl meets."""

from __future__ import annotations

import gzip
import http.server
import io
import random
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.download.settings import DownloadConfig
from pipeline.settings import load_all

ROOT = Path(__file__).resolve().parents[3]
BOMB = gzip.compress(bytes(5_000_000))


def picture(number: int, kind: str = "PNG") -> bytes:
    """Return a small picture of noise, always the same for a number."""
    out = io.BytesIO()
    Image.frombytes("RGB", (24, 16), random.Random(number).randbytes(24 * 16 * 3)).save(out, kind)
    return out.getvalue()


@dataclass
class NastyWeb:
    """What was asked of the server, and how many at a time."""

    url: str
    requests: list[str] = field(default_factory=list)
    """Paths, in the order they came."""
    times: list[float] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    most_at_once: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    """Releases those that hang."""
    held: threading.Event = field(default_factory=threading.Event)
    """Set: ``/ok`` answers at once."""
    robots: str | bytes | int = 404
    """robots.txt, a path where it redirects, or a state."""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def times_asked(self) -> Counter[str]:
        return Counter(self.requests)

    def come(self, handler: Any) -> None:
        with self._lock:
            self.requests.append(handler.path)
            self.times.append(time.monotonic())
            self.agents.add(handler.headers["User-Agent"])
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)

    def go(self) -> None:
        with self._lock:
            self._now -= 1


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: NastyWeb

    def do_GET(self) -> None:
        self.web.come(self)
        try:
            _, name, *rest = self.path.split("/")
            getattr(self, f"answer_{name.replace('.', '_')}")(rest)
        finally:
            self.web.go()

    def send(
        self, body: bytes, kind: str = "image/png", status: int = 200, said: int | None = None, **more: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if said is None else said))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_ok(self, rest: list[str]) -> None:
        self.web.held.wait(60)
        self.send(picture(int(rest[0])))

    def answer_third(self, rest: list[str]) -> None:
        self.send(picture(int(rest[0]))) if int(rest[0]) % 3 else self.send(b"", status=404)

    def answer_jpeg(self, rest: list[str]) -> None:
        self.send(picture(1, "JPEG"), "application/octet-stream")

    def answer_html(self, rest: list[str]) -> None:
        self.send(b"<html>buy this domain</html>", "text/html")

    def answer_broken(self, rest: list[str]) -> None:
        self.send(b"\x89PNG\r\n\x1a\nnothing more", "image/png")

    def answer_short(self, rest: list[str]) -> None:
        """Says that it is shorter than it is."""
        self.close_connection = True
        self.send(picture(2), said=60)

    def answer_dies(self, rest: list[str]) -> None:
        """Says that it is longer than what it sends."""
        self.close_connection = True
        self.send(picture(3)[:200], said=100_000)

    def answer_huge(self, rest: list[str]) -> None:
        self.close_connection = True
        self.send(picture(4), said=10**12)

    def answer_endless(self, rest: list[str]) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.web.ended.is_set():
            try:
                self.wfile.write(bytes(1 << 16))
            except OSError:
                return

    def answer_slow(self, rest: list[str]) -> None:
        """A byte now and then, so that the connection is never idle for long."""
        self.close_connection = True
        self.send(b"\x89", said=1000)
        while not self.web.ended.wait(0.05):
            try:
                self.wfile.write(b"P")
                self.wfile.flush()
            except OSError:
                return

    def answer_circle(self, rest: list[str]) -> None:
        self.send(b"", status=302, Location="/circle/2" if rest[0] == "1" else "/circle/1")

    def answer_to(self, rest: list[str]) -> None:
        self.send(b"", status=302, Location=urllib.parse.unquote("/".join(rest)).replace("~", "/"))

    def answer_busy(self, rest: list[str]) -> None:
        if self.web.times_asked()[self.path] == 1:
            self.send(b"", status=429, Retry_After=rest[0])
        else:
            self.send(picture(5))

    def answer_state(self, rest: list[str]) -> None:
        self.send(b"", status=int(rest[0]))

    def answer_robots(self, rest: list[str]) -> None:
        self.send(picture(6), X_Robots_Tag=rest[0].replace("+", " "))

    def answer_robots_txt(self, rest: list[str]) -> None:
        said = self.web.robots
        if isinstance(said, str) and said.startswith("/"):
            self.send(b"", status=302, Location=said)
        elif isinstance(said, int):
            self.send(b"", status=said)
        else:
            self.send(said if isinstance(said, bytes) else said.encode(), "text/plain")

    def answer_gzip(self, rest: list[str]) -> None:
        self.send(BOMB, Content_Encoding="gzip")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def start_web() -> Iterator[Callable[..., NastyWeb]]:
    """Start servers, each at an address of its own on this machine."""
    running: list[tuple[Any, NastyWeb]] = []

    def start(host: str = "127.0.0.1") -> NastyWeb:
        web = NastyWeb("")
        web.held.set()
        handler = type("Handler", (_Handler,), {"web": web})
        server = http.server.ThreadingHTTPServer((host, 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web.url = f"http://{host}:{server.server_address[1]}"
        running.append((server, web))
        return web

    yield start
    for server, web in running:
        web.ended.set()
        web.held.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def nasty(start_web: Callable[..., NastyWeb]) -> NastyWeb:
    return start_web()


@pytest.fixture
def config() -> DownloadConfig:
    settings = load_all(ROOT / "params.yaml").download
    quick = replace(settings, timeout_s=60.0, retries=1, host_pause_s=0.0, max_mb=0.5, rows_per_shard=4)
    return replace(quick, robots_txt=False)  # which has tests of its own
