"""Flickr30k Entities as its site distributes it: captions with marked phrases, XML with the boxes of what they name.

``Sentences/1000092795.txt`` has five captions of a picture, one a line: ``[/EN#1/people Two young guys] look at
[/EN#3/bodyparts their hands] .`` The number is a chain: all phrases of a picture that name the same thing share it. In
``Annotations/1000092795.xml`` objects have the numbers of the chains that they belong to, and a box, or the remark that
there is none (``nobndbox``) or that it is the whole scene. Chain 0 is what cannot be seen.

Source: Plummer et al., Flickr30k Entities (IJCV 2017), and the readme of the data set.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple

from glip_model.images import ImageError
from pipeline.errors import MissingInputError
from pipeline.prepare.raw import Part, RawGrounding, RawImage, RawPhrase, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.lines import decode_line, open_text, split_mark
from pipeline.prepare.readers.voc import parse_voc, read_corners, read_side
from pipeline.store.filesystem import file_identity, read_many
from pipeline.store.image_roots import join_inside
from pipeline.store.records import GroundingRecord
from pipeline.store.urls import redact

CAPTIONS_PER_PICTURE = 5
READ_AHEAD = 64
"""Pictures whose files are fetched at a time."""
MAX_FILE_BYTES = 1 << 20
"""The files of a picture have a few thousand; larger ones are something else."""
NUM_PROBES = 10
NOT_VISUAL = "0"
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\[\]]+)*) ")

Corners = tuple[float, ...]


class Mention(NamedTuple):
    """A phrase of a caption."""

    chain: str
    """What it names, among all captions of its picture."""
    types: tuple[str, ...]
    """Such as ``people`` or ``bodyparts``; a phrase may have several."""
    start: int
    end: int


class Boxes(NamedTuple):
    """What an XML file says of a picture."""

    height: int | None
    width: int | None
    by_chain: dict[str, list[Corners]]
    """Corners in pixels, empty for a box that has no numbers."""


def read_flickr30k_entities(
    context: SourceContext,
    *,
    annotations: Url,
    images: Url,
    split: Literal["train", "val", "test"],
    boxes: Literal["separate", "merged"] = "separate",
    lists: Url | None = None,
) -> list[RawTable]:
    """Flickr30k Entities: every caption is a row, its marked phrases with the boxes of what they name.

    ``annotations`` holds the folders ``Annotations`` and ``Sentences``, and ``train.txt``, ``val.txt`` and ``test.txt``
    with the pictures of each split unless these are in the folder ``lists``. ``separate`` leaves a phrase such as "two
    men" its two boxes, as the any-box protocol wants; ``merged`` puts one box around them, as the merged-box protocol.
    A phrase's ``split`` is its types, joined by ``/`` as they stand in the file. A sentence that two people wrote of
    one picture is two rows.
    """
    ids = Url(f"{(lists or annotations).rstrip('/')}/{split}.txt")
    _check_folders(annotations, ids)
    return [RawTable(GroundingRecord, partial(_parts, annotations, images, ids, boxes))]


def _check_folders(annotations: Url, ids: Url) -> None:
    """Raise MissingInputError where no picture would be found to have anything."""
    first = list(islice(_read_ids(ids), NUM_PROBES))
    if not first:
        raise MissingInputError(f"{redact(ids)}: no picture ids; expected one a line, such as 1000092795")
    for folder in ("Sentences", "Annotations"):
        if all(_version(annotations, folder, picture) is None for picture in first):
            raise MissingInputError(
                f"{redact(annotations)}: no file in {folder} for the first {len(first)} pictures of {redact(ids)}; "
                "expected the unpacked annotations.zip of Flickr30k Entities: mend the path in params.yaml"
            )


def _read_ids(url: Url) -> Iterator[str]:
    with open_text(url) as lines:
        yield from filter(None, map(str.strip, lines))


def _parts(annotations: Url, images: Url, ids: Url, boxes: str, rows_per_part: int) -> Iterator[Part]:
    listed, start = _read_ids(ids), 0
    while pictures := list(islice(listed, max(1, rows_per_part // CAPTIONS_PER_PICTURE))):
        stop = start + len(pictures)
        version = hashlib.sha256(repr((annotations, images, _versions(annotations, pictures))).encode()).hexdigest()
        rows = partial(_rows, annotations, images, boxes == "merged", pictures)
        # How many captions there are is known only when they are read: a few pictures have fewer than five.
        yield Part(f"{redact(ids)}, pictures {start} to {stop}", f"{version} {boxes} {start}-{stop}", rows)
        start = stop


def _versions(annotations: Url, pictures: list[str]) -> list[tuple[str, str | None, str | None]]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        sentences = pool.map(partial(_version, annotations, "Sentences"), pictures)
        boxes = pool.map(partial(_version, annotations, "Annotations"), pictures)
        return list(zip(pictures, sentences, boxes, strict=True))


def _version(annotations: Url, folder: str, picture: str) -> str | None:
    """Return what changes when a file of a picture does; None when there is no file."""
    try:
        return file_identity(_place(annotations, folder, picture))
    except (ImageError, MissingInputError):
        return None


def _place(annotations: Url, folder: str, picture: str) -> str:
    return join_inside(annotations, f"{folder}/{picture}.{'txt' if folder == 'Sentences' else 'xml'}")


def _rows(annotations: Url, images: Url, is_merged: bool, pictures: list[str]) -> Iterator[RawGrounding | Reject]:
    for start in range(0, len(pictures), READ_AHEAD):
        places = []
        for picture in pictures[start : start + READ_AHEAD]:
            try:
                files = [_place(annotations, folder, picture) for folder in ("Sentences", "Annotations")]
            except ImageError as error:
                yield Reject(picture, error.reason)
                continue
            places.append((picture, files))
        read = iter(read_many([file for _, files in places for file in files], [annotations]))
        for picture, _ in places:
            yield from _picture_rows(picture, images, next(read), next(read), is_merged)


def _picture_rows(
    picture: str, images: str, sentences: bytes | ImageError, annotation: bytes | ImageError, is_merged: bool
) -> Iterator[RawGrounding | Reject]:
    try:
        if isinstance(sentences, ImageError) or isinstance(annotation, ImageError):
            raise ValueError("no file of sentences or none of boxes")
        found = parse_boxes(annotation)
        lines = split_lines(sentences)
    except ValueError:
        yield Reject(picture, "row_malformed")
        return
    image = RawImage(
        folder=images, url=f"{picture}.jpg", height=found.height, width=found.width, picture_id=f"flickr30k/{picture}"
    )
    by_chain = {chain: merge(boxes) for chain, boxes in found.by_chain.items()} if is_merged else found.by_chain
    said: Counter[str] = Counter()
    for i, (line, note) in enumerate(lines):
        name = f"{picture}, sentence {i}"
        try:
            caption, mentions = parse_sentence(line)
        except ValueError:
            yield Reject(name, "row_malformed")
            continue
        phrases = [
            RawPhrase(
                char_spans=((mention.start, mention.end),),
                boxes=by_chain.get(mention.chain, ()),
                split="/".join(mention.types) or None,
            )
            for mention in mentions
        ]
        yield RawGrounding(
            name=name,
            image=image,
            caption=caption,
            phrases=phrases,
            occurrence=said[caption],
            converted=(note,) if note else (),
        )
        said[caption] += 1


def split_lines(data: bytes) -> list[tuple[str, str | None]]:
    """Return the lines that are not blank, each as ``decode_line``: some files have UTF-8 and Latin-1 side by side.

    Raises:
        ValueError: the file is too large to be one of sentences.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{len(data)} bytes of sentences")
    lines = split_mark(data)[1].split(b"\n")
    return [decode_line(line) for line in lines if line.strip()]


