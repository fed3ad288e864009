"""Reports of a training, and sums between two reports."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.store.storage import Place

LOSS_NAMES = ("loss_token", "loss_box", "loss_centerness")


@dataclass(frozen=True)
class Progress:
    """A report of the training loop about the steps since its last one."""

    step: int
    losses: Mapping[str, float]
    """Means over steps and workers; NaN when every step was skipped."""
    learning_rate: float
    """Learning rate of the next step, for weights that are neither biases nor of backbone or text encoder."""
    images_per_s: float
    data_wait_share: float
    """Share of the time in which this worker waited for data."""
    skipped_steps: int
    """Steps since the beginning that were left out because their gradient was not finite."""
    unreadable_pictures: int
    """Pictures since the beginning, over all workers, that could not be read; another row replaced each."""
    memory_gb: float = 0.0
    """Peak memory of a worker so far: of its GPU, or of the machine where there is none."""
    seconds_left: float = 0.0
    """Time until the last step at the speed since this process began, evaluations included."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores on the dev set where it was evaluated after this step, in percent, by benchmark and measure."""
    pictures: tuple[str, ...] = ()
    """Files of the sample pictures drawn then."""


class Board:
    """Passes the progress of the first worker to the driver; an actor of Ray."""

    def __init__(self) -> None:
        self._entries: list[Progress | str] = []
        self._error: str | None = None

    def pin(self, entry: Progress | str) -> None:
        """Add a report, or a line for the log."""
        self._entries.append(entry)

    def fail(self, message: str) -> None:
        """Record a user's error, so that it reaches the driver as such; the first one counts."""
        self._error = self._error or message

    def read(self, start: int) -> list[Progress | str]:
        """Return the entries from number ``start`` on."""
        return self._entries[start:]

    def error(self) -> str | None:
        """Return the recorded error."""
        return self._error


class Window:
    """Sums over the steps between two reports."""

    def __init__(self, start: int) -> None:
        self.start, self.began = start, time.monotonic()
        self.waited = 0.0
        self.counted = 0
        self.sums = dict.fromkeys((*LOSS_NAMES, "loss"), 0.0)

    def add(self, losses: Mapping[str, float] | None) -> None:
        """Take in the losses of a step; a skipped step has none."""
        if losses is not None:
            self.counted += 1
            for name, value in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value


def peak_memory_gb() -> float:
    """Return the most memory that this process has taken so far: of its GPU, or else of the machine."""
    import torch  # which the process of a Board can do without

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_host_memory_gb()


def peak_host_memory_gb() -> float:
    """Return the most memory of the machine that this process has taken so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # Linux counts in KiB


def run_metrics(entries: Sequence[Progress], seconds: float) -> dict[str, Any]:
    """Return the metrics of a whole run: speeds are means over its reports, all else is what the last one says."""
    last = entries[-1]
    return {
        "steps": last.step,
        "seconds": round(seconds),
        "losses": {key: round(value, 4) if math.isfinite(value) else None for key, value in last.losses.items()},
        "images_per_s": round(sum(entry.images_per_s for entry in entries) / len(entries), 1),
        "data_wait_share": round(sum(entry.data_wait_share for entry in entries) / len(entries), 3),
        "skipped_steps": last.skipped_steps,
        "unreadable_pictures": last.unreadable_pictures,
        "memory_gb": last.memory_gb,
        **({"scores": last.scores} if last.scores else {}),
    }


def write_log(path: Place, entries: Sequence[Progress]) -> None:
    """Write what was reported as CSV, a line for each report."""
    from pipeline.store.atomic import write_csv

    rows = [
        {
            **asdict(entry),
            **{key: round(value, 5) for key, value in entry.losses.items()},
            **entry.scores,
            "seconds_left": round(entry.seconds_left),
        }
        for entry in entries
    ]
    speed = ["learning_rate", "images_per_s", "data_wait_share", "memory_gb", "seconds_left"]
    names = ["step", *entries[0].losses, *speed, *dict.fromkeys(name for entry in entries for name in entry.scores)]
    write_csv(path, [names, *([row.get(name, "") for name in names] for row in rows)])
