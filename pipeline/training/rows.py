"""How rows are read: row groups, all of them at once or a few while training goes on."""

from __future__ import annotations

import functools
import math
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.store.row_groups import Recent, RowGroups
from pipeline.store.shards import holds_detections, list_shards, read_table
from pipeline.store.storage import Place, side_by_side
from pipeline.training.counting import TokenCounter, is_reviewed, part_of
from pipeline.training.prompts import (
    NO_OTHER_NAMES,
    DetectionPrompter,
    GroundingPrompter,
    OtherNames,
    Prompter,
    Sample,
)
from pipeline.training.settings import SamplesConfig
from pipeline.training.weights import weigher


@dataclass(frozen=True)
class _Group:
    """The rows of a row group that can be shown, in memory."""

    table: pa.Table
    places: NDArray[np.int64]
    """In the table, of all rows of the group; -1 for those that cannot be shown."""
    context: Any
    """What they are shown with."""

    @functools.cached_property
    def is_tall(self) -> NDArray[np.bool_]:
        """Tell of every row of the table whether its picture is at least as high as it is wide."""
        return np.asarray(self.table["height"]) >= np.asarray(self.table["width"])


class Rows:
    """Rows of one kind of data, each of which can be turned into a sample.

    Rows that are read together lend one another negatives: those of a row group where they are streamed, else all.
    Which rows cannot be shown is known once they are read: streamed ones are counted all the same, others are not.

    Args:
        folder: of shards.
        prompter: shows the rows.
        is_streamed: row groups are read when their rows are asked for; else all of them now.
        allowed: where pictures may be besides ``folder``, see ``allowed_roots``.
        most: rows that people reviewed may be in memory, where the prompter shows these alone; None sets no limit.

    Raises:
        MissingInputError: there are no shards.
        ShardError: a shard is broken or lacks a column.
        TrainingError: there are more of them.

    Attributes:
        groups: where the rows stand.
        roots: folders and URLs that pictures must lie below.
    """

    def __init__(
        self,
        folder: Place,
        prompter: Prompter,
        is_streamed: bool = False,
        allowed: Sequence[str] = (),
        most: int | None = None,
    ) -> None:
        self.roots = (str(folder), *allowed)
        self.groups = RowGroups(list_shards(folder), prompter.columns)
        if prompter.part:
            self.groups = _with_reviewed_rows(self.groups, most)
        self._prompter = prompter
        self._numbers: NDArray[np.int64] | None = None
        """Of the rows that can be shown."""
        self._read: Recent[int, _Group] | list[_Group]
        if is_streamed:
            self._read = Recent(self._read_one, 1)
        else:
            self._read = self._read_together(range(len(self.groups)))
            can_be_shown = [group.places >= 0 for group in self._read]
            self._numbers = np.flatnonzero(np.concatenate([np.zeros(0, dtype=bool), *can_be_shown]))

    def __len__(self) -> int:
        """Count all rows where they are streamed, else those that can be shown."""
        return int(self.groups.rows.sum()) if self._numbers is None else len(self._numbers)

    @property
    def is_streamed(self) -> bool:
        """Whether row groups are read when their rows are asked for."""
        return isinstance(self._read, Recent)

    def sample(self, row: int, rng: np.random.Generator) -> Sample | None:
        """Show a row with a prompt that ``rng`` chooses; None where it cannot be shown."""
        group, place = self._find(row)
        if place < 0:
            return None
        return self._prompter.show(group.table.slice(place, 1).to_pylist()[0], group.context, rng)

    def sample_together(self, rows: Sequence[int], rng: np.random.Generator) -> Sample | None:
        """Show rows side by side, of those that can be and have the first one's vocabulary; None without that one."""
        if not isinstance(self._prompter, DetectionPrompter):
            return self.sample(rows[0], rng)
        found = [(group, place) for group, place in map(self._find, rows) if place >= 0]
        if self._find(rows[0])[1] < 0:
            return None
        context = found[0][0].context
        shown = [group.table.slice(place, 1).to_pylist()[0] for group, place in found if group.context == context]
        return self._prompter.show_together(shown, context, rng)

    def hold(self, rows: int, lanes: int) -> None:
        """Keep as many streamed row groups in memory as windows of so many rows, in so many lanes, can touch."""
        assert isinstance(self._read, Recent)
        mean = max(1.0, float(self.groups.rows.mean())) if len(self.groups) else 1.0
        self._read.size = math.ceil(rows / mean) + 2 * lanes  # a lane's window begins and ends inside of a group

    def held_groups(self) -> int:
        """Return how many row groups are in memory at a time, at most."""
        return min(self._read.size, len(self.groups)) if isinstance(self._read, Recent) else len(self.groups)

    def cost_of_a_group(self) -> tuple[float, float]:
        """Return the bytes of memory and the seconds that a row group of mean size takes, by reading the first one."""
        if not len(self.groups):
            return 0.0, 0.0
        begin = time.perf_counter()
        self._read_one(0)
        seconds = time.perf_counter() - begin  # and not below, where counting memory takes time of its own
        tracemalloc.start()  # counts Python's objects, and not Arrow's tables
        try:
            group = self._read_one(0)
            num_bytes = group.table.nbytes + tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        relative = float(self.groups.rows.mean()) / int(self.groups.rows[0])
        return relative * num_bytes, relative * seconds

    def digest(self) -> str:
        """Hash everything but the pictures, for which the keys stand; where rows are streamed, all that shards hold."""
        if isinstance(self._read, Recent):
            return self.groups.digest
        by_shard: dict[Place, list[pa.Table]] = {shard: [] for shard in self.groups.shards}
        for number, group in enumerate(self._read):
            by_shard[self.groups.shard(number)].append(group.table)
        return self._prompter.digest(by_shard)

    def is_tall(self) -> NDArray[np.bool_]:
        """Tell of every row that can be shown whether its picture is at least as high as it is wide; all in memory."""
        assert not isinstance(self._read, Recent)
        return np.concatenate([group.is_tall for group in self._read])

    def median_short_side(self) -> float:
        """Return the median of the short sides, in pixels, of the pictures in the first row group; 0 without one."""
        if not len(self.groups) or not self.groups.rows[0]:
            return 0.0
        table = self.groups.read(0, ("height", "width"))
        return float(np.median(np.minimum(np.asarray(table["height"]), np.asarray(table["width"]))))

    def is_tall_at(self, row: int) -> bool | None:
        """Tell of one row whether its picture is at least as high as it is wide; None where it cannot be shown."""
        group, place = self._find(row)
        return None if place < 0 else bool(group.is_tall[place])

    def _find(self, row: int) -> tuple[_Group, int]:
        """Return the group of a row, in memory, and its place in the group's table, -1 where it cannot be shown."""
        number, place = self.groups.locate(row if self._numbers is None else int(self._numbers[row]))
        group = self._read[number]
        return group, int(group.places[place])

    def _read_one(self, group: int) -> _Group:
        return self._read_together([group])[0]

    def _read_together(self, numbers: Sequence[int]) -> list[_Group]:
        """Read groups whose rows lend one another negatives; those of repeats are in memory once."""
        firsts = [self.groups.first_alike[number] for number in numbers]
        found = {first: self._prompter.shown(self.groups.read(first)) for first in dict.fromkeys(firsts)}
        contexts = self._prompter.contexts([(self.groups.shard(first), found[first][0]) for first in firsts])
        return [_Group(*found[first], context) for first, context in zip(firsts, contexts, strict=True)]


