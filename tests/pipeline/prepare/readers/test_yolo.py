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
from pipeline.prepare.layouts import find_layout, picture_files
from pipeline.prepare.raw import SourceContext, Url
from pipeline.prepare.readers.yolo import labels_of, parse_line, read_yolo
from pipeline.prepare.readers.yolo_sets import YoloSet
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
                place = folder / labels_of(name)[0]
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
    file = YoloSet.read(str(data))
    found = [name for split in file.splits for name in file.pictures(split)]
    assert found == pictures


def test_a_split_may_be_a_list_of_pictures(write: Callable[..., Path]) -> None:
    data = write("train: train.txt\nnames: [cat]\n", {"images/b.jpg": "", "images/a.jpg": "", "images/c.jpg": ""})
    (data.parent / "train.txt").write_text("./images/b.jpg\n\nimages/a.jpg\n")
    assert YoloSet.read(str(data)).pictures("train") == ["images/b.jpg", "images/a.jpg"]


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
        YoloSet.read(str(write(yaml, {})))


def test_labels_stand_in_place_of_the_last_images_folder() -> None:
    assert labels_of("images/train/a.b.jpg")[0] == "labels/train/a.b.txt"
    assert labels_of("images/x/images/a.jpg")[0] == "images/x/labels/a.txt"
    assert labels_of("train/images/a.jpg")[0] == "train/labels/a.txt"
    assert labels_of("pictures/a.jpg")[0] == "pictures/a.txt"
    assert labels_of("my_images/a.jpg")[0] == "my_images/a.txt"


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


@pytest.fixture
def darknet(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    """Write a folder of texts, and of pictures of 40 × 30 where a name ends so."""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture() if name.endswith(".jpg") else text.encode())
        return tmp_path / "set"

    return make


def read_layout(context: SourceContext, read_rows: ReadRows, folder: Path) -> tuple[list[Any], list[Any]]:
    """Return what comes of the pictures to learn from and to judge by of a folder."""
    layout = find_layout(folder)
    parts = []
    for entries in (layout.train, layout.validation):
        rows = []
        for entry in entries:
            options = {"data": Url(entry["data"]), "split": entry["split"], "images": Url(entry["images"])}
            (table,) = read_yolo(context, **options)
            assert [category.name for category in table.categories] == ["cat", "big dog"]
            rows += read_rows(table, 2, pictures="reference")
        parts.append(rows)
    return parts[0], parts[1]


def told(rows: list[Any]) -> list[Any]:
    """Return the picture and the boxes of records, and the reasons of what is none."""
    return [
        (Path(row.image.path).name, len(row.objects)) if isinstance(row, DetectionRecord) else row.reason
        for row in rows
    ]


