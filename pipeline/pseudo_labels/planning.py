"""What labelling will take: measured on a sample, scaled to all pairs, simulated with machines that go away."""

from __future__ import annotations

import heapq
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.errors import ConfigError, MissingInputError
from pipeline.phrases.parsers import make_parser
from pipeline.phrases.settings import PhrasesConfig
from pipeline.pseudo_labels.decoding import PictureDecoder
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.progress import Figures
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import PreparedTeacher, Teacher, prepared
from pipeline.store.records import CaptionRecord, GroundingRecord, PhrasesRecord
from pipeline.store.shards import list_shards, read_end, read_shard, write_shard
from pipeline.store.storage import Place, side_by_side, size

HOUR = 3600.0


@dataclass(frozen=True)
class Workload:
    """What there is to label."""

    pairs: int
    shards: int
    bytes: int
    """Size of the input shards."""


@dataclass(frozen=True)
class Rates:
    """What one machine does; None where nothing was measured."""

    images_per_s: float
    """Throughput of one GPU, or of this machine without one, with reading and decoding."""
    asked_per_s: float | None = None
    """Throughput of the teacher alone, if it never waited."""
    prepared_per_core_s: float | None = None
    """Pictures a CPU second of all that is around the teacher: reading, decoding, resizing, batching, selecting."""
    captions_per_core_s: float | None = None
    bytes_per_pair: float | None = None
    """Size of the output."""
    boxes_per_pair: float | None = None

    def beside(self, speeds: Sequence[float]) -> Rates:
        """Return the rates where other teachers look at every picture as well, each at such a speed if alone."""
        asked = self.asked_per_s and one_after_another([self.asked_per_s, *speeds])
        return replace(self, images_per_s=one_after_another([self.images_per_s, *speeds]), asked_per_s=asked)


@dataclass(frozen=True)
class Interruptions:
    """Machines that go away: spot instances that are taken back, and broken ones."""

    mean_hours: float
    """Mean time between two interruptions of one GPU."""
    restart_s: float = 300.0
    """Time until another GPU works in its place."""


@dataclass(frozen=True)
class Outcome:
    """The simulated time and cost of a run over some GPUs."""

    gpus: int
    wall_hours: float
    gpu_hours: float
    """Paid for, from the first shard to the last."""
    wasted_share: float
    """Share of the GPU-hours whose shards were lost half done."""
    interruptions: int

    def times(self, rounds: int) -> Outcome:
        """Return the sum of this many runs one after the other."""
        return replace(
            self,
            wall_hours=rounds * self.wall_hours,
            gpu_hours=rounds * self.gpu_hours,
            interruptions=rounds * self.interruptions,
        )


def one_after_another(speeds: Sequence[float]) -> float:
    """Return pictures a second of several teachers of which each looks at every picture, in turn.

    Args:
        speeds: pictures a second of each teacher if it were the only one.

    Raises:
        ConfigError: one is not above zero.
    """
    if not all(speed > 0 for speed in speeds):
        raise ConfigError(f"{', '.join(f'{speed:g}' for speed in speeds)} images/s; expected all above zero")
    return 1 / sum(1 / speed for speed in speeds)


def survey(records: Place) -> Workload:
    """Count what is to be labelled by the ends of its shards.

    Raises:
        MissingInputError: there are no shards.
        ShardError: one is broken.
    """
    shards = list_shards(records)
    rows = sum(end.num_rows for end, _ in side_by_side(read_end, shards))
    return Workload(rows, len(shards), sum(side_by_side(size, shards)))


def measure(
    records: Place,
    teacher: Teacher | PreparedTeacher,
    config: PseudoLabelConfig,
    phrases: PhrasesConfig,
    max_image_pixels: int,
    sample: int,
    cores: int,
    roots: Sequence[str],
) -> Rates:
    """Label a sample on this machine, with everything that the stage does around the teacher.

    Args:
        records: shards of web pairs; the first rows are taken.
        teacher: loaded on the device that is to be measured.
        config: settings of the stage.
        phrases: settings of the parser.
        max_image_pixels: larger pictures are refused.
        sample: rows.
        cores: decoder processes.
        roots: folders and URLs that pictures must lie below, see ``check_inside``.

    Raises:
        MissingInputError: there are no rows.
    """
    rows = itertools.chain.from_iterable(read_shard(shard, CaptionRecord) for shard in list_shards(records))
    pairs = list(itertools.islice(rows, sample))
    if not pairs:
        raise MissingInputError(f"{records}: no rows to measure by")
    parser = make_parser(phrases)
    captions = [(pair.key, pair.caption) for pair in pairs]
    parser.parse(captions)  # warm
    start = time.process_time()
    parsed = parser.parse(captions)
    parse_s = time.process_time() - start
    with PictureDecoder(max_image_pixels, config.decode_timeout_s, cores, roots) as decoder:
        labeller = PseudoLabeller(teacher, config, decoder.decode)
        labeller.label(pairs[: config.batch_size], parsed[: config.batch_size])  # warm
        busy: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            labelled = _label_two(labeller, pairs, parsed, lambda figures: busy.append(figures.busy_s))
            path = Path(folder) / "part-00000.parquet"
            write_shard(path, labelled, GroundingRecord)
            label_s = time.monotonic() - start
            written = path.stat().st_size
        around = PseudoLabeller(_Silent(teacher), config, decoder.decode)
        start = time.process_time() + decoder.cpu_s
        _label_two(around, pairs, parsed)
        around_s = time.process_time() + decoder.cpu_s - start
    boxes = sum(len(phrase.boxes) for record in labelled for phrase in record.phrases)
    return Rates(
        images_per_s=len(pairs) / label_s,
        asked_per_s=len(pairs) / sum(busy) if sum(busy) else None,
        prepared_per_core_s=len(pairs) / around_s,
        captions_per_core_s=len(pairs) / parse_s,
        bytes_per_pair=written / len(pairs),
        boxes_per_pair=boxes / len(pairs),
    )


