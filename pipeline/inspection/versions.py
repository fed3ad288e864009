"""Two versions of the labels of the same pairs: what one has and the other has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image

from glip_model.boxes import iou
from pipeline.inspection.defects import sound_phrases
from pipeline.inspection.reading import read_pseudo_labels
from pipeline.store.dataset import connect
from pipeline.store.drawing import draw_phrases, join_pictures
from pipeline.store.records import GroundingRecord
from pipeline.store.storage import Place

SAME_IOU = 0.5
"""Boxes of one phrase that overlap as much are the same box."""
FETCHED_AT_ONCE = 1000
_CHANGED = """
    SELECT key, a.phrases, a.caption, a.width, a.height, b.phrases, b.caption, b.width, b.height,
        a.reject_reason, b.reject_reason
    FROM before AS a JOIN after AS b USING (key)
    WHERE a.phrases IS DISTINCT FROM b.phrases OR a.reject_reason IS DISTINCT FROM b.reject_reason
    ORDER BY key
"""
_UNCHANGED = """
    SELECT coalesce(sum(list_sum(list_transform(a.phrases, lambda phrase: len(phrase.boxes)))), 0)
    FROM before AS a JOIN after b USING (key)
    WHERE a.phrases IS NOT DISTINCT FROM b.phrases AND a.reject_reason IS NOT DISTINCT FROM b.reject_reason
"""


@dataclass
class Change:
    """What became of one pair."""

    key: str
    kept: int = 0
    gained: list[str] = field(default_factory=list)
    """Per box that only the second version has, its phrase."""
    lost: list[str] = field(default_factory=list)
    reasons: list[tuple[str | None, str | None]] = field(default_factory=list)
    """Reasons of the row and of its phrases, where they are others now."""


@dataclass
class Comparison:
    """What became of all pairs."""

    rows_in_both: int = 0
    rows_only_before: int = 0
    rows_only_after: int = 0
    rows_changed: int = 0
    boxes_kept: int = 0
    """In changed rows."""
    boxes_unchanged: int = 0
    """In rows that are the same in both versions."""
    boxes_gained: int = 0
    boxes_lost: int = 0
    reasons: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    most_changed: list[Change] = field(default_factory=list)
    defects: Counter[str] = field(default_factory=Counter)
    """What is broken in either version, in changed rows, and left out; see ``defects.KINDS``."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dict(vars(self))
        values["reasons"] = {f"{old or 'none'} → {new or 'none'}": n for (old, new), n in self.reasons.most_common()}
        return values | {"most_changed": [vars(change) for change in self.most_changed]}


def compare(before: Place, after: Place, examples: int) -> Comparison:
    """Compare two versions pair by pair, by key.

    Args:
        before: shards of the first version.
        after: shards of the second.
        examples: pairs with the most changes to name.

    Raises:
        MissingInputError: one of them has no shards.
        ShardError: one holds other records.
    """
    total = Comparison()
    with connect(before=read_pseudo_labels(str(before)), after=read_pseudo_labels(str(after))) as db:
        total.rows_in_both, total.rows_only_before, total.rows_only_after = db.execute(
            "SELECT count(*) FILTER (a.key IS NOT NULL AND b.key IS NOT NULL), count(*) FILTER (b.key IS NULL), "
            "count(*) FILTER (a.key IS NULL) FROM (SELECT key FROM before WHERE key IS NOT NULL) AS a "
            "FULL JOIN (SELECT key FROM after WHERE key IS NOT NULL) AS b USING (key)"
        ).fetchall()[0]
        for table in ("before", "after"):
            total.defects["key_missing"] += db.execute(f"SELECT count(*) - count(key) FROM {table}").fetchall()[0][0]
        total.boxes_unchanged = int(db.execute(_UNCHANGED).fetchall()[0][0])
        answer = db.execute(_CHANGED)
        while rows := answer.fetchmany(FETCHED_AT_ONCE):
            for row in rows:
                key, *sides, reason_before, reason_after = row
                one, other = (_sound(total.defects, *side) for side in (sides[:4], sides[4:]))
                _count(total, _change(key, one, other, reason_before, reason_after), examples)
    total.defects = +total.defects
    return total


