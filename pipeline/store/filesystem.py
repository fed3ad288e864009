"""Files behind paths and URLs: opened by fsspec, named without credentials, kept inside their folder.

Everything that raw data names (``file_name`` of an annotation file, a member of an archive) is untrusted.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

import aiohttp
from fsspec.core import OpenFile, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from glip_model.images import ImageError
from pipeline.errors import MissingInputError
from pipeline.store.web import OutsideError, WebClient

_RANGE = re.compile(r"(?P<url>.*)#bytes=(?P<first>\d{1,15})-(?P<last>-1|\d{1,15})", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*(://|::)")
_CHAIN = re.compile(r"::(?=[A-Za-z][\w+.-]*://)")
_LOCAL = re.compile(r"(file|local)://")
_HTTP = re.compile(r"https?://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What may stand before the host. A secret key of S3 may hold slashes, a port is no secret, Azure has a container there.
_LOGIN = re.compile(
    r"(?<=://)([^/?#:@]*:(?!\d*(?:[/?#]|$)).*@|[^/?#@]*:[^/?#]*@|(?<!abfs://)(?<!abfss://)[^/?#]*@)", re.DOTALL
)
IMAGE_ROOTS = "GLIP_IMAGE_ROOTS"
"""Environment variable: more of the setting ``image_roots``, split by commas."""
OUTSIDE = "image_outside_folder"
"""Reason of pictures that lie in no place that is allowed."""
HOW_TO_ALLOW = (
    "if you trust what names it, add the folder or URL above it to image_roots in params.yaml, to "
    f"{IMAGE_ROOTS} in the environment or, of glip inspect, to --image-root"
)
_SECRET_CHARS = 4
"""Shorter pieces of a URL are no secrets, and stand in many a message."""
_MAX_NAME_BYTES = 4096
"""More than Linux and the stores allow for a whole path."""
_URL_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "checksum", "blob_id", "CRC"),
    *("mtime", "LastModified", "Last-Modified", "last_modified", "modified", "updated", "created"),
)
"""What file systems call the version of a file, the surest first."""

STORE_ERRORS: tuple[type[Exception], ...] = (aiohttp.ClientError,)
try:
    import botocore.exceptions

    STORE_ERRORS += (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
except ImportError:  # without s3fs
    pass
READ_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, ImportError, RuntimeError, *STORE_ERRORS)
"""What file systems raise over things that are not there or not allowed; stores derive theirs from Exception alone."""
_BROKEN_OFF: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    UnicodeDecodeError,
    zlib.error,
    lzma.LZMAError,
    *STORE_ERRORS,
)
"""What reading an open file raises when its bytes are wrong or end before."""


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


def has_credentials(url: str) -> bool:
    """Tell whether a URL names a user or a password."""
    return bool(_SCHEME.match(url)) and any(_LOGIN.search(link) for link in _CHAIN.split(url))


def join(root: str, path: str) -> str:
    """Return ``path`` below ``root``; a URL or an absolute path stays as it is."""
    if _SCHEME.match(path) or path.startswith("/") or not root:
        return path
    return f"{root.rstrip('/')}/{path}" if root != "/" else f"/{path}"


def join_inside(folder: str, name: str) -> str:
    """Return the place of a file that raw data names, below ``folder``.

    Raises:
        ImageError: ``image_outside_folder``, the name leaves the folder; ``image_missing``, no file can have it.
    """
    if not isinstance(name, str) or not name or not _is_file_name(name):
        raise ImageError("image_missing", f"no file can be called {name!r:.200}")
    clean = posixpath.normpath(name.replace("\\", "/"))
    # fsspec reads "a::b" and "a://b" as file systems inside one another.
    is_odd = "::" in name or "://" in name or re.match("[A-Za-z]:", name)
    if is_odd or clean.startswith(("../", "/")) or clean in {"..", "."}:
        raise ImageError("image_outside_folder", f"{name!r:.200} leaves its folder")
    if not _SCHEME.match(folder):
        return f"{folder.rstrip('/') if folder else '.'}/{clean}"
    if _HTTP.match(folder):  # servers take "%2e%2e" for "..", and nothing after "?" or "#" for a part of the name
        clean = quote(clean, safe="/:@!$&'()*+,;=~")
    inner, chain, outer = folder.partition("::")  # zip://folder::s3://bucket/archive.zip
    return f"{inner if inner.endswith('://') else inner.rstrip('/') + '/'}{clean}{chain}{outer}"


def check_inside(url: str, roots: Sequence[str]) -> None:
    """Make sure that a place which somebody else's record or file names lies below one of the allowed folders or URLs.

    Links on disk are resolved on both sides. A chain such as ``zip://a.png::s3://bucket/a.zip`` lies where its last
    link does; only archives may stand before that. ``https://`` is a root, above all public hosts.

    Raises:
        ImageError: ``image_outside_folder``, or ``image_missing`` where no file can be called so.
    """
    plain, _, _ = _parse_range(url)
    *archives, place = _links(plain)
    try:
        # fsspec takes "~" for the home of the user there.
        is_odd = archives and _LOCAL.sub("", place, count=1).startswith("~")
        if (
            not is_odd
            and all(re.match("(zip|tar)://", link) for link in archives)
            and any(_is_below(place, _place_of(root)) for root in roots)
        ):
            return
    except (OSError, ValueError, RuntimeError) as error:  # odd names, loops of links
        raise ImageError("image_missing", f"{redact(url)!r:.300}: {describe(error, url)}") from error
    raise ImageError(OUTSIDE, f"{redact(url)!r:.300} lies outside of the shard's folder; {HOW_TO_ALLOW}")


def allowed_roots(setting: Iterable[str]) -> tuple[str, ...]:
    """Return where pictures may lie that records name, by the setting and by the environment; absolute, or URLs."""
    more = [root for root in os.environ.get(IMAGE_ROOTS, "").split(",") if root]
    return tuple(root if _SCHEME.match(root) else str(Path(root).absolute()) for root in [*setting, *more])


def _links(url: str) -> list[str]:
    """Return the links of a chain, as fsspec parts them; a path on disk is one, whatever stands in it."""
    return url.split("::") if _SCHEME.match(url) else [url]


def _place_of(url: str) -> str:
    """Return the last link of a chain, which is where it lies."""
    return _links(url)[-1]


def _is_below(place: str, root: str) -> bool:
    place, root = _LOCAL.sub("", place, count=1), _LOCAL.sub("", root, count=1)
    if not _SCHEME.match(place) and not _SCHEME.match(root):
        folder = _resolved(os.path.abspath(root))
        return bool(root) and f"{os.path.realpath(place)}/".startswith(f"{folder.rstrip('/')}/")
    path = re.split("[?#]", place)[0] if _HTTP.match(place) else place
    # Of control characters some are dropped on the way, so that ".\t." would become "..".
    is_plain = not _CONTROL.search(place) and ".." not in re.split(r"[/\\]", unquote(path))
    is_inside = place == root or place.startswith(root.rstrip("/") + "/")
    return bool(_SCHEME.match(root)) and is_plain and is_inside


@lru_cache(maxsize=256)
def _resolved(root: str) -> str:
    """Resolve the links of a root, which is the user's, once: it is asked about for every picture."""
    return os.path.realpath(root)