class _Silent:
    """Prepares as a teacher does, and finds nothing in no time."""

    def __init__(self, teacher: Teacher | PreparedTeacher) -> None:
        self._teacher = prepared(teacher)
        self.resize_rule = self._teacher.resize_rule

    def prepare(self, images: Sequence[Any], prompts: Sequence[Prompt]) -> Any:
        self._teacher.prepare(images, prompts)
        return len(images)

    def answer(self, question: Any) -> list[Detections]:
        return [Detections.none()] * question


def _label_two(
    labeller: PseudoLabeller,
    pairs: Sequence[CaptionRecord],
    parsed: Sequence[PhrasesRecord],
    on_batch: Callable[[Figures], None] = lambda figures: None,
) -> list[GroundingRecord]:
    """Label rows as two shards at once, as the stage has it: one is decoded while the other is in the teacher."""
    half = (len(pairs) + 1) // 2
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(
            labeller.label, [pairs[:half], pairs[half:]], [parsed[:half], parsed[half:]], [on_batch, on_batch]
        )
        return list(itertools.chain.from_iterable(parts))


def simulate(
    workload: Workload,
    rates: Rates,
    gpus: int,
    interruptions: Interruptions | None = None,
    shards_at_once: int = 2,
    seed: int = 0,
) -> Outcome:
    """Play a run through, shard by shard.

    Every GPU works on some shards at once, each at its part of the speed. One that is interrupted loses what it had
    done of them; they go back to the queue, and the GPU returns after a while. Interruptions come at random, at the
    same rate at all times.

    Raises:
        ConfigError: a number makes no sense.
    """
    if gpus < 1 or workload.pairs < 1 or rates.images_per_s <= 0:
        raise ConfigError(
            f"{gpus} GPUs at {rates.images_per_s} images/s for {workload.pairs} pairs; expected all above zero"
        )
    alone_s = workload.pairs / workload.shards / rates.images_per_s
    return _Simulation(workload.shards, alone_s, gpus, interruptions, shards_at_once, random.Random(seed)).play()


@dataclass
class _Simulation:
    """The state of a played run: what is queued, what each GPU has begun, what happens next."""

    shards: int
    alone_s: float
    """Time of a shard on a GPU that works on no other."""
    gpus: int
    interruptions: Interruptions | None
    slots: int
    rng: random.Random

    def __post_init__(self) -> None:
        self._left = self._queue = self.shards
        self._tie = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._begun: dict[int, dict[int, float]] = {}
        """Shards in work by running GPU, with the time at which each began."""
        self._wasted_s, self._count = 0.0, 0

    def play(self) -> Outcome:
        now = 0.0
        for gpu in range(self.gpus):
            self._start(gpu, now)
        while self._left:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        return Outcome(
            gpus=self.gpus,
            wall_hours=now / HOUR,
            gpu_hours=self.gpus * now / HOUR,
            wasted_share=self._wasted_s / (self.shards * self.alone_s + self._wasted_s),
            interruptions=self._count,
        )

    def _at(self, moment: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._tie), happen))

    def _start(self, gpu: int, now: float) -> None:
        self._begun[gpu] = {}
        self._fill(gpu, now)
        if self.interruptions is not None:
            life_s = self.rng.expovariate(1 / (self.interruptions.mean_hours * HOUR))
            self._at(now + life_s, partial(self._interrupt, gpu, self.interruptions.restart_s))

    def _fill(self, gpu: int, now: float) -> None:
        while self._queue and gpu in self._begun and len(self._begun[gpu]) < self.slots:
            self._queue -= 1
            shard = next(self._tie)
            self._begun[gpu][shard] = now
            self._at(now + self.slots * self.alone_s, partial(self._finish, gpu, shard))

    def _finish(self, gpu: int, shard: int, now: float) -> None:
        if self._begun.get(gpu, {}).pop(shard, None) is not None:  # else it was lost meanwhile
            self._left -= 1
            self._fill(gpu, now)

    def _interrupt(self, gpu: int, restart_s: float, now: float) -> None:
        lost = self._begun.pop(gpu)
        self._wasted_s += sum(now - since for since in lost.values()) / self.slots
        self._queue += len(lost)
        self._count += 1
        self._at(now + restart_s, partial(self._start, gpu))
        for other in range(self.gpus) if lost else ():
            self._fill(other, now)
