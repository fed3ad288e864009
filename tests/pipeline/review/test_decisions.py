"""Decisions: what is one, which stand, and that a folder of them loses none and has none twice."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MissingInputError, StorageError
from pipeline.inspection.row_identity import row_fingerprint
from pipeline.review import store as store_module
from pipeline.review.decisions import MOST_BYTES, DecisionError, check_places, parse_decision, settle
from pipeline.review.store import LINES, DecisionStore, read_decisions
from pipeline.store.records import GroundingRecord, ScoredBox
from pipeline.store.storage import Place


def test_a_decision_comes_back_from_json_as_it_was(rows: list[GroundingRecord], decide: Any) -> None:
    decision = decide(rows[0])
    assert parse_decision(decision.model_dump_json()) == decision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phrases": [{"text": "dog", "boxes": [[5, 5, 1, 9]], "verdict": "right"}]}, "without width or height"),
        ({"phrases": [{"text": "dog", "boxes": [[1, 1, 5, float("inf")]], "verdict": "right"}]}, "boxes"),
        ({"phrases": [{"text": "dog", "verdict": "right"}]}, "0 boxes of a phrase that is right"),
        ({"phrases": [{"text": " ", "verdict": "open"}]}, "without letters"),
        ({"phrases": [{"text": "dog", "spans": [[3, 3]], "verdict": "open"}]}, "span"),
        ({"row": "../../etc"}, "row"),
        ({"reviewer": ""}, "reviewer"),
        ({"at": "2026-01-01T00:00:00"}, "at"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_decision_says_why(rows: Any, decide: Any, change: dict[str, Any], message: str) -> None:
    values = decide(rows[0]).model_dump(mode="json") | change
    with pytest.raises(DecisionError, match=message):
        parse_decision(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "x" * (MOST_BYTES + 1)])
def test_other_texts_are_no_decisions(text: str) -> None:
    with pytest.raises(DecisionError):
        parse_decision(text)


def test_places_outside_of_the_row_are_found(rows: list[GroundingRecord], decide: Any) -> None:
    for phrase in (
        ("dog", ((0, 99),), (), "open"),
        ("dog", (), ((0, 0, 300, 9),), "right"),
        ("dog", (), ((-9, 0, 3, 9),), "right"),
    ):
        with pytest.raises(DecisionError, match="leaves the"):
            check_places(decide(rows[0], [phrase]), (200, 100), 19)
    check_places(decide(rows[0]), (200, 100), 19)


def test_fingerprints_tell_states_apart(rows: list[GroundingRecord]) -> None:
    row = rows[0]
    moved = dataclasses.replace(row.phrases[0], boxes=(ScoredBox(xyxy=(20, 20, 80, 81), score=0.75),))
    others = [
        dataclasses.replace(row, caption="A dog and a red cat"),
        dataclasses.replace(row, phrases=row.phrases[:1]),
        dataclasses.replace(row, phrases=(moved, row.phrases[1])),
        dataclasses.replace(row, key="other"),
    ]
    assert len({row_fingerprint(each) for each in [row, *others]}) == 5
    assert row_fingerprint(dataclasses.replace(row, source="elsewhere")) == row_fingerprint(row)


def test_the_latest_decision_stands_and_a_withdrawn_one_gives_way(rows: Any, decide: Any) -> None:
    ann, ben = decide(rows[0], reviewer="ann"), decide(rows[0], [], reviewer="ben")
    (settled,) = settle([ben, ann]).values()
    assert (settled.decision, settled.is_disputed) == (ben, True)
    back = decide(rows[0], [], reviewer="ben", verdict="withdrawn")
    (settled,) = settle([ann, back, ben]).values()
    assert (settled.decision, settled.is_disputed) == (ann, False)
    assert settle([ann, back, ben, decide(rows[0], reviewer="ann", verdict="withdrawn")]) == {}


@pytest.mark.parametrize("seed", range(20))
def test_what_stands_does_not_depend_on_the_order_of_reading(rows: Any, decide: Any, seed: int) -> None:
    chance = random.Random(seed)
    verdicts = ("judged", "judged", "withdrawn")
    made = [
        decide(chance.choice(rows), [], reviewer=chance.choice("abc"), verdict=chance.choice(verdicts))
        for _ in range(8)
    ]
    assert settle(chance.sample(made, len(made))) == settle(made)


def read(place: Place) -> list[Any]:
    broken: Counter[str] = Counter()
    found = read_decisions([place], broken)
    assert not broken
    return found


def test_many_at_once_at_several_servers_lose_nothing(disk_or_store: Place, rows: Any, decide: Any) -> None:
    folder = disk_or_store / "reviews"
    decisions = [decide(rows[i % 4], reviewer=f"r{i % 3}") for i in range(12)]
    stores = [DecisionStore(folder) for _ in range(3)]

    def work(number: int) -> None:
        for decision in decisions[number::3]:
            stores[number].add([decision])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.id for each in read(folder)) == sorted(each.id for each in decisions)


def test_files_are_bounded_and_the_same_decision_counts_once(tmp_path: Path, rows: Any, decide: Any) -> None:
    decisions = [decide(rows[0]) for _ in range(2 * LINES + 1)]
    DecisionStore(tmp_path).add(decisions)
    DecisionStore(tmp_path).add(decisions[:5])
    assert len(list(tmp_path.glob("*.jsonl"))) == 4
    assert len(read(tmp_path)) == len(decisions)


def test_a_full_disk_is_told_and_loses_nothing_that_was_saved(
    tmp_path: Path, rows: Any, decide: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, refused = decide(rows[0]), decide(rows[1])
    store = DecisionStore(tmp_path)
    store.add([saved])
    with monkeypatch.context() as full:

        def no_room(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(store_module.os, "fsync", no_room)
        with pytest.raises(StorageError, match="No space left"):
            store.add([refused])
        assert read(tmp_path) == [saved]
    store.add([refused])
    assert read(tmp_path) == [saved, refused]


def test_a_store_that_refuses_is_told(s3: Any, s3_denied: Any, rows: Any, decide: Callable[..., Any]) -> None:
    from pipeline.store.storage import to_place

    store = DecisionStore(to_place("s3://raw/reviews"))
    store.add([decide(rows[0])])
    with s3_denied(), pytest.raises(StorageError, match="s3://raw/reviews"):
        store.add([decide(rows[1])])
    store.add([decide(rows[2])])
    assert [each.key for each in read(store.folder)] == ["k0", "k2"]


def test_a_store_that_answers_503_is_asked_again(
    s3: Any, rows: Any, decide: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.store import atomic, storage

    upload, answers = atomic.upload, iter([OSError("503 Slow Down"), OSError("503 Slow Down"), None])

    def sometimes(*words: Any) -> None:
        if error := next(answers):
            raise error
        upload(*words)

    monkeypatch.setattr(atomic, "upload", sometimes)
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.01)
    store = DecisionStore(storage.to_place("s3://raw/reviews"))
    store.add([decide(rows[0])])
    assert [each.key for each in read(store.folder)] == ["k0"]


def test_lines_that_are_no_decisions_are_counted(tmp_path: Path, rows: Any, decide: Any) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text(f'{decide(rows[0]).model_dump_json()}\n\n{{"id": 1}}\nnot json\n', encoding="utf-8")
    broken: Counter[str] = Counter()
    assert len(read_decisions([path], broken)) == 1
    assert broken.total() == 2
    with pytest.raises(MissingInputError, match="no such folder or file of decisions"):
        read_decisions([tmp_path / "absent"], broken)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(MissingInputError, match="no text in UTF-8"):
        read_decisions([tmp_path], broken)
