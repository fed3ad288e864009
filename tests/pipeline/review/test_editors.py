"""To other people's editors and back: what nobody changed stays, what somebody changed becomes a decision."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, MissingInputError
from pipeline.inspection.exports import export
from pipeline.inspection.reading import read_records
from pipeline.inspection.search import Filter, find_rows
from pipeline.review.decisions import settle
from pipeline.review.editors import EDITORS, Sheet, read_sheets
from pipeline.review.merging import merge
from pipeline.review.taking import as_it_is, judge, to_decisions
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import shard_name, write_shard
from stages import review as command

FILES = {"coco": "annotations.json", "cvat": "annotations.xml", "label_studio": "tasks.json", "odvg": "labels.jsonl"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def export_to(name: str, labels: Path, out: Path) -> Path:
    export(name, find_rows(labels, Filter()), out, lambda _: None)
    path = out / FILES[name]
    if name == "label_studio":  # somebody submits every task as it came
        tasks = json.loads(path.read_text(encoding="utf-8"))
        for task in tasks:
            task["annotations"] = [{"result": task["predictions"][0]["result"]}]
        path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def take(name: str, path: Path, labels: Path, takes_all: bool = False) -> tuple[list[Any], Counter[str]]:
    problems: Counter[str] = Counter()
    sheets = read_sheets(name, str(path), None, problems)
    records = read_records(find_rows(labels, Filter()), Counter())
    return list(to_decisions(records, sheets, "ann", NOW, takes_all, problems)), problems


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_round_trip_changes_nothing_where_nobody_did(name: str, labels: Path, tmp_path: Path, rows: Any) -> None:
    path = export_to(name, labels, tmp_path / "out")
    assert take(name, path, labels) == ([], Counter())
    accepted, _ = take(name, path, labels, takes_all=True)
    assert [each.key for each in accepted] == ["k0", "k1", "k2", "k3"]
    assert [list(each.phrases) for each in accepted] == [as_it_is(row) for row in rows]


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_was_changed_comes_back(name: str, labels: Path, tmp_path: Path) -> None:
    path = export_to(name, labels, tmp_path / "out")
    CHANGES[name](path)
    (decision,), problems = take(name, path, labels)
    assert decision.key == "k0"
    found = {phrase.text: phrase for phrase in decision.phrases}
    assert found["dog"].boxes == ((20, 20, 80, 80),)  # untouched, to the bit
    assert (found["red cat"].verdict, found["red cat"].boxes) == ("absent", ())
    np.testing.assert_allclose(found["Zebra"].boxes, [(120, 10.25, 170, 60)], atol=1e-4)
    assert problems == Counter()
    found_again = merge(labels, settle([decision]), tmp_path / "merged")
    assert (found_again.reviewed, found_again.absent) == (1, 1)


def change_coco(path: Path) -> None:
    values = json.loads(path.read_text())
    values["categories"].append({"id": 99, "name": "Zebra"})
    item = next(each for each in values["annotations"] if each["bbox"][0] == 120)
    item["category_id"], item["bbox"][2] = 99, 50
    path.write_text(json.dumps(values))


def change_cvat(path: Path) -> None:
    tree = ElementTree.parse(path)
    item = tree.getroot().findall("image")[0].findall("box")[1]
    item.set("label", "Zebra")
    item.set("xbr", "170.00")
    tree.write(path)


def change_label_studio(path: Path) -> None:
    tasks = json.loads(path.read_text())
    value = tasks[0]["annotations"][0]["result"][1]["value"]
    value["rectanglelabels"], value["width"] = ["Zebra"], 25.0
    del tasks[1]["annotations"]  # which says nothing of that row
    tasks[2]["annotations"].append({"was_cancelled": True, "result": []})
    path.write_text(json.dumps(tasks))


def change_odvg(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    region = lines[0]["grounding"]["regions"][1]
    region["phrase"], region["bbox"][2] = "Zebra", 170
    path.write_text("\n".join(map(json.dumps, lines)))


CHANGES: dict[str, Callable[[Path], None]] = {
    "coco": change_coco,
    "cvat": change_cvat,
    "label_studio": change_label_studio,
    "odvg": change_odvg,
}
SIDES = st.floats(0, 199, width=32).filter(lambda x: x == 0 or x > 1e-3)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(lambda text: text.strip())


@st.composite
def some_rows(draw: Any) -> list[GroundingRecord]:
    """Rows whose names differ by more than case and blanks, and whose boxes by more than rounding."""
    made = []
    for number in range(draw(st.integers(1, 3))):
        texts = draw(st.lists(TEXTS, min_size=1, max_size=3, unique_by=lambda text: text.strip().lower()))
        phrases = []
        for place, text in enumerate(texts):
            x, y = draw(SIDES), 10.0 * place
            wide = draw(st.floats(1, 30, width=32))
            box = tuple(np.float32([x * 0.5, y, x * 0.5 + wide, y + 5]).tolist())
            phrases.append(Phrase(text=text, char_spans=(), boxes=(ScoredBox(xyxy=box, score=0.5),)))
        made.append((str(number), tuple(phrases)))
    return made


@pytest.mark.parametrize("name", sorted(FILES))
def test_any_round_trip_changes_nothing(name: str, tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    @settings(max_examples=15, deadline=None)
    @given(some_rows())
    def check(drawn: Any) -> None:
        folder = tmp_path_factory.mktemp("trip")
        made = [
            GroundingRecord(
                key=key,
                image=ImageRef(bytes=rows[0].image.bytes),
                height=100,
                width=200,
                caption="c",
                source="s",
                phrases=phrases,
            )
            for key, phrases in drawn
        ]
        write_shard(folder / "labels" / shard_name(0), made, GroundingRecord)
        path = export_to(name, folder / "labels", folder / "out")
        assert take(name, path, folder / "labels") == ([], Counter())

    check()


def test_keys_that_an_editor_dropped_are_in_the_table(labels: Path, tmp_path: Path) -> None:
    path = export_to("coco", labels, tmp_path / "out")
    values = json.loads(path.read_text())
    for image in values["images"]:
        del image["key"]
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / path.name
    moved.write_text(json.dumps(values))
    _, problems = take("coco", moved, labels)
    assert problems.total() == 4
    sheets = read_sheets("coco", str(moved), tmp_path / "out" / "keys.csv", Counter())
    assert [sheet.key for sheet in sheets] == ["k0", "k1", "k2", "k3"]


def test_equal_names_at_two_places_keep_their_boxes(rows: Any) -> None:
    two = [
        Phrase(text="dog", char_spans=((i, i + 3),), boxes=(ScoredBox(xyxy=(i, 0, i + 9, 9), score=0.5),))
        for i in (0, 50)
    ]
    record = GroundingRecord(
        key="a", image=ImageRef(), height=100, width=200, caption="x" * 60, source="s", phrases=tuple(two)
    )
    boxes = [("dog", (50.0, 0.0, 59.0, 9.0)), ("Dog ", (0.0, 0.0, 9.0, 9.0))]
    assert judge(record, Sheet("a", boxes)) == as_it_is(record)
    moved = judge(record, Sheet("a", boxes[:1]))
    assert [phrase.verdict for phrase in moved] == ["absent", "right"]


def test_a_phrase_goes_by_its_class_too(rows: Any, tmp_path: Path) -> None:
    """COCO and FiftyOne call boxes by the classes of one's own, where phrases mean any."""
    dog, cat = rows[0].phrases
    pets = [dataclasses.replace(each, category="pet") for each in (dog, cat)]
    cars = [
        Phrase(text="car", char_spans=(), boxes=(ScoredBox(xyxy=(i, 0, i + 9, 9), score=0.5),), category="pet")
        for i in (0, 50)
    ]
    record = dataclasses.replace(rows[0], phrases=(*pets, *cars))
    write_shard(tmp_path / "labels" / shard_name(0), [record], GroundingRecord, extras=("category",))
    path = export_to("coco", tmp_path / "labels", tmp_path / "out")
    values = json.loads(path.read_text())
    assert [each["name"] for each in values["categories"]] == ["pet"]
    assert take("coco", path, tmp_path / "labels") == ([], Counter())
    values["annotations"][1]["bbox"][0] += 3
    path.write_text(json.dumps(values))
    (decision,), _ = take("coco", path, tmp_path / "labels")
    expected = as_it_is(record)
    assert [list(decision.phrases)[i] for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]
    np.testing.assert_allclose(decision.phrases[1].boxes, [(123, 10.25, 183, 60)])


