"""The embedded data set as records: who sees which concepts, and that every promise about the tables holds."""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.prepare.embedded.sprites import split_concepts
from pipeline.prepare.embedded.tables import categories, read_embedded, web_truth
from pipeline.prepare.raw import RawTable, SourceContext
from pipeline.prepare.settings import EmbeddedConfig
from pipeline.settings import load_all
from pipeline.store.records import CaptionRecord, DetectionRecord, GroundingRecord

ROOT = Path(__file__).resolve().parents[4]
CONFIG = dataclasses.replace(
    load_all(ROOT / "params.yaml").prepare.embedded,
    human_detection=40,
    human_grounding=60,
    web=120,
    dev=40,
    test=40,
    image_size=64,
    base_concepts=30,
    novel_concepts=15,
)
BASE, NOVEL = (frozenset(names) for names in split_concepts(CONFIG.base_concepts, CONFIG.novel_concepts))
ROLES = ("human", "web", "dev", "test")
KINDS: dict[str, type] = {"": CaptionRecord, "detection": DetectionRecord, "grounding": GroundingRecord}


def tables_for(role: str, config: EmbeddedConfig, seed: int) -> dict[str, RawTable]:
    prepare = dataclasses.replace(load_all(ROOT / "params.yaml").prepare, embedded=config)
    folders = {kind: folder for folder, kind in KINDS.items()}
    tables = read_embedded(SourceContext(role=role, name="embedded", config=prepare, seed=seed))
    return {table.folder or folders[table.record_type]: table for table in tables}


def rows(table: RawTable, rows_per_part: int = 1000) -> list[Any]:
    return [row for part in table.parts(rows_per_part) for row in pickle.loads(pickle.dumps(part.rows))()]


def read(role: str, folder: str, seed: int = 0, **changes: Any) -> list[Any]:
    return rows(tables_for(role, dataclasses.replace(CONFIG, **changes), seed)[folder])


def names_in(text: str, names: frozenset[str]) -> set[str]:
    return {name for name in names if name in text.lower()}


@pytest.fixture(scope="module")
def everything() -> dict[str, list[Any]]:
    return {f"{role}/{f}": rows(table) for role in ROLES for f, table in tables_for(role, CONFIG, 0).items()}


def test_human_data_shows_and_names_base_concepts_alone(everything: dict[str, list[Any]]) -> None:
    vocabulary = {category.id: category for category in categories(CONFIG, with_novel=True)}
    shown = {vocabulary[o.category_id].name for record in everything["human/detection"] for o in record.objects}
    assert shown
    assert shown <= BASE
    assert {category.name for category in categories(CONFIG, with_novel=False)} == BASE
    for record in everything["human/grounding"]:
        assert record.phrases
        assert {phrase.split for phrase in record.phrases} == {"base"}
        # Not in the words between the phrases either; names that a base name contains ("seat" in "car seat") aside.
        hidden = {name for name in NOVEL if not any(name in base for base in BASE)}
        assert not names_in(record.caption, frozenset(hidden))


def test_ids_are_the_same_with_and_without_novel_concepts() -> None:
    everything = {category.name: category for category in categories(CONFIG, with_novel=True)}
    assert sorted(category.id for category in everything.values()) == list(range(1, len(BASE | NOVEL) + 1))
    for category in categories(CONFIG, with_novel=False):
        assert everything[category.name] == category
    assert {name for name, category in everything.items() if category.split == "novel"} == NOVEL


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_three_tasks_of_a_split_ask_about_the_same_pictures(everything: dict[str, list[Any]], split: str) -> None:
    detection = everything[f"{split}/detection"]
    boxes = {record.image.bytes: [item.xyxy for item in record.objects] for record in detection}
    assert len(boxes) == len(detection) == 40
    grounding = everything[f"{split}/grounding"]
    assert [record.image for record in grounding] == [record.image for record in detection]
    for record in grounding:
        said = [box.xyxy for phrase in record.phrases for box in phrase.boxes]
        assert sorted(said) == sorted(boxes[record.image.bytes])
    for record in everything[f"{split}/referring"]:
        (phrase,) = record.phrases
        (box,) = phrase.boxes
        assert box.xyxy in boxes[record.image.bytes]
        assert phrase.text == record.caption
        assert phrase.char_spans == ((0, len(record.caption)),)
    assert len(everything[f"{split}/referring"]) > 30


@pytest.mark.parametrize("split", ["dev", "test"])
def test_evaluation_knows_base_from_novel(everything: dict[str, list[Any]], split: str) -> None:
    for task in ("grounding", "referring"):
        phrases = [phrase for record in everything[f"{split}/{task}"] for phrase in record.phrases]
        assert {phrase.split for phrase in phrases} == {"base", "novel"}
        for phrase in phrases:
            names = (BASE if phrase.split == "base" else NOVEL) | frozenset({"?"})
            singular = {name for name in names if name in phrase.text.lower()}
            assert singular or phrase.is_plural


