"""Where decisions rest: JSON lines in small files on disk or in a store, each of which is whole at any moment.

A session writes files of names that nobody else has, so that people never overwrite one another. A file is written anew
with every decision until it is full; stores know no other way to add to a file, and a kill leaves no part of a line.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterable

from pipeline.errors import MissingInputError
from pipeline.review.decisions import Decision, DecisionError, parse_decision
from pipeline.store.atomic import replacing
from pipeline.store.storage import Place, exists, is_folder, list_files, read_text, side_by_side

LINES = 64
"""Decisions of a file."""
PATTERN = "*.jsonl"


class DecisionStore:
    """Adds decisions to a folder.

    Args:
        folder: on disk or in a store; it is made with the first decision.
    """

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._session, self._number = uuid.uuid4().hex[:12], 0
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def add(self, decisions: Iterable[Decision]) -> None:
        """Write decisions; when this returns, they are there.

        Raises:
            StorageError: they could not be written, and none of them counts; earlier ones stay.
        """
        with self._lock:
            waiting = [decision.model_dump_json() for decision in decisions]
            while waiting:
                room = LINES - len(self._lines)
                lines = [*self._lines, *waiting[:room]]
                self._write(lines)
                waiting, self._lines = waiting[room:], lines
                if len(lines) == LINES:
                    self._number, self._lines = self._number + 1, []

    def _write(self, lines: list[str]) -> None:
        place = self.folder / f"decisions-{self._session}-{self._number:05d}.jsonl"
        with replacing(place) as aside, aside.open("w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())  # also where the machine loses its power


def read_decisions(places: Iterable[Place], broken: Counter[str]) -> list[Decision]:
    """Read decisions, each one once, from folders and single files.

    Args:
        places: folders of ``*.jsonl``, or such files, as a page lets one download them.
        broken: counts lines that are no decisions, by what is wrong.

    Raises:
        MissingInputError: a place is neither a folder nor a file.
        StorageError: a store gives no answer.
    """
    files: list[Place] = []
    for place in places:
        if exists(place):
            files.append(place)
        elif is_folder(place):
            files += list_files(place, PATTERN)
        else:
            raise MissingInputError(f"{place}: no such folder or file of decisions; glip review makes it")
    found: dict[str, Decision] = {}
    for text in side_by_side(_read, files):
        for line in filter(str.strip, (text or "").split("\n")):
            try:
                decision = parse_decision(line)
            except DecisionError as error:
                broken[str(error)] += 1
            else:
                found.setdefault(decision.id, decision)
    return list(found.values())


def _read(place: Place) -> str | None:
    try:
        return read_text(place)
    except UnicodeDecodeError as error:
        raise MissingInputError(f"{place}: no text in UTF-8; name a file of decisions") from error
