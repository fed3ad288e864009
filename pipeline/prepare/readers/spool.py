"""Annotation files that are larger than memory: pictures and what belongs to them, joined on disk."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.prepare.raw import DroppedBox, Part, RawRow


def temporary_database(owner: object) -> sqlite3.Connection:
    """Return an empty database on disk that is removed when its owner is no more."""
    folder = tempfile.mkdtemp(prefix="glip-spool-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    base = sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None)
    # Nothing else reads it and nothing outlives a crash: no journal, no waiting for the disk.
    base.execute("PRAGMA journal_mode = OFF")
    base.execute("PRAGMA synchronous = OFF")
    return base


class Spool:
    """Pictures in their order, each with its annotations, in a temporary file that goes when this object does.

    Annotation files list pictures and annotations apart, in any order. Joining them in memory takes gigabytes for the
    larger data sets; here memory stays flat.
    """

    def __init__(self) -> None:
        self._base = temporary_database(self)
        self._base.execute("CREATE TABLE pictures (number INTEGER PRIMARY KEY, id TEXT UNIQUE, row TEXT)")
        self._base.execute("CREATE TABLE annotations (picture TEXT, row TEXT)")

    def __len__(self) -> int:
        """Count the pictures."""
        return int(self._base.execute("SELECT count(*) FROM pictures").fetchone()[0])

    def add_pictures(self, rows: Iterable[tuple[Any, Any]]) -> None:
        """Add pictures as pairs of id and plain values.

        One without an id, or whose id came before, is kept, without annotations, and read without an ``id``.
        """
        # NULL, which any number of rows may have, in place of an id that is taken
        free = "NULLIF(?1, (SELECT id FROM pictures WHERE id = ?1))"
        self._insert(f"INSERT INTO pictures (id, row) VALUES ({free}, ?2)", rows)

    def add_annotations(self, rows: Iterable[tuple[Any, Any]]) -> None:
        """Add annotations as pairs of their picture's id and plain values."""
        self._insert("INSERT INTO annotations VALUES (?, ?)", rows)

    def _insert(self, statement: str, rows: Iterable[tuple[Any, Any]]) -> None:
        self._base.execute("BEGIN")
        self._base.executemany(statement, ((text_id(key), json.dumps(row)) for key, row in rows))
        self._base.execute("COMMIT")

    def distinct(self, place: int) -> set[Any]:
        """Return the different numbers and texts that annotations, kept as lists, have at a place."""
        values = (json.loads(row)[place] for (row,) in self._base.execute("SELECT row FROM annotations"))
        return {value for value in values if isinstance(value, int | float | str)}

    def annotated(self) -> Iterator[str]:
        """Yield the ids that annotations speak of, in the order in which they come first."""
        query = "SELECT picture FROM annotations WHERE picture NOT NULL GROUP BY picture ORDER BY min(rowid)"
        for (key,) in self._base.execute(query):
            yield key

    def read(self, start: int, stop: int) -> list[tuple[Any, list[Any]]]:
        """Return pictures ``start`` to ``stop``, each with its annotations in their order."""
        self._base.execute("CREATE INDEX IF NOT EXISTS by_picture ON annotations (picture)")
        found: dict[int, tuple[Any, list[Any]]] = {}
        query = """SELECT number, id, pictures.row, annotations.row FROM pictures
                   LEFT JOIN annotations ON annotations.picture = pictures.id
                   WHERE number > ? AND number <= ? ORDER BY number, annotations.rowid"""
        for number, key, row, annotation in self._base.execute(query, (start, stop)):
            if number not in found:
                picture = json.loads(row)
                if key is None and isinstance(picture, dict):
                    picture.pop("id", None)
                found[number] = (picture, [])
            if annotation is not None:
                found[number][1].append(json.loads(annotation))
        return list(found.values())

    def parts(
        self,
        label: str,
        identity: str,
        rows: Callable[[list[tuple[Any, list[Any]]]], Iterator[RawRow]],
        rows_per_part: int,
    ) -> Iterator[Part]:
        """Cut the pictures into parts; the first drops, and so counts, the annotations of pictures that are not here.

        Args:
            label: of the file, for messages.
            identity: of everything that the rows depend on.
            rows: makes raw rows of some pictures with their annotations, where the part is read.
            rows_per_part: pictures in one part.
        """
        strays = self._count_strays()
        for start in range(0, len(self), rows_per_part):
            pictures = self.read(start, start + rows_per_part)
            stop = start + len(pictures)
            name = f"{label}, pictures {start} to {stop}"
            read = partial(_after_strays, label, 0 if start else strays, rows, pictures)
            yield Part(name, f"{identity} {start}-{stop}", read, stop - start)

    def _count_strays(self) -> int:
        query = """SELECT count(*) FROM annotations
                   WHERE picture IS NULL OR picture NOT IN (SELECT id FROM pictures WHERE id NOT NULL)"""
        return int(self._base.execute(query).fetchone()[0])


def _after_strays(
    label: str, count: int, rows: Callable[[list[tuple[Any, list[Any]]]], Iterator[RawRow]], pictures: list[Any]
) -> Iterator[RawRow]:
    yield from (DroppedBox(label, "picture_unknown") for _ in range(count))
    yield from rows(pictures)


def text_id(key: Any) -> str | None:
    """Return an id as text, the same for 7, 7.0 and "7", which files mix; None for what cannot be one."""
    if type(key) is int:
        return str(key)
    if isinstance(key, float) and key.is_integer():
        return str(int(key))
    # JSON can hold half a surrogate pair, which the database does not take.
    return key.encode("utf-8", "backslashreplace").decode() if isinstance(key, str) else None
