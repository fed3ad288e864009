"""Folders of files such as models, wherever they rest: read from disk, and written file by file.

On disk they are read and written as they are. Of a store the reader gets a copy, which is kept for the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from upath import UPath

from pipeline.errors import MissingInputError, StorageError
from pipeline.store.atomic import storage_errors, upload
from pipeline.store.copies import kept_copy, scratch
from pipeline.store.read_errors import READ_ERRORS, describe
from pipeline.store.storage import Place, list_below, name_below, patiently, remove, side_by_side, versions

_TRIES = 3
"""How often a folder is copied anew that changed meanwhile."""


@contextmanager
def local_folder(place: Place) -> Iterator[Path]:
    """Give a folder on disk with the files of a folder, for the length of a ``with`` block; folders in it are left out.

    Raises:
        MissingInputError: a store has no files there.
        StorageError: the store gives no answer, or the folder was written while it was copied.
    """
    if isinstance(place, Path):
        yield place
        return
    with ExitStack() as stack:
        for _ in range(_TRIES):
            found = versions(place)
            if not found:
                raise MissingInputError(f"{place}: no such folder; mend the URL")
            key, size = f"{place} {sorted(found.items())}", sum(size for size, _ in found.values())
            try:
                with _reading(place):
                    copy = stack.enter_context(kept_copy(key, size, partial(_fetch, place, found)))
            except FileNotFoundError:
                continue
            yield copy / place.name
            return
    raise StorageError(f"{place}: was written while it was read; run the same command again when that is done")


def _fetch(place: UPath, found: Mapping[str, tuple[int, str]], into: Path) -> None:
    """Copy files into a folder of the same name, which is what a model is called; FileNotFoundError if they change."""
    copy = into / place.name
    copy.mkdir()

    def fetch(name: str) -> None:
        source = place / name
        patiently(lambda: source.fs.get_file(source.path, str(copy / name)), source)

    side_by_side(fetch, found)
    if versions(place) != found:
        raise FileNotFoundError(place)


@contextmanager
def local_files(places: Iterable[Place]) -> Iterator[list[Path]]:
    """Give paths to read files from: their own on disk, or those of copies in folders of the same names.

    Raises:
        FileNotFoundError: one is not there.
        StorageError: the store gives no answer.
    """
    with scratch() as folder:
        found: list[Path] = []
        for place in places:
            if isinstance(place, Path):
                path = place
            else:
                path = folder / place.parent.name / place.name
                path.parent.mkdir(exist_ok=True)
                with _reading(place):
                    patiently(partial(place.fs.get_file, place.path, str(path)), place)
            found.append(path)
        yield found


@contextmanager
def sent_folder(place: Place, last: str = "") -> Iterator[Path]:
    """Give a folder to write files to: on disk itself; of a store one whose files are sent when the block ends.

    Nothing is sent where it ends with an exception. Other files that are there stay.

    Args:
        place: the folder, is made.
        last: file that means that all are there: it is removed first and sent after the others.

    Raises:
        StorageError: it cannot be written.
    """
    with Mirror(place) as mirror:
        yield mirror.folder
        mirror.send(last)


class Mirror:
    """A folder on disk whose files are in a store as well, as often as they are sent; of one on disk, itself.

    A context: what is not sent by its end is not in the store.

    Attributes:
        folder: on disk.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._sent: dict[str, tuple[int, int]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Mirror:
        """Make the folder."""
        if isinstance(self.place, Path):
            with storage_errors(self.place):
                self.place.mkdir(parents=True, exist_ok=True)
            self.folder = self.place
        else:
            self.folder = self._stack.enter_context(scratch()) / self.place.name
            self.folder.mkdir()  # may be removed and made anew, as the one around it may not
        return self

    def __exit__(self, *_: Any) -> None:
        """Remove what is not in the store."""
        self._stack.close()

    def fetch(self) -> None:
        """Bring what the store holds."""
        if isinstance(self.place, Path):
            return
        for source in list_below(self.place):
            name = name_below(self.place, source)
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with _reading(source):
                patiently(partial(source.fs.get_file, source.path, str(path)), source)
            self._sent[name] = _state(path)

    def send(self, last: str = "") -> None:
        """Send the files that are new or have changed, ``last`` after the others, and gone from the store meanwhile."""
        if isinstance(self.place, Path):
            return
        states = {name_below(self.folder, path): _state(path) for path in list_below(self.folder)}
        changed = [name for name, state in states.items() if self._sent.get(name) != state]
        if changed and last:
            remove(self.place / last)
        with storage_errors(self.place):
            for name in sorted(changed, key=lambda name: name == last):
                place = self.place / name
                patiently(partial(upload, self.folder / name, place), place)
        self._sent = states


@contextmanager
def _reading(place: Place) -> Iterator[None]:
    """Turn what a store raises into StorageErrors, but for FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except READ_ERRORS as error:
        raise StorageError(
            f"{place}: cannot be read ({describe(error, str(place))}); mend the place or the access to it, then run "
            "the same command again"
        ) from error


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
