"""Phrase statistics against plain counting in Python."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import MissingInputError, ShardError
from pipeline.phrases.statistics import count_phrases, read_names, write_curve
from pipeline.store.records import CaptionRecord, ImageRef, Phrase, PhrasesRecord
from pipeline.store.shards import shard_name, write_shard

WORDS = ["dog"] * 30 + ["Dog"] * 2 + ["red shoes"] * 7 + ["old sofa", "bass", "hot dogs", "o'neill 'x'; drop"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        PhrasesRecord(key=str(i), caption=word, phrases=(Phrase(text=word, char_spans=((0, len(word)),)),))
        for i, word in enumerate(WORDS)
    ]
    write_shard(tmp_path / "phrases" / shard_name(0), rows[:20], PhrasesRecord)
    write_shard(tmp_path / "phrases" / shard_name(1), rows[20:], PhrasesRecord)
    write_shard(tmp_path / "phrases" / shard_name(2), [], PhrasesRecord)
    return tmp_path / "phrases"


def test_counts_are_those_of_plain_counting(folder: Path) -> None:
    stats = count_phrases(folder)
    counts = Counter(word.lower() for word in WORDS)
    assert (stats.phrases, stats.unique) == (len(WORDS), len(counts))
    assert stats.said_once == sum(times == 1 for times in counts.values())
    ordered = sorted(counts.values(), reverse=True)
    assert dict(stats.curve) == {rank: ordered[rank - 1] for rank in (1, 2, 3, 4, 5, 6)}


def test_curve_is_a_table(folder: Path, tmp_path: Path) -> None:
    write_curve(count_phrases(folder), tmp_path / "plots" / "curve.csv")
    assert (tmp_path / "plots" / "curve.csv").read_text().splitlines()[:3] == ["rank,times", "1,32", "2,7"]


def test_names_are_covered_by_phrases_that_end_in_them(folder: Path, tmp_path: Path) -> None:
    categories = [
        {"id": 1, "name": "shoe", "synonyms": ["shoe"]},
        {"id": 2, "name": "couch", "synonyms": ["couch", "sofa"]},
        {"id": 3, "name": "bass_(fish)", "synonyms": ["bass"]},
        {"id": 4, "name": "zebra", "synonyms": ["zebra"]},
        {"id": 5, "name": "red", "synonyms": ["red"]},  # an adjective here
        {"id": 6, "name": "hot_dog"},
    ]
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"categories": categories}))
    assert read_names(names)[1:3] == [["couch", "sofa"], ["bass"]]
    stats = count_phrases(folder, names)
    assert (stats.names, stats.names_covered) == (6, 4)
    lines = tmp_path / "names.txt"
    lines.write_text("Dog\n\nzebra\n")
    stats = count_phrases(folder, lines)
    assert (stats.names, stats.names_covered) == (2, 1)


def test_no_phrases_are_no_crash(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name(0), [], PhrasesRecord)
    stats = count_phrases(tmp_path)
    assert (stats.phrases, stats.unique, stats.said_once, stats.curve) == (0, 0, 0, ())


def test_shards_without_phrases_and_files_without_names_are_messages(folder: Path, tmp_path: Path) -> None:
    row = CaptionRecord(key="a", image=ImageRef(path="x"), height=1, width=1, caption="a dog", source="t")
    write_shard(tmp_path / "web" / shard_name(0), [row], CaptionRecord)
    with pytest.raises(ShardError, match="its shards hold no phrases"):
        count_phrases(tmp_path / "web")
    with pytest.raises(MissingInputError, match="no such file of names"):
        count_phrases(folder, tmp_path / "none.json")
    for text in ('[{"id": 1}]', "3", "[", "[]"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ShardError, match=r"bad\.json"):
            count_phrases(folder, tmp_path / "bad.json")
