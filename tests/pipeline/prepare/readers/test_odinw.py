"""ODinW: where its files lie, which of its categories are asked for, and by which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, MissingInputError
from pipeline.prepare.raw import Reject, SourceContext, Url
from pipeline.prepare.readers.odinw import MANUAL_PROMPTS, _umbrella, draw_pictures, read_odinw

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


FEW = {"train": "train", "valid": "val", "mini_val": "minival"}


def write_many(path: Path, shown: dict[int, list[int]]) -> None:
    """Write pictures of those ids with a box for each of their categories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 30, "width": 40} for i in shown]
    boxes = [{"image_id": i, "bbox": [1, 1, 9, 9], "category_id": id_} for i, ids in shown.items() for id_ in ids]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": AQUARIUM}), encoding="utf-8")


def names_of(rows: list[Any]) -> list[str]:
    return [row.image.path.rpartition("/")[2] for row in rows]


@pytest.mark.parametrize("split", FEW)
@pytest.mark.parametrize("beside", [False, True])
def test_the_benchmarks_own_few_shot_file_is_taken_where_it_is_there(
    split: Any, beside: bool, tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    write_many(tmp_path / split / PUBLISHED, {i: [1] for i in range(9)})
    place = tmp_path if beside else tmp_path / split
    write_many(place / f"fewshot_{FEW[split]}_shot3_seed30.json", {7: [1], 2: [1, 3]})
    (table,) = read_odinw(context, folder=Url(tmp_path), split=split, shots=3, shot_seed=30)
    rows = read_rows(table, pictures="unread")
    assert [row.image.path for row in rows] == [f"{tmp_path}/{split}/{i}.jpg" for i in (7, 2)]
    (table,) = read_odinw(context, folder=Url(tmp_path), split=split, shots=3)
    assert len(read_rows(table, pictures="unread")) == 3  # another seed has no file


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_subset_is_drawn_with_its_boxes_alone(
    split: Any, tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    # 0 stands above the others and 99 is unknown; pictures without a box of what is asked for are never drawn.
    shown = {100 + i: [[1, 1, 1], [3], [99], []][i % 4] for i in range(40)}
    write_many(tmp_path / split / PUBLISHED, shown)
    subsets = {}
    for seed in (3, 30, 300):
        (table,) = read_odinw(context, folder=Url(tmp_path), split=split, shots=5, shot_seed=seed)
        rows = read_rows(table, 3, pictures="unread")
        assert [category.id for category in table.categories] == [1, 3]
        assert [[item.category_id for item in row.objects] for row in rows] == [
            shown[int(name.removesuffix(".jpg"))] for name in names_of(rows)
        ]
        assert sorted(row.objects[0].category_id for row in rows) == [1] * 5 + [3] * 5
        subsets[seed] = names_of(rows)
        (again,) = read_odinw(context, folder=Url(tmp_path), split=split, shots=5, shot_seed=seed)
        assert names_of(read_rows(again, pictures="unread")) == subsets[seed]
    assert len({tuple(names) for names in subsets.values()}) == 3
    (whole,) = read_odinw(context, folder=Url(tmp_path), split=split)
    assert whole.num_rows == 40


def test_a_subset_that_shares_its_file_is_known_as_another_part(tmp_path: Path, context: SourceContext) -> None:
    write_many(tmp_path / "train" / PUBLISHED, {i: [1] for i in range(30)})
    identities = set()
    for options in ({}, {"shots": 1}, {"shots": 3}, {"shots": 3, "shot_seed": 30}):
        (table,) = read_odinw(context, folder=Url(tmp_path), split="train", **options)
        identities |= {part.identity for part in table.parts(100)}
    assert len(identities) == 4


def test_fewer_than_no_shots_are_a_mistake(tmp_path: Path, context: SourceContext) -> None:
    with pytest.raises(ConfigError, match="shots is -1; expected 0 for all pictures"):
        read_odinw(context, folder=Url(tmp_path), split="train", shots=-1)


def test_the_draw_is_the_same_on_every_machine() -> None:
    shown = {str(i): {i % 3, 7} for i in range(1, 31)}
    assert draw_pictures(shown, 2, 3) == {"2", "10", "11", "15", "22", "27"}


shows = st.dictionaries(st.integers(0, 200).map(str), st.frozensets(st.integers(0, 5) | st.just(10**6)), max_size=40)


@given(shows, st.integers(1, 10), st.integers(0, 300))
def test_every_category_gets_its_shots_or_all_that_there_are(
    shown: dict[str, frozenset[int]], shots: int, seed: int
) -> None:
    kept = draw_pictures(shown, shots, seed)
    for category in frozenset().union(*shown.values()):
        having = {picture for picture, categories in shown.items() if category in categories}
        assert len(kept & having) >= min(shots, len(having))
    assert all(shown[picture] for picture in kept)
    assert len(kept) <= shots * len(frozenset().union(*shown.values()))
    assert draw_pictures(dict(reversed(shown.items())), shots, seed) == kept


@given(st.lists(st.integers(0, 300), min_size=2, max_size=2, unique=True))
def test_another_seed_draws_other_pictures(seeds: list[int]) -> None:
    shown = {str(i): {i % 4} for i in range(400)}
    first, second = (draw_pictures(shown, 10, seed) for seed in seeds)
    assert first != second
