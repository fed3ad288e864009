"""Local room for what rests in stores: copies that stay for the next reader, and folders for the time of a block.

All of it lies below one folder, which ``GLIP_COPIES`` names, and nothing else of the project's does. Copies take
``GLIP_COPIES_GB`` at most besides those in use: the ones that were used longest ago go. What killed processes left goes
when the next one needs room: whoever uses a folder holds a lock of it, which the system lets go.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConfigError, StorageError

ROOT_VARIABLE, LIMIT_VARIABLE = "GLIP_COPIES", "GLIP_COPIES_GB"
DEFAULT_LIMIT_GB = 20.0
_COMPLETE = ".complete"
"""File in a copy that has all of its files."""


@contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder of this process, which goes when the block ends.

    Raises:
        StorageError: there is no room for it, or somebody else's folder is where it would be.
    """
    home = _home("scratch")
    with _locked(home, fcntl.LOCK_EX):  # or another process would find the new folder before it is locked
        for left in home.iterdir():
            _remove_unused(left)
        folder = Path(tempfile.mkdtemp(dir=home))
        lock = _lock(folder, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def kept_copy(key: str, num_bytes: int, fill: Callable[[Path], None]) -> Iterator[Path]:
    """Give a folder with a copy, made now or by an earlier reader on this machine; it stays whole during the block.

    Args:
        key: of the copy: its place and version.
        num_bytes: it takes.
        fill: writes it into an empty folder; of several processes one does, and the others wait for it.

    Raises:
        StorageError: as ``scratch``.
    """
    home = _home("kept")
    folder = home / hashlib.sha256(key.encode()).hexdigest()
    while (lock := _use(folder, num_bytes, fill)) is None:
        pass
    try:
        yield folder
    finally:
        os.close(lock)
        _make_room(home, 0)


def limit_bytes() -> int:
    """Return how much copies may take that nobody uses.

    Raises:
        ConfigError: ``GLIP_COPIES_GB`` is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_GB)
    with suppress(ValueError, OverflowError):
        if (limit := int(float(text) * 1e9)) >= 0:
            return limit
    raise ConfigError(f"{LIMIT_VARIABLE}={text}: expected a size in GB, such as {DEFAULT_LIMIT_GB:g}")


def _home(name: str) -> Path:
    """Return a folder of ours, made where it is not there; in the temporary folder others might have made it."""
    root = Path(os.environ.get(ROOT_VARIABLE) or Path(tempfile.gettempdir(), f"glip-copies-{os.getuid()}"))
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise StorageError(f"{root}: is not your folder; name one for copies by {ROOT_VARIABLE}")
        (root / name).mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{root}: no place for copies of what is in stores ({error.strerror}); name another by {ROOT_VARIABLE}"
        ) from error
    return root / name


def _use(folder: Path, num_bytes: int, fill: Callable[[Path], None]) -> int | None:
    """Return the lock of a whole copy; None where it is to be looked for again."""
    folder.mkdir(exist_ok=True)
    try:
        lock = _lock(folder, fcntl.LOCK_SH)
    except FileNotFoundError:  # another process has removed it
        return None
    try:
        if _is_whole(lock, folder):
            os.utime(folder)
            return lock
        fcntl.flock(lock, fcntl.LOCK_EX)  # lets go in between: another process may have filled it, or removed it
        if _is_at(lock, folder) and not _is_whole(lock, folder):
            _make_room(folder.parent, num_bytes, besides=folder)
            _fill(folder, fill)
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    _empty(folder)  # of what a killed process left
    try:
        fill(folder)
        (folder / _COMPLETE).touch()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _make_room(home: Path, num_bytes: int, besides: Path | None = None) -> None:
    """Remove copies that nobody uses, the one that was used longest ago first, until so many bytes fit."""
    found: list[tuple[float, int, Path]] = []
    for folder in home.iterdir():
        with suppress(OSError):  # another process removes it
            if folder != besides:
                found.append((folder.stat().st_mtime, sum(path.stat().st_size for path in folder.rglob("*")), folder))
    left = limit_bytes() - num_bytes - sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if left >= 0:
            break
        if _remove_unused(folder):
            left += size


def _remove_unused(folder: Path) -> bool:
    """Remove a folder unless somebody holds its lock; tell whether it went."""
    try:
        lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or gone
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
    return True


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[int]:
    lock = _lock(folder, kind)
    try:
        yield lock
    finally:
        os.close(lock)


def _lock(folder: Path, kind: int) -> int:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, kind)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _is_whole(lock: int, folder: Path) -> bool:
    return _is_at(lock, folder) and (folder / _COMPLETE).is_file()


def _is_at(lock: int, folder: Path) -> bool:
    """Tell whether what was locked is what is there now."""
    try:
        return os.path.samestat(os.fstat(lock), folder.stat())
    except FileNotFoundError:
        return False