def test_a_moved_box_stays_with_the_one_of_equal_phrases_that_lost_it(rows: Any) -> None:
    two = tuple(
        Phrase(text="dog", char_spans=(), boxes=(ScoredBox(xyxy=(i, 0, i + 9, 9), score=0.5),)) for i in (0, 50)
    )
    record = dataclasses.replace(rows[0], phrases=two)
    moved = judge(record, Sheet("k0", [("dog", (0.0, 0.0, 9.0, 9.0)), ("dog", (60.0, 0.0, 69.0, 9.0))]))
    assert [phrase.boxes for phrase in moved] == [((0, 0, 9, 9),), ((60, 0, 69, 9),)]


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"images": 3}', "<a><b></a>", "<!DOCTYPE x [<!ENTITY a 'b'>]><a>&a;</a>"]
)
def test_other_files_are_told(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    if name == "odvg" and text in ("", '{"images": 3}'):
        problems: Counter[str] = Counter()
        assert read_sheets(name, str(path), None, problems) == []
        assert problems.total() == bool(text)
        return
    with pytest.raises(ConfigError, match=f"not as {name} writes it"):
        read_sheets(name, str(path), None, Counter())
    with pytest.raises(MissingInputError, match="no such file"):
        read_sheets(name, str(tmp_path / "absent"), None, Counter())


def test_fiftyone(monkeypatch: pytest.MonkeyPatch, labels: Path, tmp_path: Path) -> None:
    samples: list[Any] = []

    class Sample(dict[str, Any]):
        def __init__(self, **values: Any) -> None:
            super().__init__(values)

    library = SimpleNamespace(
        Dataset=lambda name, persistent: SimpleNamespace(add_sample=samples.append),
        Sample=Sample,
        Detection=lambda **values: values,
        Detections=lambda detections: SimpleNamespace(detections=detections),
        load_dataset=lambda name: samples,
    )
    monkeypatch.setitem(sys.modules, "fiftyone", library)
    export("fiftyone", find_rows(labels, Filter()), tmp_path / "out", lambda _: None)
    assert take("fiftyone", Path("out"), labels) == ([], Counter())
    changed = copy.deepcopy(samples[0]["pseudo_labels"].detections)
    samples[0]["pseudo_labels"].detections[:] = changed[:1]
    (decision,), _ = take("fiftyone", Path("out"), labels)
    assert [phrase.verdict for phrase in decision.phrases] == ["right", "absent"]


def test_the_command_takes_a_file_once(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.review.server", None)  # FiftyOne wants another starlette than FastAPI
    path = export_to("coco", labels, tmp_path / "out")
    change_coco(path)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert set(next(each for each in parser._actions if each.dest == "format").choices or ()) == set(EDITORS)
    words = [str(labels), "--store", str(tmp_path / "reviews"), "--take", str(path), "--format", "coco"]
    for expected in ("1 decisions taken →", "0 decisions taken, 1 that were there already →"):
        command.run(parser.parse_args(words))
        assert expected in capsys.readouterr().out
    with pytest.raises(ConfigError, match="go together"):
        command.run(parser.parse_args(words[:-2]))
