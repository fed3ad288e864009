"""Labels for the editors of others, from where ``glip review --take`` brings back what was changed there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pipeline.inspection.exporting import Pairs, keys_table, write_picture, xml_text
from pipeline.store.atomic import replacing
from pipeline.store.records import GroundingRecord

PICTURES = "images"
FROM, TO = "label", "image"
"""What Label Studio's settings call the boxes and the picture."""


def export_label_studio(pairs: Pairs, out: Path) -> int:
    """Write Label Studio's layout; returns the pictures written.

    ``tasks.json`` has a task a picture, with its key, and the labels as predictions; ``settings.xml`` are the settings
    of a project for them. Pictures are named as Label Studio's local storage names them, below ``OUT/images``.
    """
    tasks, names, count = list[dict[str, Any]](), dict[str, None](), 0
    for count, record in pairs:
        name = write_picture(pairs.picture(record), out / PICTURES, count)
        results = [
            _result(f"{p}-{b}", phrase.text, box.xyxy, record) | {"score": box.score}
            for p, phrase in enumerate(record.phrases)
            for b, box in enumerate(phrase.boxes)
        ]
        names |= dict.fromkeys(phrase.text for phrase in record.phrases)
        data = {TO: f"/data/local-files/?d={PICTURES}/{name}", "key": record.key, "caption": record.caption}
        tasks.append({"id": count, "data": data, "predictions": [{"model_version": record.source, "result": results}]})
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=TO, value=f"${TO}")
    ElementTree.SubElement(view, "Header", value="$caption")
    labels = ElementTree.SubElement(view, "RectangleLabels", name=FROM, toName=TO)
    for text in names:
        ElementTree.SubElement(labels, "Label", value=xml_text(text))
    ElementTree.ElementTree(view).write(out / "settings.xml", encoding="utf-8")
    with replacing(out / "tasks.json") as aside, aside.open("w", encoding="utf-8") as file:
        json.dump(tasks, file, ensure_ascii=False, allow_nan=False)
    return count


def export_cvat(pairs: Pairs, out: Path) -> int:
    """Write CVAT's XML for images 1.1, ``annotations.xml``, and ``images/``; returns the pictures written.

    CVAT keeps nothing of a picture but its name: ``keys.csv`` says which row it is.
    """
    root, count = ElementTree.Element("annotations"), 0
    ElementTree.SubElement(root, "version").text = "1.1"
    with keys_table(out) as write_key:
        for count, record in pairs:
            name = write_picture(pairs.picture(record), out / PICTURES, count)
            write_key(name, record.key)
            head = {"id": str(count - 1), "name": name, "width": str(record.width), "height": str(record.height)}
            image = ElementTree.SubElement(root, "image", head)
            for phrase in record.phrases:
                for box in phrase.boxes:
                    corners = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(repr, box.xyxy), strict=True))
                    known = {"label": xml_text(phrase.text), "source": "auto", "occluded": "0", "z_order": "0"}
                    ElementTree.SubElement(image, "box", known | corners)
    with replacing(out / "annotations.xml") as aside:
        ElementTree.ElementTree(root).write(aside, encoding="utf-8", xml_declaration=True)
    return count


def _result(name: str, text: str, xyxy: tuple[float, ...], record: GroundingRecord) -> dict[str, Any]:
    """Return a box as Label Studio writes it, in percent of the picture."""
    x1, y1, x2, y2 = xyxy
    wide, high = 100 / record.width, 100 / record.height
    value = {"x": x1 * wide, "y": y1 * high, "width": (x2 - x1) * wide, "height": (y2 - y1) * high, "rotation": 0}
    head = {"id": name, "type": "rectanglelabels", "from_name": FROM, "to_name": TO, "image_rotation": 0}
    sizes = {"original_width": record.width, "original_height": record.height}
    return head | sizes | {"value": value | {"rectanglelabels": [text]}}
