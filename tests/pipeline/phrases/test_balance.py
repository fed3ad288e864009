"""Common phrases give way to rare ones, by the same draw in every run."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from pipeline.phrases.balance import COMMON, balance_shard, common_phrases, is_chosen
from pipeline.store.records import Phrase, PhrasesRecord
from pipeline.store.shards import read_metadata, read_shard, shard_name, write_shard

LIMIT = 40


def row(number: int, *texts: str, reason: str | None = None) -> PhrasesRecord:
    phrases = tuple(Phrase(text=text, char_spans=((0, 1),)) for text in texts)
    return PhrasesRecord(key=f"key-{number}", caption=" ".join(texts), phrases=phrases, reject_reason=reason)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write phrases of Zipf's law: a dog in 600 pairs, a cat in 300, … and a zebra in 10, with a dog beside it."""
    texts = [["A dog" if number % 2 else "a dog"] for number in range(590)]
    texts += [["a cat", "a cat"]] * 300 + [["a bird"]] * 40 + [["a zebra", "a dog"]] * 10
    rows = [row(number, *each) for number, each in enumerate(texts)]
    rows += [row(10_000, reason="no_phrases"), row(10_001)]
    for number, start in enumerate(range(0, len(rows), 500)):
        write_shard(tmp_path / shard_name(number), rows[start : start + 500], PhrasesRecord)
    return tmp_path


def test_common_phrases_are_counted_once_a_pair_whatever_the_case(shards: Path) -> None:
    assert common_phrases(shards, LIMIT) == {"a dog": 600, "a cat": 300}
    assert common_phrases(shards, 1000) == {}


def test_rare_phrases_keep_all_pairs_and_common_ones_about_the_limit(shards: Path, tmp_path: Path) -> None:
    common = common_phrases(shards, LIMIT)
    before, after = [], []
    for number in range(2):
        source, target = shards / shard_name(number), tmp_path / "out" / shard_name(number)
        assert balance_shard(source, target, common, LIMIT, {"fingerprint": "f"}) is None
        assert '"fingerprint": "f"' in read_metadata(target)["glip.provenance"]
        before += read_shard(source, PhrasesRecord)
        after += read_shard(target, PhrasesRecord)
    assert [(each.key, each.caption) for each in after] == [(each.key, each.caption) for each in before]
    for old, new in zip(before, after, strict=True):
        assert new == old or (new.reject_reason, new.phrases) == (COMMON, ())
        assert (new == old) is (old.reject_reason is not None or is_chosen(old, common, LIMIT))
    said = Counter(text for each in after for text in {phrase.text.lower() for phrase in each.phrases})
    assert said["a zebra"] == 10
    assert said["a bird"] == 40
    for text, free in (("a dog", 10), ("a cat", 0)):  # beside a zebra a dog is labelled anyway
        assert abs(said[text] - free - LIMIT) < 4 * math.sqrt(LIMIT)
    assert after[-2].reject_reason == "no_phrases"
    assert after[-1].reject_reason is None