NAMES = "cat\r\nbig dog\r\n\r\n"
BOX = "1 0.5 0.5 0.5 0.2\n"
DARKNET: dict[str, tuple[dict[str, str], list[Any], list[Any]]] = {
    "labelImg, all in one folder": (
        {"classes.txt": NAMES, "a.jpg": "", "a.txt": BOX * 2, "b.jpg": "", "b.txt": "", "c.jpg": "", "d.txt": BOX},
        [("a.jpg", 2), ("b.jpg", 0), "row_malformed", "image_missing"],
        [],
    ),
    "Label Studio, images beside labels": (
        {"classes.txt": NAMES, "notes.json": "{}", "images/a.jpg": "", "labels/a.txt": BOX, "labels/x.txt": BOX},
        [("a.jpg", 1), "image_missing"],
        [],
    ),
    "classes among the labels, parts in images": (
        {"labels/classes.txt": NAMES}
        | {f"images/{name}.jpg": "" for name in ("train/a", "val/b")}
        | {f"labels/{name}.txt": BOX for name in ("train/a", "val/b")},
        [("a.jpg", 1)],
        [("b.jpg", 1)],
    ),
    "CVAT, with the paths of another place": (
        {
            "obj.data": "# of CVAT\nclasses = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
            "obj.names": NAMES,
            "train.txt": "data/obj_train_data/b.jpg\ndata/obj_train_data/a.jpg\ndata/obj_train_data/no.jpg\n",
            **{f"obj_train_data/{name}.jpg": "" for name in "ab"},
            **{f"obj_train_data/{name}.txt": BOX for name in "ab"},
        },
        [("b.jpg", 1), ("a.jpg", 1), "image_missing"],
        [],
    ),
    "darknet on Windows, two lists": (
        {
            "voc.data": "names=C:\\darknet\\data\\voc.names\r\ntrain=C:\\darknet\\data\\one.txt\r\nvalid = two.txt",
            "voc.names": NAMES,
            "one.txt": "\ufeffC:\\darknet\\data\\pics\\a.jpg\r\n\r\nC:\\darknet\\data\\pics\\a.jpg\r\n",
            "two.txt": "./pics/b.jpg\n",
            **{f"pics/{name}.jpg": "" for name in "ab"},
            **{f"pics/{name}.txt": BOX for name in "ab"},
        },
        [("a.jpg", 1)] * 2,  # the second is refused for its key, by prepare
        [("b.jpg", 1)],
    ),
    "Roboflow, folders of parts": (
        {f"{part}/_darknet.labels": NAMES for part in ("train", "valid")}
        | {f"{part}.jpg": "" for part in ("train/a", "valid/b")}
        | {f"{part}.txt": BOX for part in ("train/a", "valid/b")},
        [("a.jpg", 1)],
        [("b.jpg", 1)],
    ),
    "a train among the pictures, whose labels are no list": (
        {"classes.txt": NAMES, "train.jpg": "", "train.txt": BOX, "a.jpg": "", "a.txt": BOX + "1 x\n7 0 0 1 1\n"},
        ["box_malformed", "category_unknown", ("a.jpg", 1), ("train.jpg", 1)],
        [],
    ),
}


@pytest.mark.parametrize("kind", DARKNET)
def test_sets_without_a_yaml(
    kind: str, context: SourceContext, read_rows: ReadRows, darknet: Callable[..., Path]
) -> None:
    files, train, validation = DARKNET[kind]
    found = read_layout(context, read_rows, darknet(files))
    assert (told(found[0]), told(found[1])) == (train, validation)


def test_lists_that_leave_the_folder_are_not_followed(
    context: SourceContext, read_rows: ReadRows, darknet: Callable[..., Path], tmp_path: Path, picture: Picture
) -> None:
    (tmp_path / "x.jpg").write_bytes(picture())
    (tmp_path / "x.txt").write_text(BOX)
    files = {"classes.txt": NAMES, "train.txt": "a.jpg\n../x.jpg\n/x.jpg\n", "a.jpg": "", "a.txt": BOX}
    rows, _ = read_layout(context, read_rows, darknet(files))
    assert told(rows) == [("a.jpg", 1), "image_outside_folder", "image_outside_folder"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"classes.txt": " \n", "a.jpg": ""}, r"classes\.txt: no names"),
        ({"obj.data": "names = data/obj.names\n", "a.jpg": ""}, r"obj\.data: names = data/obj\.names, which is not"),
        ({"obj.data": "classes = 2\n", "a.jpg": ""}, r"obj\.data: no line names"),
    ],
)
def test_sets_without_names_are_told(files: dict[str, str], message: str, darknet: Callable[..., Path]) -> None:
    with pytest.raises(MissingInputError, match=message):
        find_layout(darknet(files))


def test_classes_beside_another_format_are_told_of(darknet: Callable[..., Path]) -> None:
    xml = "<annotation><object><name>cat</name></object></annotation>"
    layout = find_layout(darknet({"classes.txt": NAMES, "a.jpg": "", "a.txt": BOX, "a.xml": xml}))
    assert [entry["reader"] for entry in layout.train] == ["pascal_voc"]
    assert "does not read classes.txt" in layout.description


def test_pictures_that_no_list_names_are_known(darknet: Callable[..., Path]) -> None:
    files = {"classes.txt": NAMES, "train.txt": "a.jpg\n", "a.jpg": "", "a.txt": BOX, "b.jpg": "", "b.txt": BOX}
    folder = darknet(files)
    assert picture_files(find_layout(folder)) == {str(folder / "a.jpg"), str(folder / "b.jpg")}
