"""Data of one's own as records: one vocabulary, a split by pictures that have boxes, look-alikes on one side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.errors import ConfigError, MissingInputError
from pipeline.prepare.division import CHOICE, TRAIN, VALIDATION, check_names, divide, divide_others
from pipeline.store.records import Category, DetectedObject, DetectionRecord, ImageRef
from pipeline.store.shards import categories_to_metadata, list_shards, read_categories, read_shard, write_shard
from pipeline.store.storage import list_files

MAX_PIXELS = 10**6


def picture(path: Path, seed: int, disc: int | None = None) -> str:
    """Write a picture of broad patches, with a small disc at a place."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)
    if disc is not None:
        ImageDraw.Draw(image).ellipse((20 + disc * 7, 100, 40 + disc * 7, 120), fill="red")
    image.save(path)
    return str(path)


def record(place: str, categories: Sequence[int] = (1,), **changes: Any) -> DetectionRecord:
    objects = tuple(DetectedObject(category_id=number, xyxy=(1, 1, 9, 9), **changes) for number in categories)
    return DetectionRecord(
        key=sha256(Path(place).name.encode()).hexdigest(),
        image=ImageRef(path=place),
        height=240,
        width=320,
        source="own",
        objects=objects,
    )


def write(folder: Path, records: Sequence[DetectionRecord], names: Sequence[str] = ("ball",), number: int = 0) -> None:
    metadata = categories_to_metadata([Category(id=i, name=name) for i, name in enumerate(names, 1)])
    write_shard(folder / f"part-{number:05d}.parquet", records, DetectionRecord, metadata)


def pictures(folder: Path) -> set[str]:
    return {str(row.image.path) for path in list_shards(folder) for row in read_shard(path, DetectionRecord)}


def sources(*names: str) -> Any:
    table = SimpleNamespace(categories=[Category(id=i, name=name) for i, name in enumerate(names)])
    return {"human": [SimpleNamespace(tables=[table])]}


def test_a_share_of_the_pictures_with_boxes_is_held_out_and_stays_so(tmp_path: Path) -> None:
    places = [picture(tmp_path / f"{i}.png", i) for i in range(30)]
    held_out = []
    for count, expected in ((20, 3), (30, 5)):
        records = [record(place, (1,) if i % 2 else ()) for i, place in enumerate(places[:count])]
        write(tmp_path / "read" / TRAIN, records)
        counts = divide(tmp_path / "read", tmp_path / "out", 0.3, MAX_PIXELS, ["/"])
        assert counts == {"train": count - expected, "validation": expected}
        train, validation = pictures(tmp_path / "out" / TRAIN), pictures(tmp_path / "out" / VALIDATION)
        assert sorted(train | validation) == sorted(places[:count])
        assert not train & validation
        assert validation <= set(places[1::2])
        held_out.append(validation)
    assert len(held_out[0] & held_out[1]) >= 2


def test_pictures_that_look_alike_stay_together(tmp_path: Path) -> None:
    frames = [picture(tmp_path / f"f{i}.png", 1, disc=i) for i in range(12)]
    others = [picture(tmp_path / f"o{i}.png", 10 + i) for i in range(6)]
    flat = []
    for i in range(2):  # of one colour, and the same file twice
        Image.new("RGB", (320, 240), "red").save(tmp_path / f"flat{i}.png")
        flat.append(str(tmp_path / f"flat{i}.png"))
    write(tmp_path / "read" / TRAIN, [record(place) for place in (*frames, *others, *flat)])
    divide(tmp_path / "read", tmp_path / "out", 0.2, MAX_PIXELS, ["/"])
    validation = pictures(tmp_path / "out" / VALIDATION)
    assert 2 <= len(validation) <= 4
    for together in (frames, flat):
        assert len(validation & set(together)) in (0, len(together))


def test_where_all_look_alike_the_last_are_held_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [picture(tmp_path / f"{i}.png", 1, disc=i) for i in range(10)]
    write(tmp_path / "read" / TRAIN, [record(place, (1,) if i % 2 else ()) for i, place in enumerate(frames)])
    assert divide(tmp_path / "read", tmp_path / "out", 0.3, MAX_PIXELS, ["/"]) == {"train": 7, "validation": 3}
    assert pictures(tmp_path / "out" / VALIDATION) == set(frames[7:])
    assert "all pictures with boxes look alike" in caplog.text
    assert "the last 2 of 5" in caplog.text