def _with_reviewed_rows(groups: RowGroups, most: int | None) -> RowGroups:
    """Return the groups that have rows which people reviewed, of which one column is read; the first where none has.

    Raises:
        TrainingError: there are more such rows than ``most``.
    """
    flags = side_by_side(lambda shard: is_reviewed(read_table(shard, ("height", "reviewed"))), groups.shards)
    of_shard = dict(zip(groups.shards, flags, strict=True))
    begins = groups.first_rows[np.searchsorted(groups.shard_of, groups.shard_of)]  # of the shard of each group
    counts = np.zeros(len(groups), dtype=np.int64)
    for group, (first, rows) in enumerate(zip(groups.first_rows - begins, groups.rows, strict=True)):
        counts[group] = of_shard[groups.shard(group)][first : first + rows].sum()
    if most is not None and counts.sum() > most:
        raise TrainingError(
            f"people reviewed {counts.sum()} rows, repeats counted, and all of them are in memory, which "
            f"train.samples.shuffle_window (={most}) allows for so many; raise it, or leave the source reviewed out of "
            "the mixture: its rows are then among the pseudo-labels"
        )
    return groups.only(counts > 0 if counts.any() else np.arange(len(groups)) == 0)


def make_sources(
    human: Place,
    pseudo: Place | None,
    weights: Mapping[str, float],
    config: SamplesConfig,
    tokenizer: Any,
    allowed: Sequence[str] = (),
    calibration: Place | None = None,
    *,
    replay: Place | None = None,
    others: OtherNames = NO_OTHER_NAMES,
) -> dict[str, Rows]:
    """Open the sources that the mixture gives weight to.

    Args:
        human: folder with detection/ and grounding/ records.
        pseudo: folder of pseudo-labels.
        weights: how often samples come from each source.
        config: section ``train.samples``.
        tokenizer: of the model.
        allowed: where pictures may be besides the records' folders, see ``allowed_roots``.
        calibration: of the pseudo-labels, see ``weigher``.
        replay: folder of shards of other data, of either kind.
        others: names that join the prompts of ``human`` pictures with category boxes.

    Raises:
        MissingInputError: a folder of shards, or the calibration, is not there.
        TrainingError: pseudo-labels or replay have weight but no folder, or no calibration that they need, was given;
            or more rows were reviewed than may be in memory.
    """
    count_tokens, is_streamed = TokenCounter(tokenizer), config.shuffle_window > 0
    sources: dict[str, Rows] = {}
    if weights.get("detection", 0) > 0:
        names = DetectionPrompter(config, count_tokens, others=others)
        sources["detection"] = Rows(human / "detection", names, is_streamed, allowed)
    if weights.get("grounding", 0) > 0:
        packing = config if config.pack_human_captions else replace(config, caption_negatives=0)
        captions = GroundingPrompter(packing, count_tokens, ignore_unlocated=False)
        sources["grounding"] = Rows(human / "grounding", captions, is_streamed, allowed)
    for name in ("pseudo", "reviewed"):
        if weights.get(name, 0) <= 0:
            continue
        if pseudo is None:
            raise TrainingError("the mixture gives pseudo-labels weight; pass --pseudo-labels FOLDER")
        prompter = _prompter_of_labels(name, pseudo, config, weights, calibration, count_tokens)
        # People's rows are few and far between: where the others stream, these are in memory.
        most = config.shuffle_window if is_streamed and name == "reviewed" else None
        sources[name] = Rows(pseudo, prompter, is_streamed and most is None, allowed, most)
    if weights.get("replay", 0) > 0:
        if replay is None:
            raise TrainingError("the mixture gives replay weight; pass --replay FOLDER")
        # As for pre-training, whatever the tuned data is shown with: its vocabulary is one of many names.
        sampled = replace(config, detection_prompts="sampled")
        prompter = _prompter_of(replay, sampled, count_tokens)
        sources["replay"] = Rows(replay, prompter, is_streamed, allowed)
    return sources


