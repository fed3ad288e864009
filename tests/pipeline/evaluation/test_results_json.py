"""Annotation and detection files: what is read, and what is refused with a message."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.results_json import read_annotations, read_results

TRUTH: dict[str, Any] = {
    "images": [
        {"id": 30, "neg_category_ids": [9], "not_exhaustive_category_ids": []},
        {"id": 10, "neg_category_ids": [], "not_exhaustive_category_ids": [4, 77]},
    ],
    "categories": [{"id": 9, "name": "cup", "frequency": "f"}, {"id": 4, "name": "kiwi", "frequency": "r"}],
    "annotations": [
        {"id": 1, "image_id": 30, "category_id": 4, "bbox": [1, 2, 3.5, 4], "area": 11.25, "iscrowd": 1},
        {"id": 0, "image_id": 10, "category_id": 9, "bbox": [0.1, 0.2, 0.3, 0.4], "ignore": 1},
        {"id": 2, "image_id": 11, "category_id": 9, "bbox": [0, 0, 1, 1]},
        {"id": 3, "image_id": 10, "category_id": 8, "bbox": [0, 0, 1, 1]},
    ],
}
FOUND = [
    {"image_id": 10, "category_id": 9, "bbox": [1, 2, 3, 4.1], "score": 0.1},
    {"image_id": 30, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 1},
]


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def changed(value: Any, place: list[Any], new: Any) -> Any:
    """A copy in which one place holds something else."""
    value = copy.deepcopy(value)
    inner = value
    for step in place[:-1]:
        inner = inner[step]
    if new is KeyError:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


def test_pictures_and_categories_are_numbered_by_rising_ids_and_numbers_keep_their_precision(tmp_path: Path) -> None:
    annotations = read_annotations(write(tmp_path / "truth.json", TRUTH), federated=True)
    assert annotations.picture_numbers == {10: 0, 30: 1}
    read = annotations.detection_set
    assert [(category.id, category.name, category.frequency) for category in read.categories] == [
        (4, "kiwi", "r"),
        (9, "cup", "f"),
    ]
    np.testing.assert_array_equal(read.truth.pictures, [1, 0])
    np.testing.assert_array_equal(read.truth.categories, [0, 1])
    np.testing.assert_array_equal(read.truth.boxes_xywh, [[1, 2, 3.5, 4], [0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_array_equal(read.truth.areas, [11.25, 0.3 * 0.4])
    np.testing.assert_array_equal(read.truth.is_crowd, [True, False])
    np.testing.assert_array_equal(read.truth.is_ignored, [False, True])
    np.testing.assert_array_equal(read.truth.is_mute, [False, True])
    np.testing.assert_array_equal(read.negative, [[1, 1]])
    np.testing.assert_array_equal(read.not_exhaustive, [[0, 0]])
    found = read_results(write(tmp_path / "found.json", FOUND), annotations)
    np.testing.assert_array_equal(found.pictures, [0, 1])
    np.testing.assert_array_equal(found.categories, [1, -1])
    np.testing.assert_array_equal(found.boxes_xywh, [[1, 2, 3, 4.1], [1, 2, 3, 4]])
    np.testing.assert_array_equal(found.scores, [0.1, 1])


def test_ids_may_be_texts_and_lists_may_be_empty(tmp_path: Path) -> None:
    truth = {"images": [{"id": "b"}, {"id": "a"}], "categories": [], "annotations": []}
    annotations = read_annotations(write(tmp_path / "truth.json", truth))
    assert annotations.picture_numbers == {"a": 0, "b": 1}
    assert len(read_results(write(tmp_path / "found.json", []), annotations).scores) == 0


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (["images"], KeyError, "images: expected a list, got nothing"),
        (["images", 1], 5, r"images\[1\]: expected an object, got 5"),
        (["images", 1, "id"], "ten", "some ids are numbers and some texts"),
        (
            ["images", 0, "neg_category_ids"],
            KeyError,
            r"images\[0\]: expected neg_category_ids, a list of category ids, as",
        ),
        (["images", 0, "neg_category_ids"], [[9]], "neg_category_ids are not all numbers"),
        (["categories", 0, "id"], True, r"categories\[0\].id: expected a whole number, got true"),
        (["categories", 1, "frequency"], "x", r"categories\[1\].frequency: expected one of r, c, f.*got \"x\""),
        (["annotations", 2, "id"], 1, "1 ids occur more than once, such as 1"),
        (["annotations", 2, "bbox"], [1, 2, 3], r"annotations\[2\].bbox: expected 4 finite numbers, got \[1, 2, 3\]"),
        (["annotations", 0, "area"], "big", r"annotations\[0\].area: expected a finite number, got \"big\""),
        (["annotations", 0, "iscrowd"], [], r"annotations\[0\].iscrowd: expected a finite number, got \[\]"),
        (["annotations", 3, "category_id"], {}, r"annotations\[3\].category_id: expected a number or a text, got \{\}"),
    ],
)
def test_broken_annotations_are_refused(tmp_path: Path, place: list[Any], new: Any, message: str) -> None:
    path = write(tmp_path / "truth.json", changed(TRUTH, place, new))
    with pytest.raises(BenchmarkError, match=f"{path}: .*{message}"):
        read_annotations(path, federated=True)


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        ([1], None, r"detections\[1\]: expected an object, got nothing"),
        (
            [1, "image_id"],
            31,
            r"detections\[1\].image_id: expected the id of an image that the annotations list, got 31",
        ),
        ([1, "image_id"], None, r"detections\[1\].image_id: expected a number or a text, got nothing"),
        ([0, "category_id"], KeyError, r"detections\[0\]: expected category_id"),
        ([1, "score"], KeyError, r"detections\[1\]: expected score, a finite number"),
        ([1, "score"], float("nan"), r"detections\[1\].score: expected a finite number, got NaN"),
        ([1, "score"], "0.5", r"detections\[1\].score: expected a finite number, got \"0.5\""),
        ([0, "bbox"], [], r"detections\[0\].bbox: expected 4 finite numbers, got \[\]"),
        ([0, "bbox", 2], float("inf"), r"detections\[0\].bbox: expected 4 finite numbers, got \[1, 2, Infinity, 4.1\]"),
        ([0, "bbox", 2], 10**400, r"detections\[0\].bbox: expected 4 finite numbers"),
    ],
)
def test_broken_detections_are_refused(tmp_path: Path, place: list[Any], new: Any, message: str) -> None:
    annotations = read_annotations(write(tmp_path / "truth.json", TRUTH))
    path = write(tmp_path / "found.json", changed(FOUND, place, new))
    with pytest.raises(BenchmarkError, match=f"{path}: {message}"):
        read_results(path, annotations)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\0", "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BenchmarkError, match="not JSON"):
        read_annotations(write(tmp_path / "truth.json", text))


def test_other_json_and_missing_files_are_refused(tmp_path: Path) -> None:
    annotations = read_annotations(write(tmp_path / "truth.json", TRUTH))
    with pytest.raises(BenchmarkError, match="expected an object of images, categories and annotations"):
        read_annotations(write(tmp_path / "list.json", []))
    with pytest.raises(BenchmarkError, match="detections: expected a list"):
        read_results(write(tmp_path / "object.json", {"images": []}), annotations)
    with pytest.raises(MissingInputError, match=r"nowhere.json: cannot be read \(No such file"):
        read_annotations(tmp_path / "nowhere.json")