def test_a_part_to_judge_by_stands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    places = [picture(tmp_path / f"{i}.png", i) for i in range(4)]
    write(tmp_path / "read" / TRAIN, [record(place) for place in places[:3]], ["ball"])
    write(tmp_path / "read" / VALIDATION, [record(place, (1, 2)) for place in places[2:]], ["cup", "ball"])
    assert divide(tmp_path / "read", tmp_path / "out", 0.3, MAX_PIXELS, ["/"]) == {"train": 3, "validation": 2}
    for folder, expected in ((TRAIN, ["ball"]), (VALIDATION, ["cup", "ball"])):
        [shard] = list_shards(tmp_path / "out" / folder)
        categories = {category.id: category.name for category in read_categories(shard)}
        assert sorted(categories.values()) == ["ball", "cup"]  # the same in both
        assert [categories[item.category_id] for item in read_shard(shard, DetectionRecord)[0].objects] == expected
    assert "judged by 'cup' as well, which no picture to learn from shows" in caplog.text
    assert "1 pictures are among those to learn from and those to judge by" in caplog.text


def test_boxes_of_one_picture_in_several_files_come_together(tmp_path: Path) -> None:
    places = [picture(tmp_path / f"{i}.png", i) for i in range(3)]
    write(tmp_path / "read" / TRAIN, [record(place) for place in places], ["ball"])
    write(tmp_path / "read" / TRAIN, [record(place) for place in places[:2]], ["cup"], 1)
    assert divide(tmp_path / "read", tmp_path / "out", 0.3, MAX_PIXELS, ["/"]) == {"train": 2, "validation": 1}
    shards = [*list_shards(tmp_path / "out" / TRAIN), *list_shards(tmp_path / "out" / VALIDATION)]
    found = {row.image.path: len(row.objects) for shard in shards for row in read_shard(shard, DetectionRecord)}
    assert found == {places[0]: 2, places[1]: 2, places[2]: 1}


def test_names_that_read_alike_are_one_and_those_without_a_box_none(tmp_path: Path) -> None:
    places = [picture(tmp_path / f"{i}.png", i) for i in range(4)]
    write(tmp_path / "read" / TRAIN, [record(place, (2, 3, 4)) for place in places], ["things", "Dog", "dog_", "cat"])
    divide(tmp_path / "read", tmp_path / "out", 0.3, MAX_PIXELS, ["/"])
    [shard] = list_shards(tmp_path / "out" / TRAIN)
    assert [category.name for category in read_categories(shard)] == ["Dog", "cat"]
    assert [len({item.category_id for item in row.objects}) for row in read_shard(shard, DetectionRecord)] == [2, 2]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([], None, "0 pictures with boxes that can be used; expected at least two"),
        ([(1,), ()], None, "1 pictures with boxes"),
        ([()], [(1,)], "none of 1 pictures to learn from has a box"),
        ([(1,)], [()], "none of 1 pictures to judge by has a box"),
        ([(1,)], [], "none of 0 pictures to judge by has a box"),
    ],
)
def test_nothing_is_trained_or_judged_on_no_boxes(
    tmp_path: Path, train: list[tuple[int, ...]], validation: list[tuple[int, ...]] | None, message: str
) -> None:
    for folder, rows in ((TRAIN, train), (VALIDATION, validation)):
        if rows is not None:
            places = [picture(tmp_path / f"{folder[:3]}{i}.png", i) for i in range(len(rows))]
            write(tmp_path / "read" / folder, [record(*each) for each in zip(places, rows, strict=True)])
    with pytest.raises(MissingInputError, match=message):
        divide(tmp_path / "read", tmp_path / "out", 0.3, MAX_PIXELS, ["/"])


