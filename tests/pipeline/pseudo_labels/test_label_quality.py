"""Quality of labels noun by noun: counts done by hand, and what is never said or never labelled."""

from __future__ import annotations

from pathlib import Path

from pipeline.pseudo_labels.calibration import Sample
from pipeline.pseudo_labels.label_quality import count_head_nouns, label_quality
from pipeline.store.records import Phrase, PhrasesRecord
from pipeline.store.shards import shard_name, write_shard


def sample(noun: str, *labels: tuple[float, bool], truth: int = 1, split: str = "base") -> Sample:
    return Sample(tuple(s for s, _ in labels), tuple(h for _, h in labels), truth, split, noun)


def test_labels_above_the_threshold_are_counted_by_noun_part_and_frequency() -> None:
    samples = [
        sample("dog", (0.9, True), (0.2, False)),
        sample("dog", (0.5, False), truth=2),
        sample("yak", (0.7, True), split="novel"),
        sample("cat"),
    ]
    found = label_quality(samples, 0.28, {"dog": 30, "cat": 5})
    assert found["by_noun"] == {
        "cat": {"truth": 1, "boxes": 0, "right": 0},
        "dog": {"truth": 3, "boxes": 2, "right": 1},
        "yak": {"truth": 1, "boxes": 1, "right": 1},
    }
    assert found["by_part"]["novel"] == found["by_noun"]["yak"]
    assert found["by_part"]["base"] == {"truth": 4, "boxes": 2, "right": 1}
    assert {name: (each["precision"], each["recall"]) for name, each in found["by_frequency"].items()} == {
        "rare": (1.0, 1.0),  # a yak is never said
        "common": (None, 0.0),
        "frequent": (0.5, 0.3333),
    }
    assert len(found["scores"]) == 20
    assert [i for i, share in enumerate(found["scores"]) if share] == [10, 13, 18]


def test_nobody_counted_and_nothing_labelled() -> None:
    found = label_quality([], 0.5, {})
    assert (found["by_noun"], found["by_frequency"], sum(found["scores"])) == ({}, {}, 0)


def test_head_nouns_of_web_phrases_are_counted(tmp_path: Path) -> None:
    phrases = (Phrase(text="Two red Dogs", char_spans=((0, 12),)), Phrase(text="a dog", char_spans=((13, 18),)))
    rows = [PhrasesRecord(key=str(i), caption="Two red Dogs a dog", phrases=phrases) for i in range(2)]
    write_shard(tmp_path / shard_name(0), rows, PhrasesRecord)
    assert count_head_nouns(tmp_path) == {"dog": 4}
