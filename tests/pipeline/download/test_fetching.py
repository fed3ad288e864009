"""One worker against a server that is slow, lies, redirects in circles, sends HTML and dies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from pipeline.download import fetching
from pipeline.download.fetching import REASONS, Fetcher, Picture, fetch_all, is_opted_out, retry_after
from pipeline.download.settings import DownloadConfig


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.0)


def fetch(config: DownloadConfig, urls: list[str | None], *roots: str) -> list[Picture | str]:
    found: dict[int, Picture | str] = {}

    def take(number: int, what: Picture | str) -> None:
        assert number not in found
        found[number] = what

    fetch_all(Fetcher(config, 1_000_000, roots=roots), urls, take)
    return [found[number] for number in range(len(urls))]


def outcomes(config: DownloadConfig, web: Any, *paths: str) -> list[str]:
    found = fetch(config, [f"{web.url}{path}" for path in paths], web.url)
    return [each if isinstance(each, str) else each.suffix for each in found]


@pytest.mark.parametrize(
    ("path", "outcome", "times"),
    [
        ("/ok/1", "png", 1),
        ("/jpeg", "jpg", 1),
        ("/third/3", "http_404", 1),
        ("/html", "not_a_picture", 1),
        ("/broken", "image_unreadable", 1),
        ("/dies", "broken_off", 2),
        ("/huge", "too_large", 1),
        ("/endless", "too_large", 1),
        ("/gzip", "image_unreadable", 1),
        ("/state/500", "http_500", 2),
        ("/state/403", "http_403", 1),
        ("/to/..~state~404", "http_404", 1),
        ("/to/~ok~7", "png", 1),
        ("/to/file:~~~etc~passwd", "url_malformed", 1),
        ("/to/http:~~%5B", "url_malformed", 1),
    ],
)
def test_every_url_ends_as_a_picture_or_a_reason(
    nasty: Any, config: DownloadConfig, path: str, outcome: str, times: int
) -> None:
    assert outcomes(config, nasty, path) == [outcome]
    assert nasty.times_asked()[path] == times


def test_a_file_that_is_longer_than_its_server_says_is_not_half_a_picture(nasty: Any, config: DownloadConfig) -> None:
    (found,) = outcomes(config, nasty, "/short")
    assert found in ("image_unreadable", "broken_off")  # as the rest comes with the first bytes, or after them


def test_a_server_that_drips_is_given_up_when_its_time_is_over(nasty: Any, config: DownloadConfig) -> None:
    assert outcomes(replace(config, timeout_s=0.5), nasty, "/slow") == ["timeout"]
    assert nasty.times_asked()["/slow"] == 2


def test_redirects_are_bounded(nasty: Any, config: DownloadConfig) -> None:
    assert outcomes(replace(config, max_redirects=3), nasty, "/circle/1") == ["redirects"]
    assert len(nasty.requests) == 4
    assert outcomes(replace(config, max_redirects=0), nasty, "/to/~ok~1", "/ok/1") == ["redirects", "png"]


@pytest.mark.parametrize("url", ["", "no url", "ftp://a.example/b.png", "file:///etc/passwd", "http://", "http://[/a"])
def test_what_is_no_address_of_the_web_is_malformed(config: DownloadConfig, url: str) -> None:
    assert fetch(config, [url, None]) == ["url_malformed", "row_malformed"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "127.1"])
def test_no_address_that_is_not_public_is_asked_not_even_by_a_redirect(
    nasty: Any, config: DownloadConfig, host: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bystander:
        target = f"http://{host}:{bystander.getsockname()[1]}/a.png"
        urls = [target, f"{nasty.url}/to/{target.replace('/', '~')}"]
        for found in fetch(config, urls, nasty.url):
            assert found == ("url_malformed" if host == "127.1" else "address_refused")
        bystander.settimeout(0)
        with pytest.raises(BlockingIOError):
            bystander.accept()
    assert len(nasty.requests) == 1


def test_metadata_services_of_clouds_are_refused(config: DownloadConfig) -> None:
    found = fetch(config, ["http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/latest/"])
    assert found == ["address_refused"] * 2


def test_a_name_that_means_a_private_address_is_refused(config: DownloadConfig, monkeypatch: Any) -> None:
    async def resolve(self: Any, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        return [{"hostname": host, "host": "10.0.0.7", "port": port, "family": family, "proto": 0, "flags": 0}]

    monkeypatch.setattr("aiohttp.resolver.DefaultResolver.resolve", resolve)
    assert fetch(config, ["http://pictures.example/a.png"]) == ["address_refused"]


def test_a_busy_host_is_asked_again_when_it_says(nasty: Any, config: DownloadConfig) -> None:
    assert outcomes(config, nasty, "/busy/1") == ["png"]
    assert nasty.times[1] - nasty.times[0] > 0.9
    assert outcomes(replace(config, max_wait_s=5.0), nasty, "/busy/3600") == ["http_429"]
    assert nasty.times_asked()["/busy/3600"] == 1


@pytest.mark.parametrize(
    ("said", "is_kept_out"),
    [
        ("noai", True),
        ("noindex,+NoImageAI", True),
        ("nofollow", False),
        ("otherbot:+noai", False),
        ("glip-self-training:+noai", True),
        ("otherbot:+nofollow,+noai", False),
        ("noai,+unavailable_after:+25+Jun+2030+15:00:00+PST", True),
        ("unavailable_after:+25+Jun+2010,+noai", True),
        ("max-snippet:+5", False),
    ],
)
def test_sites_that_opt_out_are_left_alone(nasty: Any, config: DownloadConfig, said: str, is_kept_out: bool) -> None:
    path = f"/robots/{said}"
    assert outcomes(config, nasty, path) == ["opted_out" if is_kept_out else "png"]
    assert outcomes(replace(config, opt_out=()), nasty, path) == ["png"]
    assert nasty.agents == {config.user_agent}


@given(st.text(max_size=40))
def test_no_header_is_too_odd(said: str) -> None:
    headers = CIMultiDictProxy(CIMultiDict({"X-Robots-Tag": said, "Retry-After": said}))
    assert is_opted_out(headers, ("noai",), "me") in (True, False)
    wait_s = retry_after(headers)
    assert wait_s is None or wait_s >= 0


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after({"Retry-After": "120"}) == 120
    soon = retry_after({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)})
    assert soon is not None
    assert 30 < soon <= 60
    assert retry_after({"Retry-After": format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)}) == 0
    assert retry_after({"Retry-After": "later"}) is None
    assert retry_after({}) is None


def test_a_host_gets_so_many_requests_at_a_time_and_no_more(
    start_web: Callable[..., Any], config: DownloadConfig
) -> None:
    one, other = start_web(), start_web("127.0.0.2")
    config = replace(config, connections=32, connections_per_host=3)
    urls = [f"{web.url}/ok/{number}" for number in range(30) for web in (one, other)]
    one.held.clear()
    found: dict[int, Any] = {}

    def take(number: int, what: Any) -> None:
        found[number] = what
        if sum(number % 2 for number in found) == 30:  # the one that hangs keeps nobody from the other
            one.held.set()

    fetch_all(Fetcher(config, 1_000_000, roots=[one.url, other.url]), list(urls), take)
    assert all(isinstance(each, Picture) for each in found.values())
    assert one.most_at_once <= 3
    assert other.most_at_once <= 3


def test_requests_to_a_host_keep_their_distance(nasty: Any, config: DownloadConfig) -> None:
    assert outcomes(replace(config, host_pause_s=0.05), nasty, *(f"/ok/{n}" for n in range(8))) == ["png"] * 8
    assert nasty.times[-1] - nasty.times[0] > 7 * 0.05 * 0.8


def test_a_host_that_does_not_answer_is_given_up(config: DownloadConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    config = replace(config, retries=0, connections_per_host=1)
    found = fetch(config, [f"{url}/{number}.png" for number in range(15)], url)
    assert found == ["connection_failed"] * fetching.HOST_FAILURES + ["host_down"] * 5


def test_reasons_are_listed() -> None:
    assert {reason for _, reason in fetching._CAUSES} | fetching.PASSING - {
        f"http_{state}" for state in fetching._PASSING_STATES
    } <= set(REASONS)