def _prompter_of_labels(
    name: str,
    folder: Place,
    config: SamplesConfig,
    weights: Mapping[str, float],
    calibration: Place | None,
    count_tokens: TokenCounter,
) -> Prompter:
    """Return what shows pseudo-labels, or the rows of them that people reviewed, as human ones."""
    share = config.phrase_prompts if config.pseudo_phrase_prompts is None else config.pseudo_phrase_prompts
    shown = replace(config, phrase_prompts=share)
    if name == "reviewed":
        return _prompter_of(folder, shown, count_tokens, part=part_of(name, weights))
    return _prompter_of(
        folder, shown, count_tokens, weigher(config, calibration), part_of(name, weights), config.pseudo_shape_weight
    )


def _prompter_of(
    folder: Place,
    config: SamplesConfig,
    count_tokens: TokenCounter,
    weigh: Callable[[float], float] | None = None,
    part: bool | None = None,
    shape_weight: float = 1.0,
) -> Prompter:
    """Return what shows the rows of a folder: boxes of names, of which what has no box is not there, or of phrases."""
    if holds_detections(list_shards(folder)[0]):
        return DetectionPrompter(config, count_tokens, weigh, part=part, shape_weight=shape_weight)
    return GroundingPrompter(config, count_tokens, config.ignore_unlocated, weigh, part, shape_weight)