def parse_sentence(line: str) -> tuple[str, list[Mention]]:
    """Take the markup out of a caption.

    Words are set one blank apart, as all readers of the data set do. Brackets that are no markup stay.

    Returns:
        The caption, and its phrases in their order with half-open spans of it.

    Raises:
        ValueError: a phrase does not end, or another begins inside it.
    """
    text = " ".join(line.split())
    pieces: list[str] = []
    mentions = []
    at = length = 0
    while opened := _PHRASE.search(text, at):
        closed = text.find("]", opened.end())
        words = text[opened.end() : closed]
        if closed < 0 or "[/EN#" in words:
            raise ValueError(f"the phrase at character {opened.start()} does not end before the next: {text[:200]!r}")
        pieces += (text[at : opened.start()], words)
        start = length + opened.start() - at
        at, length = closed + 1, start + len(words)
        mentions.append(Mention(opened[1], tuple(opened[2].split("/")[1:]), start, length))
    return "".join([*pieces, text[at:]]), mentions


def parse_boxes(data: bytes) -> Boxes:
    """Read the XML of a picture.

    Corners stand in the file as numbers of pixels, the first being 1, of which the last belongs to the box; they are
    returned as edges, so that a box of the whole picture is 0 0 width height.

    Raises:
        ValueError: it is no XML, or larger or otherwise built than such a file should be.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{len(data)} bytes of boxes")
    root = parse_voc(data)
    by_chain: dict[str, list[Corners]] = {}
    for item in root.iterfind("object"):
        box = item.find("bndbox")
        if box is None or not len(box):
            continue
        corners = read_corners(item, one_based=True)
        for name in item.iterfind("name"):
            by_chain.setdefault((name.text or "").strip(), []).append(corners)
    by_chain.pop(NOT_VISUAL, None)
    return Boxes(read_side(root, "height"), read_side(root, "width"), by_chain)


def merge(boxes: list[Corners]) -> list[Corners]:
    """Return the one box around all; those without numbers stay apart, to be counted."""
    whole = [box for box in boxes if box]
    if not whole:
        return boxes
    x1, y1, x2, y2 = zip(*whole, strict=True)
    return [(min(x1), min(y1), max(x2), max(y2)), *(box for box in boxes if not box)]
