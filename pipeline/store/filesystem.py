"""Files behind paths and URLs, read by fsspec: one or many, whole or in part, found by patterns, told apart."""

from __future__ import annotations

import hashlib
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from fsspec.core import OpenFile, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from glip_model.images import ImageError
from pipeline.errors import MissingInputError
from pipeline.store.image_roots import HOW_TO_ALLOW, OUTSIDE, check_inside
from pipeline.store.read_errors import STORE_ERRORS, describe
from pipeline.store.urls import (
    expand_braces,
    is_local,
    is_url,
    is_web,
    parse_range,
    place_of,
    redact,
    without_file_scheme,
)
from pipeline.store.web import OutsideError, WebClient

_VERSIONS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "checksum", "blob_id", "CRC"),
    *("mtime", "LastModified", "Last-Modified", "last_modified", "modified", "updated", "created"),
)
"""What file systems call the version of a file, the surest first."""

_BROKEN_OFF: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    UnicodeDecodeError,
    zlib.error,
    lzma.LZMAError,
    *STORE_ERRORS,
)
"""What reading an open file raises when its bytes are wrong or end before."""


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
        plain, first, end = parse_range(url)
        try:
            if roots is not None:
                check_inside(url, roots)
            if end is not None and end <= first:
                results[i] = b"" if end == first else ImageError("image_missing", f"{redact(url)}: an empty range")
            elif is_local(plain):
                results[i] = _read_local(Path(without_file_scheme(plain)), first, end)
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
    scheme = place_of(url).partition("://")[0]
    if roots is None or scheme not in ("http", "https"):
        return {}
    return {scheme: {"get_client": WebClient(tuple(root for root in map(place_of, roots) if is_web(root)))}}


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
    ranges = [(first, end) if end is not None else (None, None) for _, first, end in map(parse_range, urls)]
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
    _, first, end = parse_range(url)
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
    is_pattern = re.search(r"[*\[]" if is_web(url) else r"[*?\[]", url) is not None
    return is_pattern and (is_url(url) or not Path(url).is_file())


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
    if is_url(url):
        filesystem, path = url_to_fs(url)
        return filesystem, path
    return LocalFileSystem(), str(LocalFileSystem._strip_protocol(url))


def _url(filesystem: Any, path: str, match: str, pattern: str) -> str:
    """Return the URL of a match, written as the pattern is whose path is ``path``."""
    if not is_url(pattern):
        return match
    inner, chain, outer = pattern.partition("::")
    if inner.endswith(path):
        return f"{inner.removesuffix(path)}{match}{chain}{outer}"
    return str(filesystem.unstrip_protocol(match))


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
