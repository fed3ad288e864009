"""What labelling has done so far, summed over all workers."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

WINDOW_S = 60.0
"""Speeds are those of the last minute."""


@dataclass(frozen=True)
class Figures:
    """Of one batch, or of all."""

    rows: int = 0
    boxes: int = 0
    busy_s: float = 0.0
    """In the teacher."""
    rejects: Mapping[str, int] = field(default_factory=dict)
    """Rows by reason."""


@dataclass(frozen=True)
class Reading:
    """What a meter says."""

    total: Figures
    rows_per_s: float
    teachers_busy: float
    """Teachers that are at work, on average."""


class Meter:
    """Sums figures of many workers, and counts how often each shard was begun."""

    def __init__(self) -> None:
        self._rows = self._boxes = 0
        self._rejects: Counter[str] = Counter()
        self._begun: Counter[str] = Counter()
        self._busy_s = 0.0
        self._recent: deque[tuple[float, int, float]] = deque([(time.monotonic(), 0, 0.0)])

    def begin(self, shard: str) -> int:
        """Return how often a shard was begun, this time included."""
        self._begun[shard] += 1
        return self._begun[shard]

    def add(self, figures: Figures) -> None:
        """Count a batch."""
        self._rows, self._boxes = self._rows + figures.rows, self._boxes + figures.boxes
        self._busy_s += figures.busy_s
        self._rejects.update(figures.rejects)
        now = time.monotonic()
        self._recent.append((now, self._rows, self._busy_s))
        while len(self._recent) > 2 and self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()

    def read(self) -> Reading:
        """Return the sums and the speeds."""
        start, rows, busy_s = self._recent[0]
        seconds = max(time.monotonic() - start, 1e-9)
        return Reading(
            total=Figures(self._rows, self._boxes, self._busy_s, dict(self._rejects)),
            rows_per_s=(self._rows - rows) / seconds,
            teachers_busy=(self._busy_s - busy_s) / seconds,
        )


def describe(reading: Reading) -> str:
    """Say in one line what a meter reads."""
    total = reading.total
    rejects = ", ".join(f"{reason} {count:,}" for reason, count in Counter(total.rejects).most_common(3))
    line = f"{total.rows:,} rows, {reading.rows_per_s:,.0f}/s, {total.boxes:,} boxes"
    return f"{line}, {reading.teachers_busy:.1f} teachers busy" + (f", without boxes: {rejects}" if rejects else "")
