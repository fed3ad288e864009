"""Annotations and detections as COCO's and LVIS's JSON files hold them, numbers in full precision."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.detection_set import DetectionSet, in_order, numbers_of, pairs
from pipeline.evaluation.lvis import FREQUENCIES
from pipeline.evaluation.matching import Found, Truth
from pipeline.store.records import Category
from pipeline.store.storage import Place, fetched

logger = logging.getLogger(__name__)

_ID: tuple[set[type], str] = ({int, float, str}, "a number or a text")


@dataclass(frozen=True)
class AnnotationFile:
    """The ground truth of an annotation file, and how it names its pictures."""

    detection_set: DetectionSet
    picture_numbers: dict[int | str, int]
    """Image id to number, in order of the ids: the evaluators go through pictures so."""


def read_annotations(path: Place, federated: bool = False) -> AnnotationFile:
    """Read an annotation file.

    As for the evaluators, boxes of pictures and categories that the file does not list are left out, and of two
    entries with one id the later one counts. A box without ``area`` has its width times its height, one without
    ``iscrowd`` or ``ignore`` is neither.

    Args:
        path: JSON with ``images``, ``categories`` and ``annotations``.
        federated: demand what LVIS adds: categories that were looked for in each picture, and their frequencies.

    Raises:
        MissingInputError: the file is not there.
        BenchmarkError: it is not such a file.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise BenchmarkError(f"{path}: expected an object of images, categories and annotations, got {_show(content)}")
    images, categories, annotations = (
        _Rows(content.get(name), f"{path}: {name}") for name in ("images", "categories", "annotations")
    )
    vocabulary = _vocabulary(categories, federated)
    places = {image_id: place for place, image_id in enumerate(images.column("id", *_ID))}
    try:
        numbers = {image_id: number for number, image_id in enumerate(sorted(places))}
    except TypeError:
        raise BenchmarkError(f"{path}: images: some ids are numbers and some texts; expected one kind") from None

    def labels(name: str) -> np.ndarray:
        lists = images.column(name, {list}, "a list of category ids, as LVIS has") if federated else []
        try:
            return pairs([lists[places[image_id]] for image_id in numbers if lists], numbers_of(vocabulary))
        except TypeError:
            raise BenchmarkError(f"{path}: images: {name} are not all numbers") from None

    truth = _truth(annotations, numbers, numbers_of(vocabulary))
    negative, not_exhaustive = labels("neg_category_ids"), labels("not_exhaustive_category_ids")
    return AnnotationFile(DetectionSet(vocabulary, len(numbers), truth, negative, not_exhaustive), numbers)


def read_results(path: Place, annotations: AnnotationFile) -> Found:
    """Read detections: a list of objects with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``.

    Raises:
        MissingInputError: the file is not there.
        BenchmarkError: it is not such a file, or has detections of pictures that the annotations do not list.
    """
    rows = _Rows(_load(path), f"{path}: detections")
    image_ids, labels = rows.column("image_id", *_ID), rows.column("category_id", *_ID)
    pictures = [annotations.picture_numbers.get(image_id, -1) for image_id in image_ids]
    if -1 in pictures:
        row = pictures.index(-1)
        raise rows.error(row, ".image_id", "the id of an image that the annotations list", image_ids[row])
    numbers = numbers_of(annotations.detection_set.categories)
    unknown = [label for label in labels if label not in numbers]
    if unknown:
        logger.warning(
            "%s: %d of %d detections are left out, of categories that the annotations do not list, such as %r",
            path,
            len(unknown),
            len(labels),
            unknown[0],
        )
    return Found(
        pictures=np.array(pictures, np.int64),
        categories=np.array([numbers.get(label, -1) for label in labels], np.int64),
        boxes_xywh=rows.numbers("bbox", 4),
        scores=rows.numbers("score"),
    )


