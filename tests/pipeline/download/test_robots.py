"""robots.txt: what it means, against a slow oracle, and how hosts are asked for it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pipeline.download import fetching, robots
from pipeline.download.fetching import Fetcher, Picture, fetch_all
from pipeline.download.robots import MAX_BYTES, Rules, RulesByHost
from pipeline.download.settings import DownloadConfig

ME = "glip-self-training (collects pictures)"


def rules(*lines: str, agent: str = ME) -> Rules:
    return Rules.parse("\n".join(lines).encode(), agent)


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/", "/a.jpg", True),
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish.asp", False),
        ("/fish/", "/fish", False),
        ("/*.jpg$", "/photos/a.jpg", True),
        ("/*.jpg$", "/a.jpg?width=3", False),
        ("/*.jpg", "/a.jpg?width=3", True),
        ("/a*b*c$", "/a-b-b-c", True),
        ("/a*b*c$", "/a-c-b", False),
        ("/a*a$", "/a", False),
        ("*", "/anything", True),
        ("/a$b", "/a$b", True),
        ("/foo/bar/ツ", "/foo/bar/%E3%83%84", True),
        ("/foo/%62%61r", "/foo/bar", True),
        ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html", True),
        ("/x?q=", "/x?q=1", True),
    ],
)
def test_patterns_as_the_rfc_has_them(pattern: str, path: str, fits: bool) -> None:
    assert rules("User-agent: *", f"Disallow: {pattern}").allow(path) is not fits


def test_the_longest_rule_decides_and_of_two_the_one_that_allows() -> None:
    found = rules("user-agent: *", "disallow: /", "allow: /shop/", "disallow: /shop/cart", "allow: /shop/cart")
    assert [found.allow(path) for path in ("/a", "/shop/1.jpg", "/shop/cart/2.jpg")] == [False, True, True]
    assert rules("User-agent: *", "Disallow:").allow("/a")  # nothing is forbidden


@pytest.mark.parametrize(
    ("agent", "is_kept_out"),
    [
        ("*", True),
        ("GLIP-Self-Training", True),
        ("glip-self-training/1.0", True),
        ("glip", False),
        ("otherbot", False),
        ("", False),
    ],
)
def test_groups_are_for_everybody_or_for_a_word_of_ours(agent: str, is_kept_out: bool) -> None:
    assert rules(f"User-agent: {agent}", "Disallow: /").allow("/a") is not is_kept_out


def test_groups_that_name_us_stand_in_for_that_of_everybody() -> None:
    text = ["User-agent: *", "Disallow: /", "", "# ours", "User-agent: other", "User-agent: glip-self-training"]
    text += ["Crawl-delay: 3", "Disallow: /a # not there", "User-agent: glip-self-training", "Disallow: /b"]
    assert [rules(*text).allow(path) for path in ("/a", "/b", "/c")] == [False, False, True]
    assert [rules(*text, agent="other").allow(path) for path in ("/a", "/b")] == [False, True]
    assert [rules(*text, agent="third").allow(path) for path in ("/a", "/c")] == [False, False]


def test_of_a_long_file_so_much_is_read_and_no_half_line() -> None:
    head = b"\xef\xbb\xbfUser-agent: *\r\nDisallow: /a\r\n"
    found = Rules.parse(head + b"#" * (MAX_BYTES - len(head) - 10) + b"\nDisallow: /\nDisallow: /b", ME)
    assert [found.allow(path) for path in ("/a", "/c")] == [False, True]


PATHS = st.text(st.sampled_from("/ab*$%?é"), max_size=8).map(lambda text: f"/{text}")


@given(st.lists(st.tuples(st.booleans(), PATHS), max_size=5), PATHS)
def test_rules_mean_what_expressions_mean(lines: list[tuple[bool, str]], path: str) -> None:
    def expression(pattern: str) -> str:
        end = r"\Z" if pattern.endswith("$") else ""
        pieces = pattern.removesuffix("$").split("*")
        return ".*".join(re.escape(robots._plain(piece)) for piece in pieces) + end

    text = [f"{'Allow' if is_allowed else 'Disallow'}: {pattern}" for is_allowed, pattern in lines]
    fitting = [
        (len(robots._plain(pattern.removesuffix("$").replace("*", ""))) + pattern.count("*"), is_allowed)
        for is_allowed, pattern in lines
        if re.match(expression(pattern), robots._plain(path), re.DOTALL)
    ]
    assert rules("User-agent: *", *text).allow(path) is max(fitting, default=(0, True))[1]


@given(st.binary(max_size=200), st.text(max_size=20))
def test_no_file_is_too_odd(data: bytes, path: str) -> None:
    assert Rules.parse(b"User-agent: *\n" + data, ME).allow(path) in (True, False)


def test_rules_are_forgotten_where_there_is_no_room_and_read_once_by_all_who_wait(monkeypatch: Any) -> None:
    monkeypatch.setattr(robots, "KEPT_BYTES", 1000)
    asked: list[str] = []

    async def read(host: URL) -> Rules | str:
        asked.append(str(host))
        await asyncio.sleep(0)
        return Rules.parse(b"User-agent: *\nDisallow: /" + b"a" * 350, ME)

    async def ask() -> None:
        known = RulesByHost(read)
        await asyncio.gather(*(known.of(URL("http://a.example")) for _ in range(5)))
        for host in ("b", "c", "b", "a"):
            await known.of(URL(f"http://{host}.example"))
            assert known._bytes <= 1000

    asyncio.run(ask())
    assert asked == [f"http://{host}.example" for host in "abca"]


@pytest.fixture
def obedient(config: DownloadConfig, monkeypatch: pytest.MonkeyPatch) -> DownloadConfig:
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.0)
    return replace(config, robots_txt=True)


def outcomes(config: DownloadConfig, urls: list[str], *roots: str) -> list[str]:
    found: dict[int, Picture | str] = {}
    fetch_all(Fetcher(config, 1_000_000, roots=roots), list(urls), found.__setitem__)
    results = [found[number] for number in range(len(urls))]
    return [each if isinstance(each, str) else each.suffix for each in results]


SAID = "User-agent: *\nDisallow: /ok/1\n"


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (SAID, ["robots_refused", "png"]),
        (SAID.replace("*", "glip-self-training"), ["robots_refused", "png"]),
        (SAID.replace("*", "otherbot"), ["png", "png"]),
        (404, ["png", "png"]),
        (403, ["png", "png"]),
        (b"\x89PNG\r\n\xff\xfe", ["png", "png"]),
        ("<html>not here</html>", ["png", "png"]),
        ("/robots.txt", ["png", "png"]),  # in a circle
        (500, ["http_500", "http_500"]),
        (429, ["http_429", "http_429"]),
    ],
)
def test_hosts_are_asked_what_they_forbid(nasty: Any, obedient: DownloadConfig, said: Any, outcome: list[str]) -> None:
    nasty.robots = said
    urls = [f"{nasty.url}/ok/1", f"{nasty.url}/ok/2"]
    assert outcomes(obedient, urls, nasty.url) == outcome
    assert nasty.requests[0] == "/robots.txt"
    asked = nasty.times_asked()
    assert asked["/robots.txt"] == {500: 2, 429: 2, "/robots.txt": obedient.max_redirects + 1}.get(said, 1)
    assert [asked["/ok/1"], asked["/ok/2"]] == [int(each == "png") for each in outcome]
    assert outcomes(replace(obedient, robots_txt=False), urls, nasty.url) == ["png", "png"]


def test_a_host_is_asked_once_however_many_pictures_it_has(nasty: Any, obedient: DownloadConfig) -> None:
    nasty.robots = SAID
    found = outcomes(obedient, [f"{nasty.url}/ok/{number}" for number in range(20, 50)], nasty.url)
    assert found == ["png"] * 30
    assert nasty.times_asked()["/robots.txt"] == 1


def test_redirects_lead_to_hosts_that_are_asked_as_well(
    start_web: Callable[..., Any], obedient: DownloadConfig
) -> None:
    one, other = start_web(), start_web("127.0.0.2")
    one.robots, other.robots = f"/to/{other.url.replace('/', '~')}~robots.txt", SAID  # which one has, too
    urls = [f"{one.url}/to/{other.url.replace('/', '~')}~ok~{number}" for number in (1, 2)]
    urls.append(f"{one.url}/ok/1")
    assert outcomes(obedient, urls, one.url, other.url) == ["robots_refused", "png", "robots_refused"]


def test_hosts_that_are_not_public_are_not_asked_for_robots_either(obedient: DownloadConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bystander:
        url = f"http://127.0.0.1:{bystander.getsockname()[1]}/a.png"
        assert outcomes(obedient, [url]) == ["address_refused"]
        bystander.settimeout(0)
        with pytest.raises(BlockingIOError):
            bystander.accept()


def test_a_host_that_drips_its_robots_is_given_up(nasty: Any, obedient: DownloadConfig) -> None:
    nasty.robots = "/slow"
    assert outcomes(replace(obedient, timeout_s=0.5), [f"{nasty.url}/ok/1"], nasty.url) == ["timeout"]
    nasty.robots = "/endless"  # of which the first bytes count
    assert outcomes(obedient, [f"{nasty.url}/ok/1"], nasty.url) == ["png"]
