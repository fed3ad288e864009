"""What came back from other people's editors: per row, the boxes that it has now.

Files are untrusted: what is not as the format says is counted, by what is wrong, and left out.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from pipeline.errors import ConfigError, MissingInputError
from pipeline.inspection.exporting import KEYS_FILE
from pipeline.store.records import Box


@dataclass
class Sheet:
    """A picture as an editor left it."""

    key: str
    boxes: list[tuple[str, Box]] = field(default_factory=list)
    """Name and place of each, in pixels."""


Problems = Counter[str]
Read = Callable[[str, Mapping[str, str], Problems], Iterator[Sheet]]


def read_sheets(kind: str, source: str, keys: Path | None, problems: Problems) -> list[Sheet]:
    """Read what an editor wrote.

    Args:
        kind: of ``EDITORS``.
        source: its file; of FiftyOne the name of the dataset.
        keys: the table ``keys.csv`` of the export; None takes the one beside the file, if there is one.
        problems: counts what is left out, by what is wrong.

    Returns:
        A sheet a picture.

    Raises:
        MissingInputError: a file is not there, or FiftyOne is not.
        ConfigError: a file is not of this format.
    """
    try:
        return list(EDITORS[kind](source, _read_keys(source, keys), problems))
    except FileNotFoundError as error:
        raise MissingInputError(f"{error.filename}: no such file; name what the editor exported") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ElementTree.ParseError) as error:
        raise ConfigError(f"{source}: not as {kind} writes it ({type(error).__name__}: {error})") from error


def _read_keys(source: str, keys: Path | None) -> dict[str, str]:
    """Return keys by the names of pictures."""
    path = keys or Path(source).with_name(KEYS_FILE)
    if keys is None and not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["picture"]: row["key"] for row in csv.DictReader(file)}


def _sheet(name: Any, key: Any, keys: Mapping[str, str], problems: Problems) -> Sheet | None:
    """Return the sheet of a picture that says its key, or whose name the table knows."""
    found = key if isinstance(key, str) and key else keys.get(PurePosixPath(str(name)).name)
    if found is None:
        problems["pictures of which no row is known; --keys names the table of the export"] += 1
        return None
    return Sheet(found)


def _add(sheet: Sheet, text: Any, corners: Iterable[Any], problems: Problems) -> None:
    x1, y1, x2, y2 = map(float, corners)
    if (
        not isinstance(text, str)
        or not text.strip()
        or not all(map(math.isfinite, (x1, y1, x2, y2)))
        or x1 >= x2
        or y1 >= y2
    ):
        problems["boxes without a name, width or height"] += 1
        return
    sheet.boxes.append((text, (x1, y1, x2, y2)))


def _read_json(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _read_label_studio(path: str, keys: Mapping[str, str], problems: Problems) -> Iterator[Sheet]:
    """Read an export as JSON; of each task the last annotation counts, and tasks without one say nothing."""
    for task in _read_json(path):
        annotations = [each for each in task.get("annotations") or () if not each.get("was_cancelled")]
        if not annotations:
            continue
        sheet = _sheet(task["data"].get("image"), task["data"].get("key"), keys, problems)
        if sheet is None:
            continue
        for item in annotations[-1]["result"]:
            value = item["value"]
            if item.get("type") != "rectanglelabels" or value.get("rotation"):
                problems["shapes that are no upright boxes"] += 1
                continue
            wide, high = item["original_width"] / 100, item["original_height"] / 100
            x, y = value["x"] * wide, value["y"] * high
            corners = (x, y, x + value["width"] * wide, y + value["height"] * high)
            for text in value["rectanglelabels"]:
                _add(sheet, text, corners, problems)
        yield sheet


def _read_cvat(path: str, keys: Mapping[str, str], problems: Problems) -> Iterator[Sheet]:
    data = Path(path).read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("declares entities, which CVAT does not")
    for image in ElementTree.fromstring(data).iter("image"):
        sheet = _sheet(image.get("name"), None, keys, problems)
        if sheet is None:
            continue
        for item in image:
            if item.tag == "box" and not float(item.get("rotation", 0)):
                _add(sheet, item.get("label"), (item.attrib[side] for side in ("xtl", "ytl", "xbr", "ybr")), problems)
            elif item.tag != "tag":
                problems["shapes that are no upright boxes"] += 1
        yield sheet


def _read_coco(path: str, keys: Mapping[str, str], problems: Problems) -> Iterator[Sheet]:
    values = _read_json(path)
    names = {category["id"]: category["name"] for category in values["categories"]}
    sheets = {}
    for image in values["images"]:
        sheet = _sheet(image.get("file_name"), image.get("key"), keys, problems)
        if sheet is not None:
            sheets[image["id"]] = sheet
    for item in values["annotations"]:
        if item["image_id"] in sheets:
            x, y, width, height = item["bbox"]
            _add(sheets[item["image_id"]], names.get(item["category_id"]), (x, y, x + width, y + height), problems)
    yield from sheets.values()


def _read_odvg(path: str, keys: Mapping[str, str], problems: Problems) -> Iterator[Sheet]:
    """Read JSON lines of grounding (phrases) or detection (categories), as X-AnyLabeling and others write them."""
    with Path(path).open(encoding="utf-8") as file:
        for line in filter(str.strip, file):
            values = json.loads(line)
            sheet = _sheet(values.get("filename"), values.get("key"), keys, problems)
            if sheet is None:
                continue
            regions = (values.get("grounding") or {}).get("regions") or ()
            instances = (values.get("detection") or {}).get("instances") or ()
            for item in (*regions, *instances):
                boxes = item["bbox"] if isinstance(item["bbox"][0], list) else [item["bbox"]]
                for box in boxes:
                    _add(sheet, item.get("phrase") or item.get("category"), box, problems)
            yield sheet


def _read_fiftyone(name: str, keys: Mapping[str, str], problems: Problems) -> Iterator[Sheet]:
    try:
        import fiftyone
    except ImportError as error:
        raise MissingInputError("--format fiftyone needs FiftyOne; run: pip install fiftyone") from error
    for sample in fiftyone.load_dataset(name):
        sheet = _sheet(sample["filepath"], sample["key"], keys, problems)
        if sheet is None:
            continue
        wide, high = sample["width"], sample["height"]
        for item in sample["pseudo_labels"].detections if sample["pseudo_labels"] else ():
            x, y, width, height = item["bounding_box"]
            _add(sheet, item["label"], (x * wide, y * high, (x + width) * wide, (y + height) * high), problems)
        yield sheet


EDITORS: dict[str, Read] = {
    "label_studio": _read_label_studio,
    "cvat": _read_cvat,
    "coco": _read_coco,
    "odvg": _read_odvg,
    "fiftyone": _read_fiftyone,
}
