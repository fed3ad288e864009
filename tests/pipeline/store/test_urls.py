"""Paths and URLs as text: secrets that must not show, joining, braces as a shell has them."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.read_errors import describe
from pipeline.store.urls import expand_braces, has_credentials, join, redact

# What may be secret


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/a?b#c.jpg", "/data/a?b#c.jpg"),
        ("data/me@home/a.jpg", "data/me@home/a.jpg"),
        ("s3://bucket/key.jpg", "s3://bucket/key.jpg"),
        ("s3://bucket/photo@2x.jpg", "s3://bucket/photo@2x.jpg"),
        ("http://host:8080/photo@2x.jpg", "http://host:8080/photo@2x.jpg"),
        ("s3://KEY:SECRET@bucket/key", "s3://***@bucket/key"),
        ("s3://KEY:SEC/RET+x@bucket/key", "s3://***@bucket/key"),
        ("https://me:p%40ss@host:8080/a", "https://***@host:8080/a"),
        ("https://me:p@ss@host/a", "https://***@host/a"),
        ("https://TOKEN@host/a", "https://***@host/a"),
        ("https://host/a?X-Amz-Signature=abc&X-Amz-Credential=def", "https://host/a?***"),
        ("https://host/a#token=abc", "https://host/a"),
        ("https://host/a#x?y", "https://host/a?***"),
        ("s3://b/a.tar#bytes=5-9", "s3://b/a.tar#bytes=5-9"),
        ("https://host/a.tar?token=abc#bytes=5-9", "https://host/a.tar?***#bytes=5-9"),
        ("simplecache::https://me:pass@host/a?sig=abc", "simplecache::https://***@host/a?***"),
        ("zip://a.jpg::s3://KEY:SECRET@b/a.zip", "zip://a.jpg::s3://***@b/a.zip"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("abfs://me:pass@account/a", "abfs://***@account/a"),
        ("http://[broken/a?b", "http://[broken/a?***"),
    ],
)
def test_secrets_are_cut_from_urls(url: str, expected: str) -> None:
    assert redact(url) == expected
    assert has_credentials(url) == ("@" in expected and "***" in expected)


secrets = st.text(st.sampled_from("ab1/+=:#?%@&. "), max_size=8).map(lambda text: f"SEC{text}RET")


@given(secrets, st.sampled_from(["s3://KEYID:{}@bucket/a", "https://me:{}@host/a", "zip://b::s3://KEYID:{}@bucket/a"]))
def test_no_password_is_ever_shown(secret: str, pattern: str) -> None:
    url = pattern.format(secret)
    assert has_credentials(url)
    assert "SEC" not in redact(url)
    assert "RET" not in redact(url)
    bucket = url.rpartition("://")[2].partition("/")[0]  # what S3 takes for one
    assert "SEC" not in describe(ValueError(f'Invalid bucket name "{bucket}"'), url)


@given(secrets)
def test_no_query_is_ever_shown(secret: str) -> None:
    url = f"https://host/a?X-Amz-Signature={quote(secret)}"
    assert "SEC" not in redact(url)
    for text in (url, f"403, url='{url}'", f"bad value {secret}", f"bad value {quote(secret)}"):
        assert "SEC" not in describe(OSError(text), url)


def test_what_a_file_system_says_is_one_short_line() -> None:
    assert describe(FileNotFoundError("s3://b/a"), "s3://b/a") == "no such file"
    assert describe(OSError("two\n  lines"), "s3://b/a") == "two lines"
    assert describe(KeyError(), "s3://b/a") == "KeyError"
    assert len(describe(OSError("x" * 1000), "/a")) == 300
    moved = OSError("moved to https://you:pass@elsewhere/a?token=abc")
    assert describe(moved, "https://host/a") == "moved to https://***@elsewhere/a?***"


# Taken together and apart


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("data/raw", "a/b.json", "data/raw/a/b.json"),
        ("s3://bucket/raw/", "a.json", "s3://bucket/raw/a.json"),
        ("data", "/abs/a.json", "/abs/a.json"),
        ("s3://bucket", "hf://datasets/x/a.json", "hf://datasets/x/a.json"),
        ("data", "simplecache::s3://bucket/a.json", "simplecache::s3://bucket/a.json"),
        ("", "a.json", "a.json"),
        ("/", "a.json", "/a.json"),
    ],
)
def test_relative_paths_start_at_the_root(root: str, path: str, expected: str) -> None:
    assert join(root, path) == expected


@given(st.integers(0, 50), st.integers(0, 60), st.integers(2, 6))
def test_braces_count_from_one_number_to_another(first: int, length: int, width: int) -> None:
    numbers = range(first, first + length + 1)
    assert expand_braces(f"a-{{{first}..{numbers[-1]}}}.tar") == [f"a-{i}.tar" for i in numbers]
    start, end = str(first).zfill(width), str(numbers[-1]).zfill(width)
    if start.startswith("0"):
        assert expand_braces(f"a-{{{start}..{end}}}.tar") == [f"a-{str(i).zfill(width)}.tar" for i in numbers]
    assert expand_braces(f"{{{numbers[-1]}..{first}}}") == [str(i) for i in reversed(numbers)]


@given(st.lists(st.lists(st.text("ab", max_size=2), min_size=2, max_size=3), max_size=3))
def test_braces_give_every_combination_once(choices: list[list[str]]) -> None:
    expected = [""]
    for some in choices:
        expected = [f"{before}{choice}/" for before in expected for choice in some]
    pattern = "".join(f"{{{','.join(some)}}}/" for some in choices)
    assert expand_braces(pattern) == list(dict.fromkeys(expected))


@given(st.text("{},.ab01", max_size=12))
def test_braces_of_any_kind_end(pattern: str) -> None:
    expanded = expand_braces(pattern)
    assert expanded
    assert len(set(expanded)) == len(expanded)
    if not {"{", "}"} <= set(pattern):
        assert expanded == [pattern]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("plain", "plain"),
        ("a{b,c}{d,}", "abd ab acd ac"),
        ("{a,b{c,d}}", "a bc bd"),
        ("{x}", "{x}"),
        ("{}/{x{a,b}}", "{}/{xa} {}/{xb}"),
        ("{00..03}", "00 01 02 03"),
        ("{8..11}", "8 9 10 11"),
        ("{08..11}", "08 09 10 11"),
        ("{1..003}", "001 002 003"),
        ("{99..0101}", "0099 0100 0101"),
        ("{3..1}", "3 2 1"),
        ("{a,a}", "a"),  # a file is read once
    ],
)
def test_braces_mean_what_they_mean_to_a_shell(pattern: str, expected: str) -> None:
    assert expand_braces(pattern) == expected.split(" ")
