"""What is reviewed in one go: the rows in their order, what was decided of each, and who looks at which."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from glip_model.images import ImageError
from pipeline.inspection.gallery import Pair, describe_pair, to_jpeg
from pipeline.inspection.reading import read_record, read_records
from pipeline.inspection.search import Found
from pipeline.review.decisions import Decision, DecisionError, Row, check_places, settle
from pipeline.review.store import DecisionStore
from pipeline.store.images import load_image
from pipeline.store.records import GroundingRecord, ImageRef

PICTURE_SIDE = 1600
"""Pixels of a served picture's longer side, at most."""
KEPT_PICTURES = 64
OPEN_S = 90.0
"""How long a row counts as looked at by somebody who says nothing more."""


@dataclass
class _Entry:
    """A row of the session."""

    found: Found
    about: Row
    size: tuple[int, int]
    caption_length: int
    decisions: list[Decision] = field(default_factory=list)
    changed: int = 0
    """Version of the session's state that its decisions are from."""


class ReviewSession:
    """The rows of a page and what is decided of them; for several threads.

    Args:
        found: rows, in the order in which they come.
        store: takes decisions.
        decided: what was decided before, of these rows and of others.
        max_pixels: larger pictures are not shown.
        roots: folders and URLs where pictures may be that do not lie in the shards.
        defects: what is broken in the rows is left out, and counted here; rows without a picture are not reviewed.

    Attributes:
        pairs: what the page knows of the rows.
        strangers: decisions of before that speak of rows as they are no more, or of rows that are not in this session.
    """

    def __init__(
        self,
        found: Sequence[Found],
        store: DecisionStore,
        decided: Iterable[Decision],
        max_pixels: int,
        roots: Sequence[str],
        defects: Counter[str],
    ) -> None:
        self._store, self._max_pixels, self._roots = store, max_pixels, tuple(roots)
        self._saving, self._lock = threading.Lock(), threading.Lock()  # who looks does not wait for a store that fails
        self._version = time.time_ns() // 1_000_000
        """Grows with every decision, also from one server to the next one that a page comes to."""
        self._open: dict[str, tuple[int, float]] = {}
        self._entries: list[_Entry] = []
        self.pairs: list[Pair] = []
        for place, record in zip(found, read_records(found, defects), strict=True):
            if record.image != ImageRef():
                self._add(place, record)
        self._numbers = {entry.about: number for number, entry in enumerate(self._entries)}
        self._seen: set[str] = set()
        self.strangers = 0
        for decision in decided:
            self._seen.add(decision.id)
            if decision.about in self._numbers:
                self._enter(decision)
            else:
                self.strangers += 1
        self._picture = lru_cache(KEPT_PICTURES)(self._read_picture)

    def picture(self, number: int) -> bytes:
        """Return the picture of a row as JPEG.

        Raises:
            IndexError: there is no such row.
            ImageError: it cannot be shown.
            ShardError: its shard is broken.
        """
        if not 0 <= number < len(self._entries):
            raise IndexError(number)
        return self._picture(number)

    def save(self, decision: Decision) -> None:
        """Keep a decision; when this returns, it is there. One that is there already is not written again.

        Raises:
            DecisionError: it speaks of no row of this session, or of places outside of its picture or caption.
            StorageError: it could not be written.
        """
        number = self._numbers.get(decision.about)
        if number is None:
            raise DecisionError("no such row; was it labelled anew? Load the page again")
        check_places(decision, self._entries[number].size, self._entries[number].caption_length)
        with self._saving:
            if decision.id in self._seen:
                return
            self._store.add([decision])
            self._seen.add(decision.id)
            with self._lock:
                self._version += 1
                self._enter(decision)

    def look(self, number: int | None, reviewer: str) -> None:
        """Say which row somebody looks at; None is none."""
        with self._lock:
            if number is None or not 0 <= number < len(self._entries):
                self._open.pop(reviewer, None)
            else:
                self._open[reviewer] = (number, time.monotonic() + OPEN_S)

    def state(self, since: int) -> dict[str, object]:
        """Return what was decided after a version, and what people look at, as plain values."""
        with self._lock:
            decided = {n: self._standing(entry) for n, entry in enumerate(self._entries) if entry.changed > since}
            now = time.monotonic()
            self._open = {name: found for name, found in self._open.items() if found[1] > now}
            looked_at = {number: name for name, (number, _) in self._open.items()}
            return {"version": self._version, "decided": decided, "open": looked_at}

    def _add(self, place: Found, record: GroundingRecord) -> None:
        pair = describe_pair(record, f"picture/{len(self._entries)}")
        about = (record.key, str(pair["print"]))
        self._entries.append(_Entry(place, about, (record.width, record.height), len(record.caption)))
        self.pairs.append(pair)

    def _enter(self, decision: Decision) -> None:
        entry = self._entries[self._numbers[decision.about]]
        entry.decisions.append(decision)
        entry.changed = self._version

    @staticmethod
    def _standing(entry: _Entry) -> dict[str, object] | None:
        for settled in settle(entry.decisions).values():
            return settled.decision.model_dump(mode="json", include={"reviewer", "phrases"})
        return None

    def _read_picture(self, number: int) -> bytes:
        record = read_record(*self._entries[number].found)
        if record.key != self._entries[number].about[0]:
            raise ImageError("image_missing", "the shards were written anew meanwhile; start glip review again")
        return to_jpeg(load_image(record.image, self._max_pixels, self._roots), PICTURE_SIDE)
