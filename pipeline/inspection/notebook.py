"""Rows of labels that draw themselves in a notebook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glip_model.images import MAX_PIXELS, ImageError
from glip_model.notebook import picture_html
from pipeline.inspection.reading import read_records
from pipeline.inspection.search import Filter, sample_rows
from pipeline.store.drawing import draw_phrases
from pipeline.store.image_roots import allowed_roots
from pipeline.store.images import image_roots, load_image
from pipeline.store.records import GroundingRecord
from pipeline.store.storage import to_place


@dataclass(frozen=True)
class LabelRow:
    """A row of labels, shown by Jupyter as its picture with boxes; detection records come as their names' phrases."""

    record: GroundingRecord
    roots: tuple[str, ...]
    """Below which its picture may be."""

    def _repr_html_(self) -> str:
        """Show the picture with its boxes, the phrases, and why there are no boxes or no picture."""
        record, note = self.record, self.record.reject_reason or ""
        try:
            picture = draw_phrases(load_image(record.image, MAX_PIXELS, self.roots), record.phrases, record.caption)
        except ImageError as error:
            picture, note = None, f"{error.reason}: {error}"
        head = ("phrase", "boxes", "scores", "reason")
        rows = [
            (
                phrase.text,
                str(len(phrase.boxes)),
                ", ".join(f"{box.score:.2f}" for box in phrase.boxes),
                phrase.reject_reason or "",
            )
            for phrase in record.phrases
        ]
        return picture_html(picture, [head, *rows], note)


def label_rows(
    url: str | Path, count: int = 6, wanted: Filter | None = None, seed: int = 0, roots: Sequence[str] = ()
) -> list[LabelRow]:
    """Return some rows of labels, each as likely as any other; what is broken in them is left out.

    Args:
        url: folder of shards, one of them, or a URL.
        count: rows at most.
        wanted: what they must be like; None takes any.
        seed: of the choice.
        roots: folders and URLs that pictures may be below, besides the shards' own folder.

    Raises:
        MissingInputError: there are no shards.
        ShardError: one is broken, or holds other records.
    """
    place = to_place(str(url))
    found = sample_rows(place, wanted or Filter(), count, seed)
    below = tuple(image_roots(place, allowed_roots(roots)))
    return [LabelRow(record, below) for record in read_records(found, Counter())]
