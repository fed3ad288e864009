"""Which detection meets which ground truth, for all IoU thresholds and ranges of area at once.

COCO and LVIS match alike: within a picture and a category, detections choose best score first; each takes the free
truth that it overlaps most, the last of equals. A truth that is ignored, for being a crowd or of another size, is taken
only when no other is left, and its detection is then ignored too. A crowd stays free however often it is taken.

A choice depends on those before it in the same picture and category only. So all pictures and categories are matched
side by side: first the choices of their best detections, then of their second ones, and so on. The 40 cases, 10
thresholds in 4 ranges of area, are the bits of one uint64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("all", "small", "medium", "large")
AREA_RANGES = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])
"""Least and largest area in pixels², both included."""
NUM_CASES = len(AREAS) * len(IOU_THRESHOLDS)
_THRESHOLDS = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)  # as the evaluators compare
_ALL_THRESHOLDS = np.uint64((1 << len(IOU_THRESHOLDS)) - 1)
_AREA_SHIFTS = np.arange(len(AREAS), dtype=np.uint64) * np.uint64(len(IOU_THRESHOLDS))
_IN_EVERY_AREA = np.bitwise_or.reduce(np.uint64(1) << _AREA_SHIFTS)
_ALL_CASES = np.uint64((1 << NUM_CASES) - 1)
_NO_CASE = np.uint64(0)
_BLOCK_PAIRS = 1_000_000
"""Pairs of a detection and a truth whose overlap is computed at once, about 200 MB."""


class _Columns:
    """Flat arrays of one length."""

    def select(self, rows: np.ndarray) -> Self:
        """Return some rows, or all in another order."""
        return type(self)(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Truth(_Columns):
    """Ground truth as flat arrays; pictures and categories are numbered in the order in which they are evaluated."""

    pictures: np.ndarray
    """(G,) int64."""
    categories: np.ndarray
    """(G,) int64."""
    boxes_xywh: np.ndarray
    """(G, 4) float64."""
    areas: np.ndarray
    """(G,) float64, of the mask where there is one."""
    is_crowd: np.ndarray
    """(G,) bool: overlap is the share of the detection that it covers; ignored, and can be met many times."""
    is_ignored: np.ndarray
    """(G,) bool: neither to be found nor to be missed, for another reason."""
    is_mute: np.ndarray
    """(G,) bool: whoever takes it still counts as unmatched. The evaluators treat an annotation with id 0 so."""


@dataclass(frozen=True)
class Found(_Columns):
    """Detections as flat arrays; pictures and categories are numbered as in ``Truth``."""

    pictures: np.ndarray
    """(D,) int64."""
    categories: np.ndarray
    """(D,) int64, -1 for one that the vocabulary lacks."""
    boxes_xywh: np.ndarray
    """(D, 4) float64."""
    scores: np.ndarray
    """(D,) float64."""

    @property
    def areas(self) -> np.ndarray:
        """(D,) float64 width times height."""
        with np.errstate(over="ignore"):
            return np.asarray(self.boxes_xywh[:, 2] * self.boxes_xywh[:, 3])


@dataclass(frozen=True)
class Matches:
    """Detections and truths ordered by category, then picture, then score, and how they met; see ``unpack``."""

    truth: Truth
    found: Found
    ranks: np.ndarray
    """(D,) place of a detection among those of its picture and category, the best is 0."""
    matched: np.ndarray
    """(D,) uint64 cases in which it met a truth, ignored or not."""
    ignored: np.ndarray
    """(D,) uint64 cases in which it counts neither as hit nor as false alarm."""
    wanted: np.ndarray
    """(G,) uint64 cases in which a truth is to be found."""

    def rankings(self, num_categories: int) -> Iterator[np.ndarray]:
        """Yield each category's detections, best score first, of equals that of the first picture."""
        for part in split_by_category(self.found.categories, num_categories):
            yield part.start + np.argsort(-self.found.scores[part], kind="stable")


def match(truth: Truth, found: Found, max_per_group: int | None = None, lenient: np.ndarray | None = None) -> Matches:
    """Match detections with ground truth.

    Args:
        truth: in any order; of equals the later one is met first.
        found: in any order; of equal scores the earlier one chooses first. Unknown categories are left out.
        max_per_group: best detections of a picture and category that count, None for all.
        lenient: (D,) bool, detections that are no false alarms when nothing matches them.
    """
    lenient = np.zeros(len(found.scores), bool) if lenient is None else lenient
    truth = truth.select(np.lexsort((truth.pictures, truth.categories)))
    order = np.lexsort((-found.scores, found.pictures, found.categories))
    order = order[found.categories[order] >= 0]
    ranks = places_in_runs(found.pictures[order], found.categories[order])
    if max_per_group is not None:
        order, ranks = order[ranks < max_per_group], ranks[ranks < max_per_group]
    found, lenient = found.select(order), lenient[order]
    wanted = np.where(truth.is_crowd | truth.is_ignored, _NO_CASE, _within(truth.areas))
    matched, ignored = _take_turns(truth, wanted, found)
    excused = np.where(lenient, _ALL_CASES, ~_within(found.areas) & _ALL_CASES)
    return Matches(truth, found, ranks, matched, ignored | (~matched & excused), wanted)


def split_by_category(categories: np.ndarray, num_categories: int) -> list[slice]:
    """Return where each category lies in (N,) rising categories."""
    return list(itertools.starmap(slice, itertools.pairwise(np.searchsorted(categories, range(num_categories + 1)))))


