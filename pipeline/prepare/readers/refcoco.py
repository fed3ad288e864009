"""RefCOCO, RefCOCO+ and RefCOCOg as the ``refer`` tool kit distributes them: expressions for one object of a picture.

``refs(unc).p``, ``refs(google).p`` or ``refs(umd).p`` holds the expressions and their splits, ``instances.json`` beside
it the boxes and pictures, in COCO's format. All pictures come from COCO's train2014.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import Part, RawGrounding, RawPhrase, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.coco import CocoFile, Values, corners, places_of_2017, raw_image
from pipeline.prepare.readers.plain_pickle import load_plain_pickle
from pipeline.prepare.readers.spool import Spool
from pipeline.store.filesystem import file_identity
from pipeline.store.records import GroundingRecord
from pipeline.store.urls import redact


class _Reference(NamedTuple):
    """One object with what people called it."""

    name: str
    image_id: int | None
    ann_id: int | None
    captions: list[str | None]
    """None stands for a sentence that has no text."""


def read_refcoco(
    context: SourceContext,
    *,
    refs: Url,
    instances: Url,
    images: Url,
    split: Literal["train", "val", "test", "testA", "testB"],
    text: Literal["sent", "raw"] = "sent",
) -> list[RawTable]:
    """RefCOCO, RefCOCO+ or RefCOCOg: every expression is a row, one phrase with the box of its object.

    Where models are judged, by the roles ``dev`` and ``test``, the rows are referring expressions and not captions.
    ``test`` takes ``testA`` and ``testB`` together where a file has these. ``sent`` is an expression in lower case and
    without punctuation, which training and evaluation use everywhere; ``raw`` is as it was typed.
    """
    file = CocoFile(instances)
    identity = f"{file_identity(refs)} {file.identity} {redact(images)} {split} {text}"
    references = _load(refs, split, text)
    num_rows = sum(len(reference.captions) for reference in references)
    spool = _join(file, refs, references)
    name = f"{redact(refs)}, {split}"
    parts = partial(_parts, spool, images, name, identity, num_rows)
    return [RawTable(GroundingRecord, parts, num_rows, folder=context.folder_of_expressions())]


def _load(url: Url, split: str, text: str) -> list[_Reference]:
    """Return the references of a split, and those of which nobody can say which split is theirs."""
    content = load_plain_pickle(url)
    if not isinstance(content, list):
        raise MissingInputError(
            f"{redact(url)}: expected a list of references, found {type(content).__name__}; name a file such as "
            "refs(unc).p"
        )
    references, splits = [], set()
    for i, ref in enumerate(content):
        found = ref.get("split") if isinstance(ref, dict) else None
        if not isinstance(found, str):
            references.append(_Reference(f"reference {i}", None, None, [None]))
            continue
        splits.add(found[:20])
        if _is_in(found, split):
            references.append(_reference(ref, i, text))
    if not any(_is_in(found, split) for found in splits):
        raise MissingInputError(
            f"{redact(url)}: no references in split {split!r} (found: {', '.join(sorted(splits)[:10]) or 'none'}); "
            "mend the split in params.yaml"
        )
    return references


def _is_in(found: str, split: str) -> bool:
    """Tell whether a reference belongs to a split; some files have ``testAB``, which counts for both letters."""
    if split in {"testA", "testB"}:
        return found.startswith("test") and split[-1] in found
    return found == split or (split == "test" and found.startswith("test"))


def _reference(ref: Values, number: int, text: str) -> _Reference:
    image_id, ann_id, sentences = ref.get("image_id"), ref.get("ann_id"), ref.get("sentences")
    name = f"reference {number}"
    if not isinstance(sentences, list):
        return _Reference(name, None, None, [None])
    found = [sentence.get(text) if isinstance(sentence, dict) else None for sentence in sentences]
    captions = [caption if isinstance(caption, str) else None for caption in found]
    is_known = type(image_id) is int and type(ann_id) is int
    return _Reference(name, image_id if is_known else None, ann_id if is_known else None, captions)


def _join(file: CocoFile, refs: Url, references: list[_Reference]) -> Spool:
    """Bring pictures, boxes and references together; only what the references need is kept.

    A picture gets pairs of annotation id and box, then triples of annotation id, name and captions.
    """
    spool = Spool()
    waiting = {reference.image_id for reference in references}
    wanted = {reference.ann_id for reference in references}
    num_pictures = len(waiting - {None})

    def pictures() -> Iterator[tuple[int, Values]]:
        for row in file.rows("images"):
            number = row.get("id")
            if type(number) is int and number in waiting:
                waiting.discard(number)
                yield number, {name: row.get(name) for name in ("id", "file_name", "height", "width")}

    def boxes() -> Iterator[tuple[int, Any]]:
        for row in file.rows("annotations"):
            number, picture = row.get("id"), row.get("image_id")
            if type(number) is int and number in wanted and type(picture) is int:
                yield picture, (number, row.get("bbox"))

    spool.add_pictures(pictures())
    if num_pictures and not len(spool):
        raise MissingInputError(
            f"{redact(file.url)}: none of the {num_pictures} pictures that {redact(refs)} speaks of; expected the "
            "instances.json that came with it"
        )
    # References to pictures that are not there are rejected where rows are made, and so counted.
    spool.add_pictures((_key(number), {}) for number in sorted(waiting, key=str))
    spool.add_annotations(boxes())
    spool.add_annotations((_key(ref.image_id), (ref.ann_id, ref.name, ref.captions)) for ref in references)
    return spool


def _key(image_id: int | None) -> int | str:
    """Return what a picture is called in the spool, where references to none have one in common."""
    return "none" if image_id is None else image_id


def _parts(spool: Spool, images: Url, name: str, identity: str, num_rows: int, rows_per_part: int) -> Iterator[Part]:
    pictures_per_part = max(1, rows_per_part * len(spool) // max(1, num_rows))
    for start in range(0, len(spool), pictures_per_part):
        pictures = spool.read(start, start + pictures_per_part)
        stop = start + len(pictures)
        count = sum(len(item[2]) for _, items in pictures for item in items if len(item) == 3)
        rows = partial(_rows, images, pictures)
        yield Part(f"{name}, pictures {start} to {stop}", f"{identity} {start}-{stop}", rows, count)


def _rows(images: Url, pictures: list[tuple[Any, list[Any]]]) -> Iterator[RawGrounding | Reject]:
    for values, items in pictures:
        image = raw_image(values, images, _places, lambda values: f"coco/{values['id']}")
        boxes = {item[0]: corners(item[1]) for item in items if len(item) == 2}
        said: Counter[tuple[int, str]] = Counter()
        for ann_id, name, captions in (item for item in items if len(item) == 3):
            box = boxes.get(ann_id)
            for caption in captions:
                if isinstance(image, Reject):
                    yield Reject(name, image.reason)
                elif not box or caption is None:
                    yield Reject(name, "row_malformed")
                else:
                    phrase = RawPhrase(char_spans=((0, len(caption)),), boxes=(box,))
                    # Several people said the same of one thing; benchmarks count each of them.
                    again = said[ann_id, caption]
                    said[ann_id, caption] += 1
                    yield RawGrounding(name=name, image=image, caption=caption, phrases=(phrase,), occurrence=again)


def _places(values: Values) -> list[str]:
    """Return where a picture may be: in the folder itself, in train2014, or as COCO 2017 has it under another name."""
    name = values.get("file_name")
    if not isinstance(name, str):
        return []
    return [name, f"train2014/{name}", *places_of_2017(name)]