def test_no_picture_serves_twice(everything: dict[str, list[Any]]) -> None:
    folders = ("human/detection", "human/grounding", "web/", "dev/detection", "test/detection")
    pictures = Counter(record.image.bytes for folder in folders for record in everything[folder])
    assert max(pictures.values()) == 1


def test_keys_are_unique_within_a_table(everything: dict[str, list[Any]]) -> None:
    for records in everything.values():
        assert len({record.key for record in records}) == len(records)


def test_spans_and_boxes_are_sound(everything: dict[str, list[Any]]) -> None:
    for records in everything.values():
        for record in records:
            image = Image.open(io.BytesIO(record.image.bytes))
            assert (record.height, record.width) == (image.height, image.width) == (64, 64)
            boxes = [item.xyxy for item in getattr(record, "objects", ())]
            for phrase in getattr(record, "phrases", ()):
                assert " ".join(record.caption[start:end] for start, end in phrase.char_spans) == phrase.text
                boxes += [box.xyxy for box in phrase.boxes]
            for x1, y1, x2, y2 in boxes:
                assert 0 <= x1 < x2 <= 64
                assert 0 <= y1 < y2 <= 64


def test_web_pairs_carry_a_caption_and_nothing_else(everything: dict[str, list[Any]]) -> None:
    assert {type(record) for record in everything["web/"]} == {CaptionRecord}


def test_the_truth_of_a_web_pair_can_be_told_again(everything: dict[str, list[Any]]) -> None:
    for number, record in enumerate(everything["web/"]):
        truth = web_truth(CONFIG, 0, number)
        assert isinstance(truth, GroundingRecord)
        assert (truth.key, truth.image, truth.caption) == (record.key, record.image, record.caption)
        assert truth.phrases
        for phrase in truth.phrases:
            ((start, end),) = phrase.char_spans
            assert truth.caption[start:end] == phrase.text


def test_the_noise_of_web_captions_follows_the_settings() -> None:
    def truths(**changes: Any) -> list[GroundingRecord]:
        config = dataclasses.replace(CONFIG, min_objects=3, max_objects=3, **changes)
        return [web_truth(config, 0, number) for number in range(150)]

    clean = truths(omitted_mention_share=0.0, absent_mention_share=0.0)
    assert all(phrase.boxes for record in clean for phrase in record.phrases)
    count = sum(len(phrase.boxes) for record in clean for phrase in record.phrases)
    silent = truths(omitted_mention_share=0.5, absent_mention_share=0.0)
    left = sum(len(phrase.boxes) for record in silent for phrase in record.phrases)
    assert 0.45 * count < left < 0.75 * count  # one mention is always kept, so a little more than half
    noisy = truths(omitted_mention_share=0.0, absent_mention_share=0.6)
    absent = sum(not phrase.boxes for record in noisy for phrase in record.phrases)
    assert absent == pytest.approx(0.6 * 150, abs=25)
    assert all(
        phrase.boxes
        for record in truths(omitted_mention_share=1.0, absent_mention_share=0.0)
        for phrase in record.phrases
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_novel_concepts_are_as_frequent_as_asked(share: float) -> None:
    vocabulary = {category.id: category for category in categories(CONFIG, with_novel=True)}
    splits = [
        vocabulary[item.category_id].split
        for record in read("dev", "detection", novel_share=share, dev=250)
        for item in record.objects
    ]
    assert splits.count("novel") / len(splits) == pytest.approx(share, abs=0.08)


def test_seeds_change_pictures_and_captions_and_not_the_vocabulary() -> None:
    first, second = read("web", "", seed=0, web=20), read("web", "", seed=1, web=20)
    assert not {record.key for record in first} & {record.key for record in second}
    assert not {record.image.bytes for record in first} & {record.image.bytes for record in second}
    for role in ("human", "dev"):
        tables = [tables_for(role, CONFIG, seed) for seed in (0, 1)]
        assert [t.categories for t in tables[0].values()] == [t.categories for t in tables[1].values()]


def test_rows_are_the_same_however_they_are_cut_into_shards() -> None:
    table = tables_for("web", CONFIG, 0)[""]
    assert rows(table, 7) == rows(table, 1000)
    assert [part.num_rows for part in table.parts(50)] == [50, 50, 20]
    assert table.num_rows == 120


def test_human_and_web_pictures_may_be_of_different_styles(everything: dict[str, list[Any]]) -> None:
    def pictures(role: str, folder: str, **styles: tuple[str, ...]) -> list[bytes]:
        return [row.image.bytes for row in read(role, folder, **styles)]

    google, twitter = ("google",), ("twitter",)
    apart = pictures("human", "detection", human_styles=google)
    assert apart == pictures("human", "detection", human_styles=google, web_styles=twitter)
    assert apart != [row.image.bytes for row in everything["human/detection"]]
    for role, folder in (("web", ""), ("dev", "grounding"), ("test", "detection")):
        one, other = (pictures(role, folder, web_styles=styles) for styles in (google, twitter))
        assert one != other
        assert one == pictures(role, folder, web_styles=google, human_styles=twitter)
