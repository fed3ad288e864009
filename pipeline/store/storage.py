"""Where shards rest: a folder on disk or a place in an object store.

What a store refuses for the moment is asked again, with growing pauses.
"""

from __future__ import annotations

import logging
import posixpath
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from fsspec import get_filesystem_class
from upath import UPath

from pipeline.errors import ConfigError, StorageError
from pipeline.store.copies import scratch
from pipeline.store.filesystem import version_of
from pipeline.store.read_errors import READ_ERRORS, describe, lacks_bucket
from pipeline.store.urls import has_credentials, is_url, redact

Place = Path | UPath
"""A file or folder: a ``pathlib.Path`` on disk, a ``UPath`` in a store."""
A = TypeVar("A")
P = TypeVar("P", bound=Place)
T = TypeVar("T")

REQUESTS_AT_ONCE = 32
"""How many are on their way to a store: each costs a round trip, as the end of a shard does."""
PATIENCE_S = 300.0
"""How long a store that fails is asked again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_FINAL_STATUS = frozenset({400, 401, 403, 404, 405, 411, 412, 416})
"""Answers of a store that asking again does not change."""
_FINAL_ERRORS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "NoRegionError", "ProfileNotFound", "ParamValidationError"}
)

logger = logging.getLogger(__name__)


def to_place(text: str) -> Place:
    """Return the place that a path or URL names; a type for arguments of commands.

    Raises:
        ConfigError: the URL holds credentials, which would end up in logs, or nothing here knows such stores.
    """
    if not is_url(text):
        return Path(text)
    if has_credentials(text):
        raise ConfigError(f"{redact(text)}: no credentials in URLs; set them in the environment, as AWS_ACCESS_KEY_ID")
    try:
        place = UPath(text)
        get_filesystem_class(place.protocol)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{redact(text)}: no such kind of store here ({describe(error, text)})") from error
    return Path(place.path) if place.protocol in ("file", "local") else place


def is_remote(place: Place) -> bool:
    """Tell whether a place is in a store."""
    return not isinstance(place, Path)


def patiently(operation: Callable[[], T], place: Place) -> T:
    """Call ``operation``, again and again while the store that holds ``place`` fails for reasons that may pass.

    Pauses double and are shaken, so that many workers do not come back at once. On disk it is called once.
    """
    if not is_remote(place):
        return operation()
    end, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
    while True:
        try:
            return operation()
        except READ_ERRORS as error:
            if _is_final(error) or time.monotonic() + pause > end:
                raise
            logger.warning("%s: %s; asking again in %.1f s", place, describe(error, str(place)), pause)
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_S)


def side_by_side(function: Callable[[A], T], items: Iterable[A]) -> list[T]:
    """Call a function that waits for a store more than it computes, in threads; return what it returned, in order."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(function, items))


def list_files(folder: P, pattern: str) -> list[P]:
    """Return the files of a folder whose names match a pattern such as ``part-*.parquet``, sorted; maybe none.

    Raises:
        StorageError: the store gives no answer; of ``exists``, ``size`` and ``remove`` as well.
    """
    if isinstance(folder, Path):
        return sorted(folder.glob(pattern))
    # Not by glob() or is_file(): to them a store that fails seems to be empty.
    entries = _or_missing(lambda: folder.fs.ls(folder.path, detail=True), folder) or []
    names = (posixpath.basename(entry["name"]) for entry in entries if entry["type"] == "file")
    return [folder / name for name in sorted(names) if fnmatchcase(name, pattern)]


def list_below(folder: P) -> list[P]:
    """Return all files below a folder, in folders of it as well, sorted; maybe none."""
    if isinstance(folder, Path):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    top = folder.path.rstrip("/") + "/"
    found = _or_missing(lambda: folder.fs.find(folder.path), folder) or []
    return [folder / name.removeprefix(top) for name in sorted(found) if name.startswith(top)]


def name_below(folder: Place, place: Place) -> str:
    """Return where a place lies in a folder above it."""
    return str(place).removeprefix(str(folder)).lstrip("/")