def format_comparison(found: Comparison, titles: tuple[str, str]) -> str:
    """Lay a comparison out for a terminal."""
    lines = [
        f"{titles[0]} → {titles[1]}",
        f"  {found.rows_in_both:,} rows in both, {found.rows_only_before:,} only in the first, "
        f"{found.rows_only_after:,} only in the second",
        f"  {found.rows_changed:,} rows changed: {found.boxes_gained:,} boxes gained, {found.boxes_lost:,} lost, "
        f"{found.boxes_kept:,} kept",
    ]
    if found.reasons:
        lines += ["", "why there is no box, before → after"]
        lines += [f"  {old or '(boxes)'} → {new or '(boxes)'}  {n:,}" for (old, new), n in found.reasons.most_common()]
    if found.most_changed:
        lines += ["", "most changed (draw one with --row KEY --save PICTURE)"]
    for change in found.most_changed:
        signs = [f"+ {phrase}" for phrase in change.gained] + [f"- {phrase}" for phrase in change.lost]
        lines.append(f"  {change.key}  " + "  ".join(signs))
    return "\n".join(lines)


def draw_both(picture: Image.Image, before: GroundingRecord, after: GroundingRecord) -> Image.Image:
    """Draw one picture twice, with the labels of both versions side by side."""
    halves = [
        draw_phrases(picture, record.phrases, f"{title}: {record.caption}")
        for title, record in (("before", before), ("after", after))
    ]
    return join_pictures([halves])


def _count(total: Comparison, change: Change, examples: int) -> None:
    total.rows_changed += 1
    total.boxes_kept += change.kept
    total.boxes_gained += len(change.gained)
    total.boxes_lost += len(change.lost)
    total.reasons.update(change.reasons)
    total.most_changed.append(change)
    total.most_changed.sort(key=lambda each: (-len(each.gained) - len(each.lost), each.key))
    del total.most_changed[examples:]


def _sound(defects: Counter[str], phrases: Any, caption: str | None, width: int | None, height: int | None) -> Any:
    if caption is None or not width or not height:
        defects["caption_missing" if caption is None else "size_missing"] += 1
        return []
    return sound_phrases(phrases, caption, width, height, defects)


def _change(key: str, before: Any, after: Any, reason_before: str | None, reason_after: str | None) -> Change:
    change = Change(key)
    first, second = _by_place(before), _by_place(after)
    for place in dict.fromkeys([*first, *second]):
        mine, others = first.get(place, {}), second.get(place, {})
        text = str((others or mine)["text"])
        gained, lost, kept = match_boxes(mine.get("boxes") or [], others.get("boxes") or [])
        change.kept += kept
        change.gained += [text] * gained
        change.lost += [text] * lost
        change.reasons.append((mine.get("reject_reason"), others.get("reject_reason")))
    change.reasons = [(old, new) for old, new in (*change.reasons, (reason_before, reason_after)) if old != new]
    return change


def _by_place(phrases: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Return phrases by what they are and where they stand in the caption."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for each in phrases:
        found[each["text"], *((span["start"], span["end"]) for span in each["char_spans"])] = each
    return found


def match_boxes(before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> tuple[int, int, int]:
    """Return how many boxes were gained, lost and kept."""
    left = [_corners(box) for box in before]
    for box in map(_corners, after):
        same = max(left, key=partial(iou, box), default=None)
        if same is not None and iou(box, same) >= SAME_IOU:
            left.remove(same)
    kept = len(before) - len(left)
    return len(after) - kept, len(left), kept


def _corners(box: Mapping[str, float]) -> tuple[float, float, float, float]:
    return box["x1"], box["y1"], box["x2"], box["y2"]