def byte_range(url: str, first: int, length: int) -> str:
    """Return the URL of ``length`` bytes of a file from ``first`` on."""
    return f"{url}#bytes={first}-{first + length - 1}"


def read_many(urls: Sequence[str], roots: Sequence[str] | None) -> list[bytes | ImageError]:
    """Read many files or ranges, from remote file systems at the same time.

    Args:
        urls: files, or ranges that ``byte_range`` made.
        roots: folders and URLs that they must be below, see ``check_inside``; None for those that the user named, and
            nobody else.

    Returns:
        Contents in the order of ``urls``, or why one cannot be read: ``image_missing``, ``image_outside_folder``.
    """
    results: dict[int, bytes | ImageError] = {}
    remote: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
    for i, url in enumerate(urls):
        plain, first, end = _parse_range(url)
        try:
            if roots is not None:
                check_inside(url, roots)
            if end is not None and end <= first:
                results[i] = b"" if end == first else ImageError("image_missing", f"{redact(url)}: an empty range")
            elif _LOCAL.match(plain) or not _SCHEME.match(plain):
                results[i] = _read_local(Path(_LOCAL.sub("", plain, count=1)), first, end)
            else:
                filesystem, path = url_to_fs(plain, **_web_options(plain, roots))
                remote.setdefault(id(filesystem), (filesystem, []))[1].append((i, path))
        except ImageError as error:
            results[i] = error
        except Exception as error:  # a single bad name ends nothing, and stores raise errors of their own
            results[i] = _missing(url, error)
    for filesystem, places in remote.values():
        asked = [urls[i] for i, _ in places]
        found = _read_remote(filesystem, [path for _, path in places], asked)
        results |= zip((i for i, _ in places), found, strict=True)
    return [results[i] for i in range(len(urls))]