def test_regions_of_a_crowd_are_no_boxes_to_judge_by(tmp_path: Path) -> None:
    places = [picture(tmp_path / f"{i}.png", i) for i in range(3)]
    write(tmp_path / "read" / TRAIN, [record(place, is_crowd=True) for place in places])
    with pytest.raises(MissingInputError, match="0 pictures with boxes"):
        divide(tmp_path / "read", tmp_path / "out", 0.3, MAX_PIXELS, ["/"])


def test_names_are_checked_before_anything_is_read(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_names(sources("dog", "U.S. flag", "犬", "Dog"), tokenizer, 20)
    assert "categories 'dog', 'Dog' read alike and are taken for one" in caplog.text
    with pytest.raises(ConfigError, match=r"no model can be asked for '\(unknown\)', '_', '', '-'"):
        check_names(sources("dog", "(unknown)", "_", "", "-"), tokenizer, 20)
    with pytest.raises(ConfigError, match=r"has .* tokens; a prompt holds 18; rename it"):
        check_names(sources("a very long name " * 9), tokenizer, 20)


def test_pictures_are_set_aside_to_choose_by_where_there_are_enough(tmp_path: Path) -> None:
    places = [picture(tmp_path / f"{i}.png", i) for i in range(40)]
    for count, parts in ((40, {"train": 26, "validation": 8, "choose": 6}), (20, {"train": 16, "validation": 4})):
        write(tmp_path / "read" / TRAIN, [record(place) for place in places[:count]])
        found = divide(tmp_path / "read", tmp_path / "out", 0.18, MAX_PIXELS, ["/"], is_chosen_among=True)
        assert found == parts
        split = [pictures(tmp_path / "out" / folder) for folder in (TRAIN, VALIDATION, CHOICE) if len(parts) == 3]
        assert sum(map(len, split)) == len(set().union(*split))
    assert not list_files(tmp_path / "out" / CHOICE, "*.parquet")  # those of before are gone


def test_categories_get_other_names(tmp_path: Path) -> None:
    places = [picture(tmp_path / f"{i}.png", i) for i in range(6)]
    write(tmp_path / "read" / TRAIN, [record(place, (1, 2)) for place in places], ["cls_1", "dog"])
    divide(tmp_path / "read", tmp_path / "out", 0.3, MAX_PIXELS, ["/"], {"cls_1": "Dog"})
    shard = list_shards(tmp_path / "out" / TRAIN)[0]
    assert [category.name for category in read_categories(shard)] == ["Dog"]  # two that read alike are one
    assert {len(row.objects) for row in read_shard(shard, DetectionRecord)} == {2}


def test_other_names_are_divided_without_ones_own(tmp_path: Path) -> None:
    places = [picture(tmp_path / f"{i}.png", i) for i in range(10)]
    records = [record(place, (1 + i % 3,)) for i, place in enumerate(places)]
    write(tmp_path / "read" / TRAIN, records[:6], ["ball", "Dog", "cat"])
    write(tmp_path / "read" / VALIDATION, records[6:], ["ball", "Dog", "cat"])
    found = divide_others(tmp_path / "read", tmp_path / "out", ["dog "], 5)
    assert found == {"validation": 3, "choose": 2, "names": 2}
    parts = [pictures(tmp_path / "out" / folder) for folder in (VALIDATION, CHOICE)]
    assert not parts[0] & parts[1]
    assert not {places[1], places[4], places[7]} & (parts[0] | parts[1])
    for folder in (VALIDATION, CHOICE):
        shard = list_shards(tmp_path / "out" / folder)[0]
        assert [category.name for category in read_categories(shard)] == ["ball", "cat"]
    with pytest.raises(MissingInputError, match="--keep: 0 pictures have boxes of other names"):
        divide_others(tmp_path / "read", tmp_path / "out", ["dog", "ball", "cat"], 5)


def test_codes_are_told_of_before_anything_is_read(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    check_names(sources("dog", "cls_07"), tokenizer, 20)
    assert "'cls_07' read like codes" in caplog.text
    caplog.clear()
    check_names(sources("dog", "cls_07", "(unknown)"), tokenizer, 20, {"cls_07": "fire truck", "(unknown)": "thistle"})
    assert not caplog.text
    with pytest.raises(ConfigError, match="no category is called 'cls_08'"):
        check_names(sources("dog"), tokenizer, 20, {"cls_08": "fire truck"})
