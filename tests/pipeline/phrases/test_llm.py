"""Phrases by a language model: what it says is checked against the caption."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.phrases.job import extract_phrases
from pipeline.phrases.llm import LlmPhraseParser, read_phrases
from pipeline.phrases.parsers import describe_endpoint, make_parser
from pipeline.phrases.settings import PhrasesConfig
from pipeline.settings import PROJECT_PARAMS, load
from pipeline.store.records import CaptionRecord, ImageRef, PhrasesRecord
from pipeline.store.shards import read_shard, shard_name, write_shard


@pytest.fixture
def config(tmp_path: Path, server: Any) -> PhrasesConfig:
    path = tmp_path / "words.yaml"
    path.write_text(
        f"endpoint: {server.url}\nmodel: words\nretries: 1\nrequests_per_minute: 1000000.0\n", encoding="utf-8"
    )
    base = load(PROJECT_PARAMS, PhrasesConfig)
    return dataclasses.replace(base, extractor="llm", endpoint=str(path), max_words=3)


def answer(*phrases: Any) -> str:
    entries = [each if isinstance(each, dict) else {"phrase": each, "plural": False} for each in phrases]
    return json.dumps({"phrases": entries})


CAPTION = "Two red dogs, a cat and another Cat; dogs-collar"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["red dogs", "cat"], [("red dogs", [(4, 12)]), ("cat", [(16, 19)])]),
        (["cat", "red dogs"], [("red dogs", [(4, 12)]), ("cat", [(16, 19)])]),
        (["cat", "Cat"], [("cat", [(16, 19), (32, 35)])]),
        (["RED  dogs"], [("red dogs", [(4, 12)])]),
        (["unicorn", "cat"], [("cat", [(16, 19)])]),
        (["dog", "cat"], [("cat", [(16, 19)])]),
        (["red dogs", "dogs"], [("red dogs", [(4, 12)]), ("dogs", [(37, 41)])]),
        (["dogs, a cat and another", "cat"], [("cat", [(16, 19)])]),
        (["", ";", {"phrase": 7}, {"name": "cat"}, "cat"], [("cat", [(16, 19)])]),
        ([], []),
    ],
)
def test_only_what_stands_in_the_caption_is_taken(config: PhrasesConfig, said: Any, expected: Any) -> None:
    found = read_phrases(answer(*said), CAPTION, config)
    assert [(phrase.text, list(phrase.char_spans)) for phrase in found] == expected


@pytest.mark.parametrize("text", ["none", "{}", "[1]", answer("unicorn"), answer({"phrase": None})])
def test_what_cannot_be_understood_is_no_answer(config: PhrasesConfig, text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|stands in the caption"):
        read_phrases(text, CAPTION, config)


@given(st.lists(st.text(max_size=12), max_size=6), st.text(max_size=40))
def test_spans_are_words_of_the_caption_and_apart(said: list[str], caption: str) -> None:
    config = load(PROJECT_PARAMS, PhrasesConfig)
    try:
        found = read_phrases(answer(*said), caption, config)
    except ValueError:
        return
    spans = sorted(span for phrase in found for span in phrase.char_spans)
    assert all(0 <= start < end <= len(caption) for start, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert all(caption[slice(*phrase.char_spans[0])] == phrase.text for phrase in found)


def test_captions_are_asked_about_and_keep_their_reasons(config: PhrasesConfig, server: Any) -> None:
    def reply(body: Any) -> str:
        text = body["messages"][0]["content"][0]["text"]
        if "nonsense" in text:
            return "I would rather not."
        return answer({"phrase": "big dogs", "plural": True}) if "dogs" in text else answer()

    server.reply = reply
    rows = [
        ("a", "two big dogs"),
        ("b", " "),
        ("c", "nonsense"),
        ("d", "quietly"),
        ("e", "x" * 3000),
        ("f", "big&nbsp;dogs"),
    ]
    found = LlmPhraseParser(config, lambda seconds: None).parse(rows)
    assert [(row.key, row.caption) for row in found] == rows
    assert [row.reject_reason for row in found] == [
        None,
        "caption_empty",
        "answer_unusable",
        "no_phrases",
        "caption_too_long",
        None,
    ]
    (dogs,) = found[0].phrases
    assert (dogs.text, dogs.char_spans, dogs.is_plural) == ("big dogs", ((4, 12),), True)
    assert found[5].phrases[0].char_spans == ((9, 13),)  # as with spaCy, no phrase reaches across an encoded blank
    assert len(server.asked) == 5  # the unusable answer was asked for twice


def test_an_endpoint_must_be_named(config: PhrasesConfig) -> None:
    for name in ("", "no/such.yaml"):
        with pytest.raises(ConfigError, match=r"phrases\.endpoint is"):
            make_parser(dataclasses.replace(config, endpoint=name))
    assert describe_endpoint(config)["endpoint"]["name"] == "words"
    assert describe_endpoint(dataclasses.replace(config, extractor="noun_chunks")) == {}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
def test_shards_are_written_and_kept_as_with_any_parser(config: PhrasesConfig, server: Any, tmp_path: Path) -> None:
    server.reply = lambda body: answer("dog")
    row = CaptionRecord(key="a", image=ImageRef(path="x"), height=1, width=1, caption="a dog", source="t")
    write_shard(tmp_path / "web" / shard_name(0), [row], CaptionRecord)
    metrics = extract_phrases(config, tmp_path / "web", tmp_path / "out")
    assert (metrics["rows"], metrics["phrases"], metrics["rejects"]) == (1, 1, {})
    (found,) = read_shard(tmp_path / "out" / shard_name(0), PhrasesRecord)
    assert [phrase.text for phrase in found.phrases] == ["dog"]
    extract_phrases(config, tmp_path / "web", tmp_path / "out")
    assert len(server.asked) == 1
