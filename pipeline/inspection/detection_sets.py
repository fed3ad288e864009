"""Labels as detection data sets that trainers read: COCO's, Pascal VOC's and Ultralytics' layouts, with a split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pipeline.inspection.exporting import Pairs, keys_table, write_picture, xml_text, xywh
from pipeline.store.atomic import replacing
from pipeline.store.records import GroundingRecord, Phrase

TRAIN, VALIDATION = "train", "val"


def split_of(key: str, share: float) -> str:
    """Return the part that a row belongs to, by its key alone: it stays there when others come and go."""
    if share <= 0:
        return TRAIN
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return VALIDATION if number < share * 2**64 else TRAIN


def export_coco(pairs: Pairs, out: Path) -> int:
    """Write COCO's layout, every phrase a category, or the class that it means; returns the pictures written.

    Without a split ``annotations.json`` and ``images/``; with one ``annotations/instances_train.json``, likewise
    ``instances_val.json``, and ``images/train``, ``images/val``.
    """
    splits = _Splits(pairs)
    files: dict[str, dict[str, list[Any]]] = {name: {"images": [], "annotations": []} for name in splits.names}
    with keys_table(out) as write_key:
        for image_id, record, split in splits.rows():
            folder = f"images/{split}" if split else "images"
            name = write_picture(pairs.picture(record), out / folder, image_id)
            write_key(name, record.key)
            _add_to_coco(files[split], splits, image_id, name, record)
    categories = [{"id": number, "name": name} for number, name in enumerate(splits.categories, 1)]
    for split, found in files.items():
        path = out / (f"annotations/instances_{split}.json" if split else "annotations.json")
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as aside, aside.open("w", encoding="utf-8") as file:
            json.dump(found | {"categories": categories}, file, ensure_ascii=False, allow_nan=False)
    return sum(len(found["images"]) for found in files.values())


def _add_to_coco(
    found: dict[str, list[Any]], splits: _Splits, image_id: int, name: str, record: GroundingRecord
) -> None:
    head = {"id": image_id, "file_name": name, "width": record.width, "height": record.height}
    found["images"].append(head | {"caption": record.caption, "key": record.key})
    for phrase in record.phrases:
        for box in phrase.boxes:
            bbox, number = xywh(box.xyxy), splits.category(phrase) + 1
            entry = {"id": len(found["annotations"]) + 1, "image_id": image_id, "category_id": number, "iscrowd": 0}
            found["annotations"].append(entry | {"bbox": bbox, "area": bbox[2] * bbox[3], "score": box.score})


def export_yolo(pairs: Pairs, out: Path) -> int:
    """Write Ultralytics' layout: ``data.yaml``, ``images/`` and ``labels/``, each with its parts; returns pictures."""
    splits, count = _Splits(pairs, always=True), 0
    with keys_table(out) as write_key:
        for number, record, split in splits.rows():
            name = write_picture(pairs.picture(record), out / "images" / split, number)
            lines = [
                " ".join([str(splits.category(phrase)), *(f"{value:.6f}" for value in _shares(record, box.xyxy))])
                for phrase in record.phrases
                for box in phrase.boxes
            ]
            labels = out / "labels" / split
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{Path(name).stem}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            write_key(f"{split}/{name}", record.key)
            count += 1
    for split in splits.names:
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
    # JSON is YAML, and quotes whatever stands in a name.
    names = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(splits.categories))
    parts = "".join(f"{split}: images/{split}\n" for split in splits.names)
    if VALIDATION not in splits.names:
        parts += f"{VALIDATION}: images/{TRAIN} # no pictures are held out: --val-share holds some out\n"
    (out / "data.yaml").write_text(f"path: .\n{parts}names:\n{names}", encoding="utf-8")
    return count


def export_voc(pairs: Pairs, out: Path) -> int:
    """Write Pascal VOC's layout: ``Annotations/``, ``JPEGImages/``, ``ImageSets/Main/``; returns pictures."""
    splits, listed = _Splits(pairs, always=True), dict[str, list[str]]()
    (out / "Annotations").mkdir()
    with keys_table(out) as write_key:
        for number, record, split in splits.rows():
            name = write_picture(pairs.picture(record), out / "JPEGImages", number)
            stem = Path(name).stem
            ElementTree.ElementTree(_annotation(name, record)).write(
                out / "Annotations" / f"{stem}.xml", encoding="utf-8"
            )
            listed.setdefault(split, []).append(stem)
            write_key(name, record.key)
    (out / "ImageSets/Main").mkdir(parents=True)
    for split in splits.names:
        stems = listed.get(split, [])
        (out / f"ImageSets/Main/{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    return sum(map(len, listed.values()))


class _Splits:
    """Pairs with the part of each, and the categories that they have, from 0 in order."""

    def __init__(self, pairs: Pairs, always: bool = False) -> None:
        self._pairs = pairs
        self._numbers = {name: number for number, name in enumerate(pairs.classes)}
        self._is_split = pairs.val_share > 0
        self.names = [TRAIN, VALIDATION] if self._is_split else [TRAIN if always else ""]

    @property
    def categories(self) -> list[str]:
        return list(self._numbers)

    def category(self, phrase: Phrase) -> int:
        text = phrase.category or phrase.text
        name = text if text in self._numbers else text.lower()
        return self._numbers.setdefault(name, len(self._numbers))

    def rows(self) -> Iterator[tuple[int, GroundingRecord, str]]:
        for number, record in self._pairs:
            split = split_of(record.key, self._pairs.val_share) if self._is_split else self.names[0]
            yield number, record, split


def _shares(record: GroundingRecord, xyxy: tuple[float, ...]) -> tuple[float, ...]:
    """Return centre, width and height as shares of the picture."""
    x1, y1, x2, y2 = xyxy
    width, height = record.width, record.height
    return (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height


def _annotation(name: str, record: GroundingRecord) -> ElementTree.Element:
    """Return a picture as VOC writes it, with whole pixels that count from 1."""

    def add(parent: ElementTree.Element, tag: str, value: object = None) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, tag)
        element.text = None if value is None else xml_text(value)
        return element

    root = ElementTree.Element("annotation")
    add(root, "folder", "JPEGImages")
    add(root, "filename", name)
    size = add(root, "size")
    for tag, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        add(size, tag, value)
    for phrase in record.phrases:
        for box in phrase.boxes:
            item = add(root, "object")
            add(item, "name", phrase.category or phrase.text)
            for tag in ("truncated", "difficult"):
                add(item, tag, 0)
            corners = add(item, "bndbox")
            x1, y1, x2, y2 = (round(side) for side in box.xyxy)
            values = (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", max(x2, x1 + 1)), ("ymax", max(y2, y1 + 1)))
            for tag, value in values:
                add(corners, tag, value)
    return root