def _web_options(url: str, roots: Sequence[str] | None) -> dict[str, Any]:
    """Return what fsspec needs to be told so that a URL of the web, or redirects from it, lead to no other host."""
    scheme = _place_of(url).partition("://")[0]
    if roots is None or scheme not in ("http", "https"):
        return {}
    return {scheme: {"get_client": WebClient(tuple(root for root in map(_place_of, roots) if _HTTP.match(root)))}}


def _parse_range(url: str) -> tuple[str, int, int | None]:
    matched = _RANGE.fullmatch(url)
    return (matched["url"], int(matched["first"]), int(matched["last"]) + 1) if matched else (url, 0, None)


def _read_local(path: Path, first: int, end: int | None) -> bytes:
    _refuse_odd(path)
    with path.open("rb") as file:
        if end is None:
            return file.read()
        if end > path.stat().st_size:  # asked before memory is taken for it
            raise EOFError("the file ends before")
        file.seek(first)
        return file.read(end - first)


def _refuse_odd(path: Path) -> None:
    """Raise OSError for what is there and no file: pipes and devices may never end, or never begin."""
    if not path.is_file():
        raise OSError("a folder, a pipe or a device, and no file") if path.exists() else FileNotFoundError(path)


def _read_remote(filesystem: Any, paths: list[str], urls: list[str]) -> list[bytes | ImageError]:
    """Read files of one file system, as many at a time as it likes."""
    ranges = [(first, end) if end is not None else (None, None) for _, first, end in map(_parse_range, urls)]
    try:
        found = filesystem.cat_ranges(paths, *map(list, zip(*ranges, strict=True)), on_error="return")
    except Exception as error:
        # One name that its file system chokes on fails them all: find out which.
        if len(paths) == 1:
            return [_missing(urls[0], error)]
        return [
            result for path, url in zip(paths, urls, strict=True) for result in _read_remote(filesystem, [path], [url])
        ]
    return [_cut(data, url) for data, url in zip(found, urls, strict=True)]


def _cut(data: bytes | Exception, url: str) -> bytes | ImageError:
    """Make sure that what a file system sent is what was asked for."""
    if isinstance(data, Exception):
        return _missing(url, data)
    _, first, end = _parse_range(url)
    if end is None:
        return data
    if len(data) > end - first:  # a server that knows no ranges sends all of the file
        data = data[first:end]
    return data if len(data) == end - first else _missing(url, EOFError("the file ends before"))


def _missing(url: str, error: Exception) -> ImageError:
    if isinstance(error, OutsideError):
        return ImageError(OUTSIDE, f"{redact(url)}: {describe(error, url)}; {HOW_TO_ALLOW}")
    return ImageError("image_missing", f"{redact(url)}: {describe(error, url)}")


@contextmanager
def open_file(url: str, mode: str = "rb", compression: str | None = None) -> Iterator[IO[Any]]:
    """Open a file for reading; gzip and the like by its name when ``compression`` is ``infer``.

    Raises:
        MissingInputError: it is not there, or a read fails and nobody catches that.
    """
    with _missing_input(url):
        filesystem, path = _locate(url)
        if isinstance(filesystem, LocalFileSystem):
            _refuse_odd(Path(path))
        encoding = None if "b" in mode else "utf-8"
        opened = OpenFile(filesystem, path, mode, compression, encoding)
        file = opened.open()
    with closing(opened), _missing_input(url, _BROKEN_OFF, "fetch the file again"):
        yield file


@contextmanager
def _missing_input(
    url: str,
    errors: type[Exception] | tuple[type[Exception], ...] = Exception,
    advice: str = "mend the path in params.yaml",
) -> Iterator[None]:
    """Turn what is raised over a file into a MissingInputError."""
    try:
        yield
    except errors as error:
        raise MissingInputError(f"{redact(url)}: {describe(error, url)}; {advice}") from error