def unpack(cases: np.ndarray) -> np.ndarray:
    """Return (4 ranges of area, 10 IoU thresholds, N) bool of (N,) uint64."""
    octets = cases.astype("<u8").view(np.uint8).reshape(len(cases), 8)[:, : -(-NUM_CASES // 8)]
    bits = np.unpackbits(octets, axis=1, count=NUM_CASES, bitorder="little")
    return np.ascontiguousarray(bits.T).view(bool).reshape(len(AREAS), len(IOU_THRESHOLDS), len(cases))


def places_in_runs(*columns: np.ndarray) -> np.ndarray:
    """Return (N,) the place of each row within its run of equal ones."""
    numbers = np.arange(len(columns[0]))
    is_first = np.ones(len(numbers), bool)
    is_first[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.asarray(numbers - np.maximum.accumulate(np.where(is_first, numbers, 0)))


def _within(areas: np.ndarray) -> np.ndarray:
    """Return (N,) uint64: all cases of the ranges that an area lies in."""
    low, high = AREA_RANGES.T
    inside = (areas[:, None] >= low) & (areas[:, None] <= high)  # (N, ranges)
    return np.asarray(np.bitwise_or.reduce(np.where(inside, _ALL_THRESHOLDS << _AREA_SHIFTS, _NO_CASE), axis=1))


def _take_turns(truth: Truth, wanted: np.ndarray, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Return (D,) uint64 each: cases in which a detection matches, and in which it does so with an ignored truth."""
    matched, ignored, served = np.zeros((3, len(found.scores)), np.uint64)
    free = np.full(len(truth.areas), _ALL_CASES)
    used_up = np.where(truth.is_crowd, _NO_CASE, _ALL_CASES)
    shown = np.where(truth.is_mute, _NO_CASE, _ALL_CASES)
    for choices in _turns(found, *_overlaps(truth, found)):
        # An ignored truth is taken only where no wanted one is left: so all choices are gone through twice.
        for is_wanted in (True, False):
            for d, g, reached in choices:
                taken = reached & (wanted[g] if is_wanted else ~wanted[g]) & free[g] & ~served[d]
                served[d] |= taken
                matched[d] |= taken & shown[g]
                free[g] &= ~(taken & used_up[g])
                if not is_wanted:
                    ignored[d] |= taken
    return matched, ignored


def _overlaps(truth: Truth, found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return detection, truth and IoU of all pairs that reach the lowest threshold, in order of detections."""
    num_pictures = 1 + max(truth.pictures.max(initial=0), found.pictures.max(initial=0))
    groups = found.categories * num_pictures + found.pictures
    truth_groups = truth.categories * num_pictures + truth.pictures
    first = np.searchsorted(truth_groups, groups, "left")
    counts = np.searchsorted(truth_groups, groups, "right") - first
    # In blocks, because all pairs of a large benchmark would not fit into memory.
    edges = np.searchsorted(np.cumsum(counts) - counts, np.arange(0, counts.sum() + _BLOCK_PAIRS, _BLOCK_PAIRS))
    kept = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for block in itertools.starmap(slice, itertools.pairwise(edges)):
        d = np.repeat(np.arange(block.start, block.stop), counts[block])
        g = np.repeat(first[block], counts[block]) + places_in_runs(d)
        iou = _iou(found.boxes_xywh[d], truth.boxes_xywh[g], truth.is_crowd[g])
        near = iou >= _THRESHOLDS[0]
        kept.append((d[near], g[near], iou[near]))
    d, g, iou = (np.concatenate(columns) for columns in zip(*kept, strict=True))
    return d, g, iou


def _iou(boxes: np.ndarray, truths: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Return (P,) intersection over union, or for crowds over the detection; in the evaluators' order of operations."""
    x, y, width, height = boxes.T
    truth_x, truth_y, truth_width, truth_height = truths.T
    with np.errstate(all="ignore"):  # sizes that leave the range of floats
        shared_width = np.minimum(width + x, truth_width + truth_x) - np.maximum(x, truth_x)
        shared_height = np.minimum(height + y, truth_height + truth_y) - np.maximum(y, truth_y)
        shared = shared_width * shared_height
        area = width * height
        union = np.where(is_crowd, area, area + truth_width * truth_height - shared)
        return np.asarray(np.where((shared_width > 0) & (shared_height > 0), shared / union, 0.0))


def _turns(
    found: Found, d: np.ndarray, g: np.ndarray, iou: np.ndarray
) -> Iterator[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Yield for each turn the first choices of all detections whose turn it is, their second choices, and so on.

    A turn has at most one detection of a picture and category, so no detection and no truth is twice among the choices.

    Args:
        found: all detections.
        d: (P,) detection of each pair, rising.
        g: (P,) its truth.
        iou: (P,) their overlap.
    """
    order = np.lexsort((-g, -iou, d))  # of equal overlaps the evaluators take the last truth
    d, g, iou = d[order], g[order], iou[order]
    choice = places_in_runs(d)
    active = d[choice == 0]
    turn = places_in_runs(found.pictures[active], found.categories[active])[np.cumsum(choice == 0) - 1]
    order = np.lexsort((choice, turn))
    d, g, choice, turn = d[order], g[order], choice[order], turn[order]
    num_reached = np.searchsorted(_THRESHOLDS, iou[order], side="right").astype(np.uint64)
    # Thresholds rise, so a pair reaches the first ones; the product copies these bits into every range of area.
    reached = ((np.uint64(1) << num_reached) - np.uint64(1)) * _IN_EVERY_AREA
    starts = np.flatnonzero(places_in_runs(turn, choice) == 0)
    choices: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start, stop in itertools.pairwise([*starts, len(d)]):
        if choice[start] == 0 and choices:
            yield choices
            choices = []
        choices.append((d[start:stop], g[start:stop], reached[start:stop]))
    if choices:
        yield choices
