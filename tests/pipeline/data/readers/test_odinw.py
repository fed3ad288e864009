"""ODinW: where its files lie, which of its categories are asked for, and by which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.raw import Reject, SourceContext, Url
from pipeline.data.readers.odinw import MANUAL_PROMPTS, _umbrella, read_odinw
from pipeline.errors import MissingInputError

ROBOFLOW = "_annotations.coco.json"
PUBLISHED = "annotations_without_background.json"
AQUARIUM = [
    {"id": 0, "name": "creatures", "supercategory": "none"},
    {"id": 1, "name": "fish", "supercategory": "creatures"},
    {"id": 3, "name": "penguin", "supercategory": "creatures"},
]
Split = Literal["train", "valid", "mini_val", "test"]
Read = Callable[..., list[Any]]
Encode = Callable[..., bytes]


def write(path: Path, categories: list[Any], *ids: int, name: str = "a_jpg.rf.0a1b.jpg") -> None:
    """Write annotations with one box of 1 by 1 to 10 by 10 for each of ``ids``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": 0, "license": 1, "file_name": name, "height": 30, "width": 40}]
    boxes = [{"id": i, "image_id": 0, "bbox": [1, 1, 9, 9], "category_id": id_} for i, id_ in enumerate(ids)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("split", "file", "pictures"),
    [
        ("valid", f"valid/{ROBOFLOW}", "valid"),
        ("test", f"test/{PUBLISHED}", "test"),
        ("mini_val", f"mini_val/{PUBLISHED}", "mini_val"),
        ("train", f"train_{PUBLISHED}", "."),
        ("valid", f"val_{PUBLISHED}", "."),
        ("test", f"test_{PUBLISHED}", "."),
    ],
)
def test_a_split_is_found_in_every_layout(
    split: Split, file: str, pictures: str, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    folder = tmp_path / "North American [Mushrooms].v1-{416}.coco"
    write(folder / file, AQUARIUM, 1, 3)
    (folder / pictures / "a_jpg.rf.0a1b.jpg").write_bytes(picture())
    (table,) = read_odinw(context, folder=Url(folder), split=split)
    (record,) = read_rows(table)
    assert [item.category_id for item in record.objects] == [1, 3]


def test_the_published_file_goes_before_the_one_of_the_export(tmp_path: Path, context: SourceContext) -> None:
    write(tmp_path / "test" / ROBOFLOW, AQUARIUM, 1)
    write(tmp_path / "test" / PUBLISHED, AQUARIUM[1:2], 1)
    (table,) = read_odinw(context, folder=Url(tmp_path), split="test")
    assert [category.name for category in table.categories] == ["fish"]


@pytest.mark.parametrize(
    ("categories", "boxes", "asked"),
    [
        (AQUARIUM, (1, 3), [1, 3]),
        (AQUARIUM[1:], (1, 3), [1, 3]),
        (AQUARIUM, (0, 1), [0, 1, 3]),  # somebody labelled with it, so it is one
        ([{"id": 0, "name": "x", "supercategory": "none"}, {"id": 1, "name": "x", "supercategory": "x"}], (1,), [1]),
        ([{"id": 1, "name": "x", "supercategory": "x"}], (), [1]),
        (
            [{"id": 0, "name": "x", "supercategory": "none"}, {"id": 1, "name": "y", "supercategory": "none"}],
            (),
            [0, 1],
        ),
        ([{"id": 0, "name": "x"}, {"id": 1, "name": "y"}], (1,), [0, 1]),
    ],
)
def test_only_what_stands_above_others_and_has_no_boxes_is_left_out(
    categories: list[Any], boxes: tuple[int, ...], asked: list[int], tmp_path: Path, context: SourceContext
) -> None:
    write(tmp_path / "test" / ROBOFLOW, categories, *boxes)
    (table,) = read_odinw(context, folder=Url(tmp_path), split="test")
    assert [category.id for category in table.categories] == asked


@pytest.mark.parametrize(("name", "words"), [*MANUAL_PROMPTS.items(), ("fish", "fish"), ("Hand", "Hand")])
def test_manual_prompts_replace_the_names_that_have_one(
    name: str, words: str, tmp_path: Path, context: SourceContext
) -> None:
    write(tmp_path / "test" / PUBLISHED, [{"id": 1, "name": name, "supercategory": "things"}], 1)
    for prompts, expected in (("original", name), ("manual", words)):
        (table,) = read_odinw(context, folder=Url(tmp_path), split="test", prompts=prompts)  # type: ignore[arg-type]
        assert [(category.id, category.name) for category in table.categories] == [(1, expected)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as JSON"),
        (b'{"images": [{"id": 0, "file_name": "a.jpg"}], "annota', "not readable as JSON"),
        (b"{}", "no pictures in a list 'images'"),
        (b'{"images": [{"id": 0}], "annotations": [], "categories": [{"name": ["x"]}, 5]}', "categories"),
        (b'{"images": [{"id": 0}], "categories": [{"id": [1], "name": "x", "supercategory": {}}]}', "categories"),
    ],
)
@pytest.mark.parametrize("prompts", ["original", "manual"])
def test_a_file_of_another_structure_is_told(
    content: bytes, message: str, prompts: Any, tmp_path: Path, context: SourceContext
) -> None:
    write(tmp_path / "test" / ROBOFLOW, AQUARIUM)
    (tmp_path / "test" / ROBOFLOW).write_bytes(content)
    with pytest.raises(MissingInputError, match=message if prompts == "original" else r"annotations\.coco\.json"):
        read_odinw(context, folder=Url(tmp_path), split="test", prompts=prompts)


@pytest.mark.parametrize("split", ["train", "mini_val"])
def test_a_split_that_is_not_there_is_told(split: Split, tmp_path: Path, context: SourceContext) -> None:
    with pytest.raises(MissingInputError, match=rf"/{split}: no _annotations\.coco\.json; expected a COCO export"):
        read_odinw(context, folder=Url(tmp_path), split=split)


def test_a_name_that_leaves_the_folder_is_a_reject(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    write(tmp_path / "test" / ROBOFLOW, AQUARIUM, 1, name="../secret.jpg")
    (tmp_path / "secret.jpg").write_bytes(picture())
    (table,) = read_odinw(context, folder=Url(tmp_path), split="test")
    assert read_rows(table) == [Reject("../secret.jpg", "image_outside_folder")]


class FakeFile:
    """Categories and boxes without a file."""

    def __init__(self, categories: list[Any], used: list[int]) -> None:
        self._lists = {"categories": categories, "annotations": [{"category_id": number} for number in used]}

    def rows(self, name: str) -> list[Any]:
        return self._lists[name]


values = st.sampled_from(["none", "a", "b"]) | st.none() | st.lists(st.integers(), max_size=1)
entries = st.fixed_dictionaries({"id": st.integers(0, 3) | st.none() | values, "name": values, "supercategory": values})


@given(st.lists(entries), st.lists(st.integers(0, 3)))
def test_a_category_that_boxes_have_is_never_left_out(categories: list[Any], used: list[int]) -> None:
    left_out = _umbrella(FakeFile(categories, used))  # type: ignore[arg-type]
    assert not left_out & set(used)
    for number in left_out:
        names = [row["name"] for row in categories if row["id"] == number]
        assert any(row["supercategory"] in names for row in categories)
