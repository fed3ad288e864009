"""Paths and URLs as text: told apart, joined, taken to pieces, and named without what is secret in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

_RANGE = re.compile(r"(?P<url>.*)#bytes=(?P<first>\d{1,15})-(?P<last>-1|\d{1,15})", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*(://|::)")
_CHAIN = re.compile(r"::(?=[A-Za-z][\w+.-]*://)")
_LOCAL = re.compile(r"(file|local)://")
_HTTP = re.compile(r"https?://")
# What may stand before the host. A secret key of S3 may hold slashes, a port is no secret, Azure has a container there.
_LOGIN = re.compile(
    r"(?<=://)([^/?#:@]*:(?!\d*(?:[/?#]|$)).*@|[^/?#@]*:[^/?#]*@|(?<!abfs://)(?<!abfss://)[^/?#]*@)", re.DOTALL
)
_SECRET_CHARS = 4
"""Shorter pieces of a URL are no secrets, and stand in many a message."""


def redact(url: str) -> str:
    """Return a path or URL without what may be secret in it: user and password, query, fragments but byte ranges."""
    if not _SCHEME.match(url):
        return url
    matched = _RANGE.fullmatch(url)
    plain = matched["url"] if matched else url
    kept = []
    for link in _CHAIN.split(plain):
        place, mark, _ = _LOGIN.sub("***@", link, count=1).partition("?")
        kept.append(place.partition("#")[0] + ("?***" if mark else ""))
    return "::".join(kept) + url[len(plain) :]


def is_url(text: str) -> bool:
    """Tell URLs, chains of them as well, from paths on disk."""
    return bool(_SCHEME.match(text))


def is_web(url: str) -> bool:
    """Tell URLs of the web from others."""
    return bool(_HTTP.match(url))


def is_local(url: str) -> bool:
    """Tell paths on disk, also those with ``file://`` in front, from other URLs."""
    return bool(_LOCAL.match(url)) or not _SCHEME.match(url)


def without_file_scheme(url: str) -> str:
    """Return a path without ``file://`` or ``local://`` in front; other URLs stay as they are."""
    return _LOCAL.sub("", url, count=1)


def has_range(url: str) -> bool:
    """Tell whether a URL ends as ``byte_range`` writes it."""
    return _RANGE.fullmatch(url) is not None


def has_credentials(url: str) -> bool:
    """Tell whether a URL names a user or a password."""
    return bool(_SCHEME.match(url)) and any(_LOGIN.search(link) for link in _CHAIN.split(url))


def join(root: str, path: str) -> str:
    """Return ``path`` below ``root``; a URL or an absolute path stays as it is."""
    if _SCHEME.match(path) or path.startswith("/") or not root:
        return path
    return f"{root.rstrip('/')}/{path}" if root != "/" else f"/{path}"


def links(url: str) -> list[str]:
    """Return the links of a chain, as fsspec parts them; a path on disk is one, whatever stands in it."""
    return url.split("::") if _SCHEME.match(url) else [url]


def place_of(url: str) -> str:
    """Return the last link of a chain, which is where it lies."""
    return links(url)[-1]


def byte_range(url: str, first: int, length: int) -> str:
    """Return the URL of ``length`` bytes of a file from ``first`` on."""
    return f"{url}#bytes={first}-{first + length - 1}"


def parse_range(url: str) -> tuple[str, int, int | None]:
    """Return a URL without its range, the first byte, and the end behind the last byte; None for the whole file."""
    matched = _RANGE.fullmatch(url)
    return (matched["url"], int(matched["first"]), int(matched["last"]) + 1) if matched else (url, 0, None)


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{00000..00331}`` to numbers of that width and ``{a,b}`` to its choices, as shells do."""
    for matched in re.finditer(r"\{([^{}]*)\}", pattern):
        choices = _choices(matched[1])
        if choices:
            before, after = pattern[: matched.start()], pattern[matched.end() :]
            expanded = (whole for choice in choices for whole in expand_braces(before + choice + after))
            return list(dict.fromkeys(expanded))
    return [pattern]


def _choices(text: str) -> Iterable[str]:
    """Return what stands between braces one by one; nothing when it is neither numbers nor choices."""
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if numbers is None:
        return text.split(",") if "," in text else ()
    first, last = numbers.groups()
    is_padded = any(len(number) > 1 and number.startswith("0") for number in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    step = 1 if int(first) <= int(last) else -1
    return [str(i).zfill(width) for i in range(int(first), int(last) + step, step)]


def secrets_of(url: str) -> set[str]:
    """Return the pieces of a URL's query, as they are and as servers write them."""
    queries = [link.partition("?")[2] for link in _CHAIN.split(url)] if _SCHEME.match(url) else []
    found = {piece for query in queries for piece in (query, *re.split("[&=#]", query))}
    return {piece for piece in found | set(map(unquote, found)) if len(piece) >= _SECRET_CHARS}
