"""Files that appear whole or not at all, on disk and in stores.

A file on disk is written beside its place and renamed. A file for a store is written on local disk and sent by one put
or one multipart upload, which the store shows to readers when it is complete.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from upath import UPath

from glip_model.whole_files import whole_file
from pipeline.errors import StorageError
from pipeline.plain_json import finite
from pipeline.store.copies import scratch
from pipeline.store.read_errors import READ_ERRORS, STORE_ERRORS, describe
from pipeline.store.storage import Place, patiently

_WRITE_ERRORS: tuple[type[Exception], ...] = (OSError, *STORE_ERRORS)
_FULL_OR_CLOSED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


@contextmanager
def replacing(place: Place) -> Iterator[Path]:
    """Give a path to write to; the file takes its place when the block ends without an exception, or is no more.

    Raises:
        StorageError: there is no room, no right to write, or the store does not answer; other errors of the block
            stay what they are.
    """
    if isinstance(place, Path):
        with ExitStack() as stack:
            with storage_errors(place):
                aside = stack.enter_context(whole_file(place))
            with storage_errors(place, _FULL_OR_CLOSED):
                yield aside
            with storage_errors(place):
                stack.close()
        return
    with scratch() as folder:
        aside = folder / place.name
        with storage_errors(place, _FULL_OR_CLOSED):
            yield aside
        with storage_errors(place):
            patiently(lambda: upload(aside, place), place)


def write_json(place: Place, value: Any) -> None:
    """Write JSON with sorted keys, so that equal results are equal files; StorageError as ``replacing``.

    Numbers that are not finite are null.
    """
    with replacing(place) as aside:
        text = json.dumps(finite(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")


def write_csv(place: Place, rows: Iterable[Sequence[Any]], end: str = "\r\n") -> None:
    """Write a table, the names of its columns being the first row, with ``end`` behind each; else as ``write_json``."""
    with replacing(place) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=end).writerows(rows)


def create(place: Place, content: bytes) -> bool:
    """Write a small file unless there is one; of several that try at once, exactly one gets True.

    In a store it takes one conditional put, which S3 and Google's store know.

    Raises:
        StorageError: the place cannot be written.
    """
    try:
        if isinstance(place, Path):
            return _create_on_disk(place, content)
        patiently(lambda: place.fs.pipe_file(place.path, content, mode="create"), place)
    except FileExistsError:
        return False
    except READ_ERRORS as error:
        raise StorageError(f"{place}: cannot be written ({describe(error, str(place))})") from error
    return True


def sweep(folder: Place, pattern: str) -> None:
    """Remove what killed processes left beside the files whose names match a pattern.

    A store has nothing to sweep: it shows no file that was not sent whole.
    """
    if isinstance(folder, Path):
        for path in folder.glob(f".{pattern}.*"):
            if path.suffix[1:].isdecimal():
                path.unlink(missing_ok=True)


@contextmanager
def storage_errors(place: Place, numbers: frozenset[int] | None = None) -> Iterator[None]:
    """Turn what is raised while a file is written into StorageErrors.

    Args:
        place: of the file.
        numbers: the ``errno`` of those that are meant; None means all.
    """
    try:
        yield
    except _WRITE_ERRORS as error:
        if numbers is not None and getattr(error, "errno", None) not in numbers:
            raise
        raise StorageError(
            f"{place}: cannot be written ({describe(error, str(place))}); make room or mend the access, then run the "
            "same command again: what is finished is kept"
        ) from error


def _create_on_disk(path: Path, content: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as aside:
        aside.write(content)
        aside.flush()
        os.link(aside.name, path)  # unlike a rename, it replaces nothing
    return True


def upload(source: Path, place: UPath) -> None:
    """Send a file to a store in one put; OSError where less of it arrives."""
    place.fs.put_file(str(source), place.path)
    place.fs.invalidate_cache(place.path)
    sent = place.fs.info(place.path)["size"]
    if sent != source.stat().st_size:
        raise OSError(f"the store holds {sent} bytes of {source.stat().st_size}")