def list_files(pattern: str) -> list[str]:
    """Return the files that a path or URL stands for, sorted: itself, a glob, or ``{00000..00331}`` for numbers.

    Raises:
        MissingInputError: there is none.
    """
    found: list[str] = []
    for plain in expand_braces(pattern):
        with _missing_input(plain):
            found += _glob(plain) if _is_glob(plain) else [_existing(plain)]
    if not found:
        raise MissingInputError(f"{redact(pattern)}: no file matches; mend the pattern in params.yaml")
    return list(dict.fromkeys(found))


def _is_glob(url: str) -> bool:
    # "?" begins a query in URLs of the web. A local file may be called like a pattern.
    is_pattern = re.search(r"[*\[]" if _HTTP.match(url) else r"[*?\[]", url) is not None
    return is_pattern and (bool(_SCHEME.match(url)) or not Path(url).is_file())


def _glob(pattern: str) -> list[str]:
    filesystem, path = _locate(pattern)
    filesystem.invalidate_cache()  # listings of before
    found = filesystem.glob(path, detail=True)
    if isinstance(filesystem, LocalFileSystem):
        matches = [match for match in found if Path(match).is_file()]
    else:
        matches = [match for match, info in found.items() if info["type"] != "directory"]
    return [_url(filesystem, path, match, pattern) for match in sorted(matches)]


def _existing(url: str) -> str:
    filesystem, path = _locate(url)
    if isinstance(filesystem, LocalFileSystem):
        _refuse_odd(Path(path))
    elif filesystem.info(path)["type"] == "directory":
        raise OSError("a folder; name the files in it, as with *.parquet at its end")
    return _url(filesystem, path, path, url)


def _locate(url: str) -> tuple[Any, str]:
    """Return the file system of a path or URL and the path in it."""
    if _SCHEME.match(url):
        filesystem, path = url_to_fs(url)
        return filesystem, path
    return LocalFileSystem(), str(LocalFileSystem._strip_protocol(url))


def _url(filesystem: Any, path: str, match: str, pattern: str) -> str:
    """Return the URL of a match, written as the pattern is whose path is ``path``."""
    if not _SCHEME.match(pattern):
        return match
    inner, chain, outer = pattern.partition("::")
    if inner.endswith(path):
        return f"{inner.removesuffix(path)}{match}{chain}{outer}"
    return str(filesystem.unstrip_protocol(match))


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


def file_identity(url: str) -> str:
    """Return what changes when a file does: its place with size and modification time, or the store's own version.

    Raises:
        MissingInputError: it is not there.
    """
    with _missing_input(url):
        filesystem, path = _locate(url)
        info = filesystem.info(path)
    version = version_of(info)
    if version is None:  # then a query may tell files apart that are called alike
        version = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{redact(url)} {info.get('size')} {version}"


def version_of(info: Mapping[str, Any]) -> str | None:
    """Return what a file system calls the version of a file, of what it says of it; None where it says none."""
    return next((str(info[name]) for name in _VERSIONS if info.get(name)), None)


def lacks_bucket(error: FileNotFoundError) -> bool:
    """Tell whether it is not a file that is missing but its whole bucket, of S3."""
    answer = getattr(error.__cause__, "response", None)
    return isinstance(answer, dict) and answer.get("Error", {}).get("Code") == "NoSuchBucket"


def describe(error: Exception, url: str) -> str:
    """Say what a file system found, in one line and without the URL's secrets."""
    if isinstance(error, FileNotFoundError):
        return "no such bucket" if lacks_bucket(error) else "no such file"
    if has_credentials(url):  # stores take pieces of a password for names, and say so
        return type(error).__name__
    text = str(error)
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _URL_IN_TEXT.sub(lambda matched: redact(matched[0]), text)
    return (" ".join(text.split()) or type(error).__name__)[:300]


def _secrets(url: str) -> set[str]:
    """Return the pieces of a URL's query, as they are and as servers write them."""
    queries = [link.partition("?")[2] for link in _CHAIN.split(url)] if _SCHEME.match(url) else []
    found = {piece for query in queries for piece in (query, *re.split("[&=#]", query))}
    return {piece for piece in found | set(map(unquote, found)) if len(piece) >= _SECRET_CHARS}


def _is_file_name(name: str) -> bool:
    """Tell whether some file may have this name."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair
        return False
    return b"\0" not in encoded and len(encoded) <= _MAX_NAME_BYTES and not _RANGE.fullmatch(name)
