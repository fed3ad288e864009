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
    """Counts and times of one batch, or of all."""

    rows: int = 0
    boxes: int = 0
    busy_s: float = 0.0
    """Time spent in the teacher."""
    rejects: Mapping[str, int] = field(default_factory=dict)
    """Rows by reason."""

    def __add__(self, other: Figures) -> Figures:
        """Return the sums."""
        rejects = Counter(self.rejects) + Counter(other.rejects)
        return Figures(self.rows + other.rows, self.boxes + other.boxes, self.busy_s + other.busy_s, rejects)


@dataclass(frozen=True)
class Reading:
    """The state of a meter."""

    total: Figures
    rows_per_s: float
    teachers_busy: float
    """Teachers that are at work, on average."""


class Meter:
    """Sums figures of many workers, and counts how often each shard was begun."""

    def __init__(self) -> None:
        self._total = Figures()
        self._begun: Counter[str] = Counter()
        self._recent = deque([(time.monotonic(), self._total)])

    def begin(self, shard: str) -> int:
        """Return how often a shard was begun, this time included."""
        self._begun[shard] += 1
        return self._begun[shard]

    def add(self, figures: Figures) -> None:
        """Count a batch."""
        self._total += figures
        now = time.monotonic()
        self._recent.append((now, self._total))
        while len(self._recent) > 2 and self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()

    def read(self) -> Reading:
        """Return the sums and the speeds."""
        total, (start, first) = self._total, self._recent[0]
        seconds = max(time.monotonic() - start, 1e-9)
        return Reading(total, (total.rows - first.rows) / seconds, (total.busy_s - first.busy_s) / seconds)


def describe(reading: Reading) -> str:
    """Say in one line what a meter reads."""
    total = reading.total
    rejects = ", ".join(f"{reason} {count:,}" for reason, count in Counter(total.rejects).most_common(3))
    line = f"{total.rows:,} rows, {reading.rows_per_s:,.0f}/s, {total.boxes:,} boxes"
    return f"{line}, {reading.teachers_busy:.1f} teachers busy" + (f", without boxes: {rejects}" if rejects else "")
