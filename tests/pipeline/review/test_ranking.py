"""What is reviewed first: doubts, disagreements, rare phrases, and a budget that is spread."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MissingInputError
from pipeline.inspection.search import Filter
from pipeline.review.ranking import rank_rows, spread
from pipeline.store.records import GroundingRecord, ScoredBox
from pipeline.store.shards import PROVENANCE_KEY, list_shards, read_shard, shard_name, write_shard


def keys(found: Any) -> list[str]:
    return [read_shard(shard, GroundingRecord)[row].key for shard, row in found[0]]


def with_scores(row: GroundingRecord, key: str, *scores: float) -> GroundingRecord:
    phrase = dataclasses.replace(row.phrases[0], boxes=tuple(ScoredBox(xyxy=(1, 1, 50, 50), score=s) for s in scores))
    return dataclasses.replace(row, key=key, phrases=(phrase,))


def test_the_least_certain_comes_first(tmp_path: Path, rows: Any) -> None:
    made = [with_scores(rows[0], f"s{score}", 0.9, score) for score in (0.9, 0.3, 0.6, 0.31)]
    metadata = {PROVENANCE_KEY: '{"settings": {"min_score": 0.3}}'}
    write_shard(tmp_path / shard_name(0), made, GroundingRecord, metadata)
    assert keys(rank_rows(tmp_path, Filter(), 9)) == ["s0.3", "s0.31", "s0.6", "s0.9"]
    found, total = rank_rows(tmp_path, Filter(max_score=0.5), 1)
    assert (len(found), total) == (1, 2)


def test_rows_on_which_another_teacher_disagrees_come_first(labels: Path, tmp_path: Path, rows: Any) -> None:
    sure = [with_scores(row, row.key, 0.99) for row in rows]
    other = [with_scores(rows[0], "k0", 0.99), dataclasses.replace(sure[1], phrases=()), *sure[2:]]
    for name, made in (("a", sure), ("b", other)):
        write_shard(tmp_path / name / shard_name(0), made, GroundingRecord)
    assert keys(rank_rows(tmp_path / "a", Filter(), 1, [tmp_path / "b"])) == ["k1"]
    with pytest.raises(MissingInputError, match="has no part-00000"):
        rank_rows(tmp_path / "a", Filter(), 1, [tmp_path / "c"])


def test_flips_that_disagreed_rare_phrases_and_reviewed_rows(tmp_path: Path, rows: Any) -> None:
    def lost(key: str, text: str, reason: str, **values: Any) -> GroundingRecord:
        phrase = dataclasses.replace(rows[0].phrases[0], text=text, boxes=(), reject_reason=reason)
        return dataclasses.replace(rows[0], key=key, phrases=(phrase,), **values)

    made = [
        lost("low", "dog", "below_min_score"),
        lost("flip", "dog", "flip_disagrees"),
        lost("rare", "yak", "below_min_score"),
        lost("judged", "dog", "flip_disagrees", reviewed=True),
        dataclasses.replace(rows[0], key="without", phrases=()),
    ]
    write_shard(tmp_path / shard_name(0), made, GroundingRecord)
    assert keys(rank_rows(tmp_path, Filter(), 9)) == ["flip", "rare", "low"]


def test_a_budget_is_spread_over_phrases() -> None:
    worths = [{"dog": 1.0}] * 10 + [{"cat": 0.6}] * 10 + [{"yak": 0.2}]
    chosen = spread(worths, 10)
    names = [next(iter(worths[row])) for row in chosen]
    assert names.count("dog") == 6
    assert names.count("cat") == 3
    assert names.count("yak") == 1
    assert len(set(chosen)) == 10


def test_spreading_is_what_looking_at_all_rows_each_time_would_do() -> None:
    for seed in range(30):
        chance = random.Random(seed)
        worths = [{name: chance.choice((0.2, 0.5, 0.9)) for name in chance.sample("abcd", 2)} for _ in range(12)]
        left, taken, slow = list(range(12)), dict.fromkeys("abcd", 0), []
        for _ in range(8):
            best = max(left, key=lambda row: (max(v / (1 + taken[n]) for n, v in worths[row].items()), -row))
            slow.append(best)
            left.remove(best)
            for name in worths[best]:
                taken[name] += 1
        assert spread(worths, 8) == slow


def test_more_than_there_is(labels: Path) -> None:
    found, total = rank_rows(labels, Filter(), 100)
    assert total == 4
    assert len(found) == 4
    assert sorted(itertools.chain(found)) == [(shard, row) for shard in list_shards(labels) for row in range(2)]