class _Rows:
    """The objects of a JSON list, read by column; errors name the row."""

    def __init__(self, rows: Any, where: str) -> None:
        if not isinstance(rows, list):
            raise BenchmarkError(f"{where}: expected a list, got {_show(rows)}")
        self._rows, self.where = rows, where
        for row, fields in enumerate(rows):
            if not isinstance(fields, dict):
                raise self.error(row, "", "an object", fields)

    def column(self, name: str, types: set[type], expected: str) -> list[Any]:
        """Return a field of all rows; their types are these exactly, so that no bool passes for a number."""
        values = self._values(name, expected)
        if not set(map(type, values)) <= types:
            row = next(row for row, value in enumerate(values) if type(value) not in types)
            raise self.error(row, f".{name}", expected, values[row])
        return values

    def optional(self, name: str, defaults: Iterable[Any]) -> list[Any]:
        """Return a field of all rows, in its place a default of each where it is absent or null."""
        values = (row.get(name) for row in self._rows)
        return [default if value is None else value for value, default in zip(values, defaults, strict=True)]

    def numbers(self, name: str, size: int | None = None, values: list[Any] | None = None) -> np.ndarray:
        """Return (rows,) or (rows, size) float64 of a field, or of values in its place."""
        expected = "a finite number" if size is None else f"{size} finite numbers"
        values = self._values(name, expected) if values is None else values
        shape = () if size is None else (size,)
        found = _finite(values, (len(values), *shape))
        if found is None:
            row = next((row for row, value in enumerate(values) if _finite(value, shape) is None), 0)
            raise self.error(row, f".{name}", expected, values[row])
        return found

    def error(self, row: int, name: str, expected: str, value: Any) -> BenchmarkError:
        """Return the error for a value that is not what was expected."""
        return BenchmarkError(f"{self.where}[{row}]{name}: expected {expected}, got {_show(value)}")

    def _values(self, name: str, expected: str) -> list[Any]:
        try:
            return [row[name] for row in self._rows]
        except KeyError:
            row = next(row for row, fields in enumerate(self._rows) if name not in fields)
            raise self.error(row, "", f"{name}, {expected},", self._rows[row]) from None


def _vocabulary(rows: _Rows, federated: bool) -> tuple[Category, ...]:
    ids = rows.column("id", {int}, "a whole number")
    names, frequencies = rows.optional("name", ids), rows.optional("frequency", [None] * len(ids))
    if federated:
        for row, frequency in enumerate(frequencies):
            if frequency not in FREQUENCIES:
                raise rows.error(row, ".frequency", f"one of {', '.join(FREQUENCIES)}, as LVIS has", frequency)
    entries = zip(ids, names, frequencies, strict=True)
    return in_order(Category(id=label, name=str(name), frequency=frequency) for label, name, frequency in entries)


def _truth(rows: _Rows, pictures: dict[int | str, int], categories: dict[int, int]) -> Truth:
    ids = rows.column("id", *_ID)
    twice = [each for each, count in Counter(ids).items() if count > 1]
    if twice:
        raise BenchmarkError(f"{rows.where}: {len(twice)} ids occur more than once, such as {twice[0]!r}; number anew")
    boxes = rows.numbers("bbox", 4)
    with np.errstate(over="ignore"):
        areas = rows.optional("area", (boxes[:, 2] * boxes[:, 3]).tolist())
    image_ids = rows.column("image_id", *_ID)
    labels = rows.column("category_id", *_ID)
    none = [0] * len(ids)
    truth = Truth(
        pictures=np.array([pictures.get(image_id, -1) for image_id in image_ids], np.int64),
        categories=np.array([categories.get(label, -1) for label in labels], np.int64),
        boxes_xywh=boxes,
        areas=rows.numbers("area", values=areas),
        is_crowd=rows.numbers("iscrowd", values=rows.optional("iscrowd", none)) != 0,
        is_ignored=rows.numbers("ignore", values=rows.optional("ignore", none)) != 0,
        is_mute=np.array([each == 0 for each in ids], bool),
    )
    is_listed = (truth.pictures >= 0) & (truth.categories >= 0)
    if not is_listed.all():
        logger.warning(
            "%s: %d of %d are left out, of pictures or categories that the file does not list, such as that of id %r",
            rows.where,
            (~is_listed).sum(),
            len(ids),
            ids[int(is_listed.argmin())],
        )
    return truth.select(is_listed)


def _load(path: Place) -> Any:
    try:
        with fetched(path) as copy:
            return json.loads(copy.read_bytes())
    except OSError as error:
        raise MissingInputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path}: not JSON ({error})") from error


def _finite(values: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return values as float64, or None when they are not finite numbers of that shape."""
    if shape[:1] == (0,):
        return np.zeros(shape)
    try:
        found = np.array(values)
    except ValueError:  # lists of several lengths
        return None
    if found.shape != shape or found.dtype.kind not in "biuf" or not np.isfinite(found).all():
        return None
    return found.astype(np.float64)


def _show(value: Any) -> str:
    """Return a value for a message, cut short."""
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
