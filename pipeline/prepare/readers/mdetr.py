"""MDETR's grounding JSON: GoldG (Flickr30k and the mixed set) and the referring-expression files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.prepare.raw import RawGrounding, RawImage, RawPhrase, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.coco import CocoFile, Values, corners, listed, whole_number
from pipeline.store.records import GroundingRecord
from pipeline.store.urls import redact

_SAID = {"coco": ("coco", "ref"), "vg": ("vg", "visual", "gqa"), "flickr": ("flickr",)}
"""What ``data_source`` or ``dataset_name`` begins with, by where pictures come from."""
_KEPT = (
    "id",
    "file_name",
    "height",
    "width",
    "caption",
    "dataset_name",
    "data_source",
    "original_id",
    "original_img_id",
    "tokens_positive_eval",
)
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})\.jpg")


def read_mdetr(
    context: SourceContext,
    *,
    annotations: Url,
    images: Mapping[str, Url],
    task: Literal["grounding", "referring"] = "grounding",
) -> list[RawTable]:
    """MDETR-style JSON: ``final_flickr_separateGT_*``, ``final_mixed_train[_no_coco]``, ``finetune_refcoco_*`` and kin.

    One entry of ``images`` is a picture with a caption; ``tokens_positive`` of its boxes are spans of the caption.
    Boxes of the same spans make one phrase, and a box with several spans stays exact. Where models are judged, by the
    roles ``dev`` and ``test``, the phrases are those of ``tokens_positive_eval``, in that order, each with all boxes
    that speak of it.

    Options:
        annotations: the file.
        images: folders of the pictures by where they come from: ``coco``, ``vg``, ``flickr``.
        task: ``referring`` judges by the rows as by RefCOCO, each an expression for one thing.
    """
    unknown = set(images) - set(_SAID)
    if unknown or not images:
        raise ConfigError(f"prepare.{context.role}: images names {sorted(images)}; expected coco, vg, flickr")
    file = _MdetrFile(annotations)
    spool = file.spool(lambda row: (row.get("bbox"), row.get("tokens_positive")))
    # Training files have tokens_positive_eval too, but what a box means there is all of its spans at once.
    is_judged = context.is_judged_by
    folders = sorted((kind, redact(url)) for kind, url in images.items())
    rows = partial(_rows, dict(images), is_judged)
    identity = f"{file.identity} {folders} {is_judged}"
    folder = context.folder_of_expressions() if task == "referring" else None
    parts = partial(spool.parts, file.label, identity, rows)
    return [RawTable(GroundingRecord, parts, len(spool), folder=folder)]


class _MdetrFile(CocoFile):
    """Without the fields that nothing needs: ``tokens_negative`` alone is larger than all others."""

    def rows(self, name: str) -> Iterator[Values]:
        for row in super().rows(name):
            yield {key: row[key] for key in _KEPT if key in row} if name == "images" else row


def _rows(
    images: Mapping[str, str], is_judged: bool, pictures: list[tuple[Any, list[Any]]]
) -> Iterator[RawGrounding | Reject]:
    for values, boxes in pictures:
        name = f"{values.get('file_name')} ({values.get('id')})"
        image = _image(values, images)
        if image is None:
            yield Reject(name, "row_malformed")
            continue
        asked = values.get("tokens_positive_eval") if is_judged else None
        phrases = _asked_phrases(boxes, asked) if isinstance(asked, list) else _phrases(boxes)
        yield RawGrounding(name=name, image=image, caption=values.get("caption"), phrases=phrases)


def _phrases(boxes: list[Any]) -> list[RawPhrase]:
    """Gather boxes by the spans that they carry, in the order in which spans come first."""
    by_spans: dict[str, tuple[list[Any], list[Any]]] = {}
    for bbox, spans in boxes:
        pieces = listed(spans)
        if len(pieces) > 1:
            pieces = sorted(pieces, key=repr)
        by_spans.setdefault(repr(pieces), (pieces, []))[1].append(corners(bbox))
    return [RawPhrase(char_spans=pieces, boxes=found) for pieces, found in by_spans.values()]


def _asked_phrases(boxes: list[Any], asked: list[Any]) -> list[RawPhrase]:
    """Gather boxes by the phrases that are asked for; boxes of no such phrase come last, without spans.

    A box of several phrases carries the spans of all of them.
    """
    phrases: list[tuple[list[Any], list[Any]]] = [(listed(spans), []) for spans in asked]
    strays: list[Any] = []
    for bbox, spans in boxes:
        carried, box = listed(spans), corners(bbox)
        owners = [found for known, found in phrases if known and all(span in carried for span in known)]
        for found in owners or [strays]:
            found.append(box)
    told = [RawPhrase(char_spans=spans, boxes=found) for spans, found in phrases]
    return [*told, RawPhrase(char_spans=(), boxes=strays)] if strays else told


def _image(values: Values, images: Mapping[str, str]) -> RawImage | None:
    """Return where a picture may be; None when the entry does not name it."""
    name = values.get("file_name")
    if not isinstance(name, str) or not name:
        return None
    kind, base = _kind(values, name, images), name.rpartition("/")[2]
    matched = _COCO_NAME.fullmatch(base)
    number = values.get("original_img_id", values.get("original_id"))
    if not (isinstance(number, int) or (isinstance(number, str) and number.isdecimal())):
        number = int(matched[1]) if matched else base.removesuffix(".jpg")
    places: list[str] = []
    if kind in images:
        # GLIP keeps Visual Genome's pictures as GQA packs them, in one folder "images".
        folders = {"vg": ("VG_100K", "VG_100K_2", "images"), "flickr": ("flickr30k_images", "flickr30k-images")}
        places = [name, base, *(f"{folder}/{base}" for folder in folders.get(kind, ()))]
        if kind == "coco" and matched:
            # The same pictures are called COCO_train2014_… in 2014's folders and 0000… in 2017's.
            places += [f"{folder}COCO_train2014_{matched[1]}.jpg" for folder in ("train2014/", "")]
            places += [f"val2014/COCO_val2014_{matched[1]}.jpg"]
            places += [f"{folder}{matched[1]}.jpg" for folder in ("train2017/", "val2017/", "")]
    return RawImage(
        folder=images.get(kind),
        url=places[0] if places else None,
        choices=tuple(dict.fromkeys(places[1:])),
        height=whole_number(values.get("height")),
        width=whole_number(values.get("width")),
        picture_id=f"{'flickr30k' if kind == 'flickr' else kind}/{number}",
    )


def _kind(values: Values, name: str, images: Mapping[str, str]) -> str:
    """Tell where a picture comes from: what the file says, else what its name looks like."""
    said = str(values.get("data_source") or values.get("dataset_name") or "").lower()
    for kind, words in _SAID.items():
        if said.startswith(words):
            return kind
    if _COCO_NAME.fullmatch(name.rpartition("/")[2]):
        return "coco"
    return next(iter(images)) if len(images) == 1 else "vg"