def is_folder(place: Place) -> bool:
    """Tell whether there is a folder at a place: in a store, something that lies below it."""
    if isinstance(place, Path):
        return place.is_dir()
    info = _or_missing(lambda: place.fs.info(place.path), place)
    return info is not None and info["type"] == "directory"


def folders_below(folder: P) -> list[P]:
    """Return all folders below a folder, but for links; maybe none."""
    if isinstance(folder, Path):
        return [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    found: set[P] = set()
    for path in list_below(folder):
        above = path.parent
        while above != folder and above not in found:
            found.add(above)
            above = above.parent
    return list(found)


def make_folder(place: Place) -> None:
    """Make a folder; a store has none but those that something lies below."""
    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)


def remove_empty(folder: Place) -> None:
    """Remove a folder on disk if nothing is in it."""
    if isinstance(folder, Path) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def versions(folder: UPath) -> dict[str, tuple[int, str]]:
    """Return of the files of a folder in a store, by name, their bytes and what changes when they do."""
    entries = _or_missing(lambda: folder.fs.ls(folder.path, detail=True), folder) or []
    files = (entry for entry in entries if entry["type"] == "file")
    return {posixpath.basename(each["name"]): (int(each["size"]), version_of(each) or "") for each in files}


def read_text(place: Place) -> str | None:
    """Return what a small file holds, as UTF-8; None where there is none."""
    if not exists(place):
        return None
    with fetched(place) as path:
        return path.read_text(encoding="utf-8")


def exists(place: Place) -> bool:
    """Tell whether there is a file at a place."""
    if isinstance(place, Path):
        return place.is_file()
    info = _or_missing(lambda: place.fs.info(place.path), place)
    return info is not None and info["type"] == "file"


def _or_missing(operation: Callable[[], T], place: UPath) -> T | None:
    place.fs.invalidate_cache(place.path)  # what was listed before
    try:
        return patiently(operation, place)
    except FileNotFoundError as error:
        if lacks_bucket(error):
            raise StorageError(f"{place}: no such bucket; make it, or mend the URL") from error
        return None
    except READ_ERRORS as error:
        raise StorageError(
            f"{place}: the store gives no answer ({describe(error, str(place))}); mend the place or the access to it, "
            "then run the same command again: what is finished is kept"
        ) from error


def size(place: Place) -> int:
    """Return a file's bytes; raise FileNotFoundError where there is none."""
    if isinstance(place, Path):
        return place.stat().st_size
    info = _or_missing(lambda: place.fs.info(place.path), place)
    if info is None:
        raise FileNotFoundError(place)
    return int(info["size"])


def remove(place: Place) -> None:
    """Remove a file, if it is there."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    else:
        _or_missing(lambda: place.fs.rm_file(place.path), place)


def remove_folder(folder: Place) -> None:
    """Remove a folder with all that is in it, if it is there; what cannot be removed from a disk stays."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        side_by_side(remove, list_below(folder))


def read_source(place: Place) -> pa.NativeFile | Path:
    """Return what Arrow reads a whole file from: its path on disk, or all of its bytes out of a store."""
    return place if isinstance(place, Path) else pa.BufferReader(patiently(place.read_bytes, place))


@contextmanager
def fetched(place: Place) -> Iterator[Path]:
    """Give a path to read a file from: its own on disk, or that of a copy, which is removed when the block ends.

    Raises:
        FileNotFoundError: there is no such file; on disk, when it is opened.
        StorageError: the store gives no answer.
    """
    if isinstance(place, Path):
        yield place
        return
    with scratch() as folder:
        copy = folder / place.name
        if _or_missing(lambda: place.fs.get_file(place.path, str(copy)) or copy, place) is None:
            raise FileNotFoundError(place)
        yield copy


def _is_final(error: Exception) -> bool:
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return True
    # No such file system, no such bucket name, nobody to be.
    if isinstance(error, ImportError | ValueError) or type(error).__name__ in _FINAL_ERRORS:
        return True
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        if status is not None:
            return status in _FINAL_STATUS
        cause = cause.__cause__
    return False
