"""What is finished stays: which shards of an earlier run are what this run would make.

A shard's fingerprint covers all that its content depends on: its input rows, the settings, the model and the code. It
rests in the shard's own metadata, so that a shard and the claim that it is finished appear at once and cannot
contradict each other, however a stage was killed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ConfigError, OwnershipError, ShardError, StorageError
from pipeline.store.atomic import storage_errors, sweep, write_json
from pipeline.store.provenance import FINGERPRINT
from pipeline.store.shards import read_fingerprint, rows_sha256
from pipeline.store.storage import Place, exists, list_files, remove, remove_folder, side_by_side

T = TypeVar("T")

SHARDS, MANIFEST_FILE = "part-*.parquet", "_manifest.json"
"""Names in a folder of shards. Arrow, and with it pandas, takes what does not begin with ``_`` or ``.`` for a shard."""
OLD_MANIFEST_FILE = "manifest.json"
"""Name of the manifest in folders of earlier versions; it is read, and removed when a new one is written."""

logger = logging.getLogger(__name__)


def keep_apart(out: Place, *inputs: Place) -> None:
    """Refuse to write shards where others are read from: those would be removed as foreign.

    Raises:
        ConfigError: the stage would write into one of its inputs.
    """
    for place in inputs:
        if place.resolve() == out.resolve():
            raise ConfigError(f"{out}: the stage reads shards from there; let it write to another place")


@contextmanager
def alone_in(out: Place) -> Iterator[None]:
    """Keep other runs from writing to an output folder on disk while the block runs; it is made where it is not there.

    The folder may be a link, folders in it may not: a stage would remove and write files behind them. Where a disk
    knows no locks of folders, as NFS, nobody is kept out; of stores neither.

    Raises:
        OwnershipError: another run is at work there.
        ConfigError: a folder in it is a link.
        StorageError: it cannot be made, or is another one in the end.
    """
    if not isinstance(out, Path):
        yield
        return
    is_new = not out.is_dir()
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however this process ends
            except BlockingIOError:
                message = f"{out}: another run is writing there; wait for its end, or name another place"
                raise OwnershipError(message) from None
        for folder, names, _ in os.walk(out):
            for link in (Path(folder, name) for name in names):
                if link.is_symlink():
                    raise ConfigError(f"{link}: a link to {link.resolve()}, in a folder that is written; remove it")
        yield
        if not out.is_dir() or not os.path.samestat(out.stat(), os.fstat(lock)):
            raise StorageError(
                f"{out}: was removed or replaced while the stage wrote there; run the same command again"
            )
    except BaseException:
        if is_new:  # a mistake that is found before the work leaves no folder
            with suppress(OSError):
                out.rmdir()
        raise
    finally:
        os.close(lock)


def keep_finished(
    stage: str,
    folders: Iterable[Place],
    wanted: Mapping[Place, Mapping[str, Any]],
    look: Callable[[Sequence[Place]], Iterable[T | None]],
) -> dict[Place, T]:
    """Keep the shards that this run would make the same; remove all others, and what killed processes left.

    A folder's manifest, which says that it is complete, goes first when shards are missing.

    Args:
        stage: its name, for messages.
        folders: where the stage writes ``part-*.parquet`` and nobody else does.
        wanted: the shards to make, with their provenance.
        look: given those with the wanted fingerprint, says of each in order what the stage must know of it, or None
            where it is to be made anew.

    Returns:
        What ``look`` said of the shards that stay.

    Raises:
        StorageError: a store gives no answer.
    """
    folders = list(folders)
    found = [path for folder in folders for path in list_files(folder, SHARDS)]

    def is_wanted(path: Place) -> bool:
        return path in wanted and fingerprint_of(path) == wanted[path][FINGERPRINT]

    matching = [path for path, matches in zip(found, side_by_side(is_wanted, found), strict=True) if matches]
    seen = zip(matching, look(matching), strict=True)
    kept = {path: what for path, what in seen if what is not None}
    for folder in folders:
        sweep(folder, SHARDS)
        sweep(folder, MANIFEST_FILE)
        sweep(folder, OLD_MANIFEST_FILE)
        if len(kept) < len(wanted):
            remove(folder / MANIFEST_FILE)
            remove(folder / OLD_MANIFEST_FILE)
    stale = [path for path in found if path not in kept]
    side_by_side(remove, stale)
    if stale:
        logger.info("%s: removed %d shards: broken, or made of other inputs, settings or code", stage, len(stale))
    if kept:
        logger.info("%s: %d of %d shards were finished already", stage, len(kept), len(wanted))
    return kept


def write_manifest_file(folder: Place, content: Mapping[str, Any]) -> None:
    """Say in JSON what a folder of shards holds; a manifest of the old name goes."""
    write_json(folder / MANIFEST_FILE, content)
    remove(folder / OLD_MANIFEST_FILE)


def find_manifest(folder: Place) -> Place | None:
    """Return the manifest of a folder, the one of the old name where there is no other; None where it has none."""
    places = (folder / name for name in (MANIFEST_FILE, OLD_MANIFEST_FILE))
    return next((place for place in places if exists(place)), None)


def fingerprint_of(path: Place) -> str | None:
    """Return the fingerprint at a shard's end; None where it has none, is broken, or is not there."""
    try:
        return read_fingerprint(path)
    except ShardError:
        return None


def input_identity(shard: Place) -> str | None:
    """Return the hash over an input shard's rows; None where it is broken, which whoever reads it reports."""
    try:
        return rows_sha256(shard)
    except ShardError:
        return None


def begin_work(note: Path, identity: str) -> None:
    """Note what a folder is made for, once whatever was made there for something else is gone.

    Args:
        note: file in the folder that holds the identity.
        identity: of all that the work depends on, see ``provenance.fingerprint``.
    """
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != identity:
        logger.info("  %s: what it was made from has changed; made anew", note.parent)
        remove_folder(note.parent)
    write_json(note, identity)
