"""Ultralytics' layout: where pictures and labels are, what lines of labels say, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.layouts import find_layout
from pipeline.prepare.raw import SourceContext, Url
from pipeline.prepare.readers.yolo import YoloFile, label_of, parse_line, read_yolo
from pipeline.store.records import DetectionRecord

ReadRows = Callable[..., list[Any]]
Picture = Callable[..., bytes]
SHARED = Path(__file__).resolve().parents[4] / "../shared"


@pytest.fixture
def write(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    """Write a data set of pictures of 40 × 30 and their labels, None for a picture without a file of them."""

    def make(yaml: str, labels: dict[str, str | None]) -> Path:
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        for name, text in labels.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture())
            if text is not None:
                place = folder / label_of(name)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
        (folder / "data.yaml").write_text(yaml)
        return folder / "data.yaml"

    return make


def read(context: SourceContext, read_rows: ReadRows, data: Path, split: str = "train") -> list[Any]:
    (table,) = read_yolo(context, data=Url(str(data)), split=split)
    return read_rows(table, 2)


def test_boxes_polygons_and_backgrounds(
    context: SourceContext, read_rows: ReadRows, write: Callable[..., Path]
) -> None:
    data = write(
        "train: images/train\nval: images/val\nnames: [cat, dog]\n",
        {
            "images/train/a.jpg": "1 0.5 0.5 0.5 0.2\n0 0.1 0.1 0.6 0.1 0.6 0.4\n",
            "images/train/deep/b.jpg": "",
            "images/train/c.jpg": None,
            "images/val/d.jpg": "0 0.25 0.5 0.5 1 0.75\n",
        },
    )
    first, *_, third, second = read(context, read_rows, data)
    assert [(item.category_id, pytest.approx(item.xyxy)) for item in first.objects] == [
        (1, (10, 12, 30, 18)),
        (0, (4, 3, 24, 12)),
    ]
    assert second.objects == third.objects == ()
    (val,) = read(context, read_rows, data, "val")
    assert [(item.xyxy, item.score) for item in val.objects] == [((0, 0, 20, 30), 0.75)]


def test_lines_that_say_nothing_cost_their_box_alone(
    context: SourceContext, read_rows: ReadRows, write: Callable[..., Path]
) -> None:
    lines = ["0 0.5 0.5 0.5", "0 a b c d", "7 0.5 0.5 0.5 0.5", "0 nan 0.5 0.5 0.5", "0.5 0.5 0.5 0.5 0.5", "0"]
    lines += ["0 0.5 0.5 0 0.1", "1e400 0.5 0.5 0.5 0.5", "0 0.5 0.5 0.5 0.5"]
    rows = read(
        context, read_rows, write("train: images\nnames: {0: cat}\n", {"images/a.jpg": "\n".join(lines)}), "train"
    )
    reasons = sorted(row.reason for row in rows if not isinstance(row, DetectionRecord) and hasattr(row, "reason"))
    assert reasons == sorted(["box_malformed"] * 4 + ["category_unknown"] * 2 + ["box_degenerate"] + ["box_malformed"])
    (record,) = (row for row in rows if isinstance(row, DetectionRecord))
    assert [item.xyxy for item in record.objects] == [(10, 7.5, 30, 22.5)]


def test_keypoints_are_no_polygon() -> None:
    line = "0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.9 0.9 1"
    item, is_polygon = parse_line(line, has_keypoints=True)
    assert (pytest.approx(item.xyxy), is_polygon) == ((0.4, 0.4, 0.6, 0.6), False)
    assert parse_line(line)[1]


@given(st.text(st.sampled_from("0123456789.-einfa \t"), max_size=60))
def test_any_line_makes_an_object(line: str) -> None:
    if line.strip():
        item, _ = parse_line(line)
        assert len(item.xyxy) in (0, 4)
        assert all(math.isfinite(side) for side in item.xyxy)
        assert 0 <= item.score <= 1


@pytest.mark.parametrize(
    ("yaml", "pictures"),
    [
        ("path: ../datasets/set\ntrain: images\n", ["images/a.jpg"]),
        ("path: /home/me/datasets/set\ntrain: images\n", ["images/a.jpg"]),
        ("train: ../train/images\nval: ../valid/images\n", ["train/images/a.jpg", "valid/images/b.jpg"]),
        ("train: [one/images, two/images]\n", ["one/images/a.jpg", "two/images/b.jpg"]),
    ],
)
def test_paths_of_other_machines_are_found_below_the_folder(
    yaml: str, pictures: list[str], write: Callable[..., Path]
) -> None:
    data = write(f"{yaml}names: [cat]\n", dict.fromkeys(pictures, ""))
    file = YoloFile.read(str(data))
    found = [name for split in file.splits for name in file.pictures(split)]
    assert found == pictures


def test_a_split_may_be_a_list_of_pictures(write: Callable[..., Path]) -> None:
    data = write("train: train.txt\nnames: [cat]\n", {"images/b.jpg": "", "images/a.jpg": "", "images/c.jpg": ""})
    (data.parent / "train.txt").write_text("./images/b.jpg\n\nimages/a.jpg\n")
    assert YoloFile.read(str(data)).pictures("train") == ["images/b.jpg", "images/a.jpg"]


def test_names_that_leave_the_folder_are_not_followed(
    context: SourceContext, read_rows: ReadRows, write: Callable[..., Path], tmp_path: Path, picture: Picture
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/x.jpg").write_bytes(picture())
    with pytest.raises(MissingInputError, match="no pictures of the split"):
        read(context, read_rows, write("train: ../secret\nnames: [cat]\n", {}))
    data = write("train: train.txt\nnames: [cat]\n", {"images/b.jpg": ""})
    (data.parent / "train.txt").write_text("../secret/x.jpg\n/etc/passwd\n")
    outside, absolute = read(context, read_rows, data)
    assert outside.reason == absolute.reason == "image_outside_folder"


@pytest.mark.parametrize("yaml", ["names: 3\n", "train: images\n", "[", "names: {a: cat}\n", "names: [1]\n"])
def test_what_is_no_data_yaml_is_told(yaml: str, write: Callable[..., Path]) -> None:
    with pytest.raises(MissingInputError, match=r"data\.yaml"):
        YoloFile.read(str(write(yaml, {})))


def test_labels_stand_in_place_of_the_last_images_folder() -> None:
    assert label_of("images/train/a.b.jpg") == "labels/train/a.b.txt"
    assert label_of("images/x/images/a.jpg") == "images/x/labels/a.txt"
    assert label_of("train/images/a.jpg") == "train/labels/a.txt"
    assert label_of("pictures/a.jpg") == "pictures/a.txt"
    assert label_of("my_images/a.jpg") == "my_images/a.txt"


def test_a_folder_is_a_layout(write: Callable[..., Path]) -> None:
    data = write(
        "train: images/train\nval: images/val\nnames: [cat]\n", {"images/train/a.jpg": "", "images/val/b.jpg": ""}
    )
    layout = find_layout(data.parent)
    assert [(entry["reader"], entry["split"]) for entry in (*layout.train, *layout.validation)] == [
        ("yolo", "train"),
        ("yolo", "val"),
    ]
    data.write_text("train: images/train\nval: images/train\nnames: [cat]\n")
    assert find_layout(data.parent).validation == ()


@pytest.mark.skipif(not (SHARED / "cases/yolo").is_dir(), reason="no ../shared/cases")
def test_a_real_data_set(context: SourceContext, read_rows: ReadRows) -> None:
    rows = read(context, read_rows, SHARED / "cases/yolo/data.yaml")
    assert [len(row.objects) for row in rows] == [1, 1, 1, 1]
    layout = find_layout(SHARED / "cases/yolo")
    assert len(layout.validation) == 1
