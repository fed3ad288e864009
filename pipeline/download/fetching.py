"""URLs to pictures, politely: few requests a host at a time, pauses where a host wants them, opt-outs obeyed.

Everything that a server says is untrusted: lengths, types, encodings, where it redirects to. Which hosts are asked at
all is ``store.web``'s to say, of every redirect anew.
"""

from __future__ import annotations

import asyncio
import io
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TypeVar

import aiohttp
from multidict import CIMultiDictProxy
from PIL import Image
from yarl import URL

from glip_model.images import ImageError, check_image
from pipeline.download.robots import MAX_BYTES, Rules, RulesByHost
from pipeline.download.settings import DownloadConfig
from pipeline.store.web import PUBLIC_WEB, OutsideError, WebClient

REFUSED = "address_refused"
"""Reason of a URL, or a redirect, that leads to an address which is not public."""
OPTED_OUT = "opted_out"
"""Reason of a picture whose server says that it is not for machines that learn."""
ROBOTS = "robots_refused"
"""Reason of a URL that robots.txt of its host forbids."""
_PASSING_STATES = frozenset({429, 500, 502, 503, 504})
"""Answers that may be others when asked again."""
PASSING = frozenset(
    {"dns_failed", "connection_failed", "timeout", "broken_off", "host_down", *(f"http_{s}" for s in _PASSING_STATES)}
)
"""Reasons that may be gone another day."""
REASONS = (
    *(
        "row_malformed",
        "url_malformed",
        REFUSED,
        OPTED_OUT,
        ROBOTS,
        "redirects",
        "tls_failed",
        "too_large",
        "image_too_large",
    ),
    *("not_a_picture", "image_unreadable", "dns_failed", "connection_failed", "timeout", "broken_off", "host_down"),
)
"""Why a URL is no picture, besides ``http_404`` and other states."""
HOST_FAILURES = 10
"""A host that fails so often in a row to be reached or to answer is not asked again for the rest of a shard."""
FIRST_PAUSE_S = 0.5
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
"""Of the formats that are pictures; what else Pillow can open is none of the web's."""
_ROBOTS_SETTINGS = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
"""Words of ``X-Robots-Tag`` before a colon that name no robot."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHECKED_SIDE = 64
_CHUNK_BYTES = 1 << 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture:
    """What came of a URL."""

    data: bytes
    suffix: str
    height: int
    width: int


class _Failure(Exception):
    """A URL did not become a picture."""

    def __init__(self, reason: str, is_final: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.may_pass = reason, not is_final and reason in PASSING


@dataclass
class _Host:
    """How one host is treated: requests at a time, when it may be asked next, how often in a row it failed."""

    slots: asyncio.Semaphore
    pause_s: float
    failures: int = 0
    next_s: float = field(default=0.0)

    async def turn(self) -> None:
        """Wait until the host may be asked."""
        while (wait_s := self.next_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        self.next_s = time.monotonic() + self.pause_s

    def rest(self, seconds: float) -> None:
        """Leave the host alone for a while."""
        self.next_s = max(self.next_s, time.monotonic() + seconds)


_Read = Callable[[aiohttp.ClientResponse, _Host], Awaitable[T]]
"""Reads an answer that is no redirect."""


class Fetcher:
    """Fetches the pictures of one worker.

    Args:
        config: how.
        max_pixels: pictures with more are refused.
        workers: that share the limits of hosts.
        roots: URLs whose hosts are asked wherever they are, besides all public ones.
    """

    def __init__(self, config: DownloadConfig, max_pixels: int, workers: int = 1, roots: Sequence[str] = ()) -> None:
        self._config, self._max_pixels = config, max_pixels
        self._max_bytes = int(config.max_mb * 1e6)
        self._roots = (*PUBLIC_WEB, *(root for root in roots if root.startswith(PUBLIC_WEB)))
        self._at_once = max(1, config.connections_per_host // workers)
        self._pause_s = config.host_pause_s * workers
        self._hosts: dict[str, _Host] = {}
        self._rules = RulesByHost(lambda host: self._patiently(partial(self._rules_of, host)))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hold connections for the length of the block."""
        client = WebClient(self._roots, self._config.connections)
        self._connections = asyncio.Semaphore(self._config.connections)
        # Encodings are refused: a picture is packed already, and what unpacks to gigabytes is not unpacked.
        headers = {"User-Agent": self._config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
        session = await client(headers=headers, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        async with session:
            self._session = session
            yield

    async def fetch(self, url: str) -> Picture | str:
        """Return the picture of a URL, or one of ``REASONS``; inside of ``open``."""
        return await self._patiently(partial(self._picture_of, url))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T | str:
        """Return what is answered, asked again where that may help, or the reason why nothing is."""
        pause_s = FIRST_PAUSE_S
        for attempt in range(self._config.retries + 1):
            try:
                return await ask()
            except _Failure as failure:
                if not failure.may_pass or attempt == self._config.retries:
                    return failure.reason
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s *= 2
        raise AssertionError

    async def _picture_of(self, address: str) -> Picture:
        """Ask for a URL, and for those that it redirects to."""
        try:
            url = URL(address)
        except ValueError as error:
            raise _Failure("url_malformed") from error
        found = await self._follow(url, self._read, self._config.robots_txt)
        return await asyncio.to_thread(self._look, *found)

    async def _rules_of(self, host: URL) -> Rules:
        """Ask a host for its robots.txt; what leads nowhere forbids nothing."""
        try:
            return await self._follow(host / "robots.txt", self._read_rules, False)
        except _Failure as failure:
            if failure.reason in ("redirects", "url_malformed"):
                return Rules()
            raise

    async def _follow(self, url: URL, read: _Read[T], obeys_robots: bool) -> T:
        for _ in range(self._config.max_redirects + 1):
            if url.scheme not in ("http", "https") or not url.raw_host:
                raise _Failure("url_malformed")
            if obeys_robots:
                rules = await self._rules.of(url.origin())
                if isinstance(rules, str):  # whatever its robots.txt says, it cannot be asked for its pictures either
                    raise _Failure(rules, is_final=True)
                if not rules.allow(url.raw_path_qs):
                    raise _Failure(ROBOTS)
            found = await self._ask(url, read)
            if not isinstance(found, URL):
                return found
            url = found
        raise _Failure("redirects")

    async def _ask(self, url: URL, read: _Read[T]) -> URL | T:
        """Send one request when the host's turn has come; return where it redirects, or what is read."""
        name = url.raw_host or ""
        if name not in self._hosts:
            self._hosts[name] = _Host(asyncio.Semaphore(self._at_once), self._pause_s)
        host = self._hosts[name]
        async with host.slots:  # and then a connection: who waits for a busy host keeps none from others
            await host.turn()
            if host.failures >= HOST_FAILURES:
                raise _Failure("host_down", is_final=True)
            async with self._connections:
                try:
                    async with asyncio.timeout(self._config.timeout_s):
                        async with self._session.get(url, allow_redirects=False) as response:
                            host.failures = 0
                            if response.status in _REDIRECTS and "Location" in response.headers:
                                self._heed_header(response)
                                return url.join(URL(response.headers["Location"]))
                            return await read(response, host)
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    failure = _explain(error)
                    host.failures += failure.reason in ("dns_failed", "connection_failed", "timeout")
                    raise failure from error

    async def _read(self, response: aiohttp.ClientResponse, host: _Host) -> tuple[bytes, str]:
        """Return body and type of a picture."""
        self._heed_header(response)
        self._expect_answer(response, host)
        if (response.content_length or 0) > self._max_bytes:
            raise _Failure("too_large")
        data = await _first_bytes(response, self._max_bytes)
        if len(data) > self._max_bytes:  # whatever it said before
            raise _Failure("too_large")
        return data, response.headers.get("Content-Type", "")

    async def _read_rules(self, response: aiohttp.ClientResponse, host: _Host) -> Rules:
        """Return the rules of a robots.txt; a host that has none forbids nothing."""
        if 400 <= response.status < 500 and response.status not in _PASSING_STATES:
            return Rules()
        self._expect_answer(response, host)
        return Rules.parse(await _first_bytes(response, MAX_BYTES), self._config.user_agent)

    def _heed_header(self, response: aiohttp.ClientResponse) -> None:
        if is_opted_out(response.headers, self._config.opt_out, self._config.user_agent):
            raise _Failure(OPTED_OUT)

    def _expect_answer(self, response: aiohttp.ClientResponse, host: _Host) -> None:
        """Raise _Failure for a state other than 200; the host rests for as long as it wants."""
        if response.status == 200:
            return
        wait_s = retry_after(response.headers)
        is_final = wait_s is not None and wait_s > self._config.max_wait_s
        if wait_s is not None and response.status in _PASSING_STATES:
            host.rest(min(wait_s, self._config.max_wait_s))
        raise _Failure(f"http_{response.status}", is_final)

    def _look(self, data: bytes, kind: str) -> Picture:
        """Make sure that a file is a picture."""
        try:
            (height, width), _, _ = check_image(data, self._max_pixels, _CHECKED_SIDE)
            with Image.open(io.BytesIO(data)) as image:
                suffix = SUFFIXES.get(image.format or "")
        except ImageError as error:
            is_other = error.reason == "image_unreadable" and not kind.startswith("image/")
            raise _Failure("not_a_picture" if is_other else error.reason) from error
        if suffix is None:
            raise _Failure("not_a_picture")
        return Picture(data, suffix, height, width)


async def _first_bytes(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return a body, or more than so many bytes of it where it has more."""
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        data += chunk
        if len(data) > most:
            break
    return bytes(data)


def is_opted_out(headers: CIMultiDictProxy[str], words: Sequence[str], user_agent: str) -> bool:
    """Tell whether ``X-Robots-Tag`` says one of some words, to everybody or to us: ``noai``, ``glip-robot: noai``."""
    refused = {word.lower() for word in words}
    for line in headers.getall("X-Robots-Tag", ()):
        is_meant = True
        for piece in line.lower().split(","):
            whom, colon, said = (part.strip() for part in piece.partition(":"))
            if colon and whom in _ROBOTS_SETTINGS:
                continue
            if colon:  # and what follows is for the same
                is_meant = whom in user_agent.lower()
            if is_meant and (said if colon else whom) in refused:
                return True
    return False


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, as a number or a date; None where it says nothing."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


_CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (OutsideError, REFUSED),
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorDNSError, "dns_failed"),
    (aiohttp.ClientSSLError, "tls_failed"),
    (ssl.SSLError, "tls_failed"),
    (aiohttp.ClientPayloadError, "broken_off"),
    (aiohttp.ServerDisconnectedError, "broken_off"),
    (aiohttp.ClientResponseError, "broken_off"),
    (ValueError, "url_malformed"),
)
"""What is raised, the special before the general, and what it means; all else is a failed connection."""


def _explain(error: BaseException) -> _Failure:
    return _Failure(next((reason for kind, reason in _CAUSES if isinstance(error, kind)), "connection_failed"))


def fetch_all(fetcher: Fetcher, urls: Sequence[str | None], take: Callable[[int, Picture | str], None]) -> None:
    """Fetch many pictures side by side.

    Args:
        fetcher: not open yet.
        urls: None is ``row_malformed``.
        take: is given the number of each and what came of it, as it comes.
    """

    async def fetch_one(number: int, url: str | None) -> None:
        take(number, "row_malformed" if url is None else await fetcher.fetch(url))

    async def run() -> None:
        async with fetcher.open():
            tasks = [asyncio.create_task(fetch_one(number, url)) for number, url in enumerate(urls)]
            await asyncio.gather(*tasks)  # whatever one raises, such as a full disk, ends all with the loop

    asyncio.run(run())
