"""Captions: spans are exact, and what they say of counts, sizes and places is true."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prepare.embedded import captions
from pipeline.prepare.embedded.captions import (
    CLEAR_OFFSET,
    CLEAR_RATIO,
    CaptionWriter,
    Mention,
    add_junk,
    group_mentions,
    relation_word,
    size_word,
    write_caption,
    write_expression,
)
from pipeline.prepare.embedded.scenes import SceneObject
from pipeline.prepare.embedded.sprites import Concept

SIZE = 100


def concept(name: str, plural: str | None = None) -> Concept:
    return Concept(name, plural or f"{name}s", "test", ())


DOG, CAT, CUP, SCISSORS, HOURGLASS, SHEEP = (
    concept("dog"),
    concept("cat"),
    concept("cup"),
    concept("scissors", "scissors"),
    concept("hourglass", "hourglasses"),
    concept("sheep", "sheep"),
)
CAMERA, MOVIE_CAMERA = concept("camera"), concept("movie camera")
ALL = (DOG, CAT, CUP, SCISSORS, HOURGLASS, SHEEP, CAMERA, MOVIE_CAMERA)


def thing(what: Concept, x: float, y: float, side: float = 20.0) -> SceneObject:
    return SceneObject(what, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


@st.composite
def scene_objects(draw: st.DrawFn, most: int = 5) -> list[SceneObject]:
    count = draw(st.integers(1, most))
    place = st.integers(10, 90)
    return [thing(draw(st.sampled_from(ALL)), draw(place), draw(place), draw(st.integers(8, 60))) for _ in range(count)]


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


SEEDS = st.integers(0, 2**32)
NUMBER_WORDS = {"two": 2, "2": 2, "a couple of": 2, "three": 3, "3": 3, "four": 4, "4": 4, "five": 5, "5": 5}


@settings(max_examples=200, deadline=None)
@given(scene_objects(), SEEDS, st.booleans())
def test_spans_are_the_phrases_and_hold_the_noun(objects: list[SceneObject], seed: int, with_junk: bool) -> None:
    rng = rng_of(seed)
    mentions = group_mentions(objects)
    writer = write_caption(rng, mentions, SIZE)
    if with_junk:
        add_junk(rng, writer)
    phrases = writer.phrases(frozenset({"dog"}))
    assert len(phrases) == len(mentions)
    said = dict(zip([mention.concept.name for mention, _ in writer.spans], phrases, strict=True))
    for mention in mentions:
        phrase = said[mention.concept.name]
        ((start, end),) = phrase.char_spans
        assert writer.text[start:end] == phrase.text
        noun = mention.concept.name if len(mention.objects) == 1 else mention.concept.plural
        # At most one adjective before the noun; the first letter may be a capital.
        assert re.fullmatch(rf"(\w+ )?{noun}", phrase.text, re.IGNORECASE)
        assert not writer.text[start - 1 : start].isalnum()
        assert not writer.text[end : end + 1].isalnum()
        assert {box.xyxy for box in phrase.boxes} == {placed.box for placed in mention.objects}
        assert len(phrase.boxes) == len(mention.objects)
        assert phrase.is_plural == (len(mention.objects) > 1)
        assert phrase.split == ("base" if mention.concept is DOG else "novel")


@settings(max_examples=200, deadline=None)
@given(scene_objects(), SEEDS)
def test_spans_do_not_overlap(objects: list[SceneObject], seed: int) -> None:
    writer = write_caption(rng_of(seed), group_mentions(objects), SIZE)
    spans = sorted(span for _, span in writer.spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@settings(max_examples=200, deadline=None)
@given(scene_objects(), SEEDS)
def test_counts_are_true(objects: list[SceneObject], seed: int) -> None:
    writer = write_caption(rng_of(seed), group_mentions(objects), SIZE)
    for mention, (start, _) in writer.spans:
        before = writer.text[:start].rstrip().lower()
        for words, count in NUMBER_WORDS.items():
            if re.search(rf"(^|\W){words}$", before):
                assert len(mention.objects) == count
        if before.endswith("several"):
            assert len(mention.objects) in (3, 4)


@settings(max_examples=300, deadline=None)
@given(scene_objects(), SEEDS)
def test_sizes_are_true_of_everything_the_caption_speaks_of(objects: list[SceneObject], seed: int) -> None:
    writer = write_caption(rng_of(seed), group_mentions(objects), SIZE)
    for mention, (start, end) in writer.spans:
        others = [placed.side for other, _ in writer.spans if other is not mention for placed in other.objects]
        word = writer.text[start:end].split()[0].lower()
        (side,) = [placed.side for placed in mention.objects] if len(mention.objects) == 1 else (0.0,)
        if word == "big":
            assert side >= CLEAR_RATIO * max(others)
        elif word == "small":
            assert 0 < CLEAR_RATIO * side <= min(others)
        else:
            assert word not in ("little", "large", "tiny", "huge")


def test_words_of_size_do_occur() -> None:
    found: Counter[str] = Counter()
    objects = [thing(DOG, 20, 20, 10), thing(CAT, 70, 70, 40)]
    for seed in range(200):
        writer = write_caption(rng_of(seed), group_mentions(objects), SIZE)
        found.update(phrase.text.lower() for phrase in writer.phrases(frozenset()))
    assert found["small dog"] > 5
    assert found["big cat"] > 5
    assert found["big dog"] == found["small cat"] == 0


RELATIONS = {
    "to the left of": lambda a, b: a.center[0] < b.center[0],
    "to the right of": lambda a, b: a.center[0] > b.center[0],
    "above": lambda a, b: a.center[1] < b.center[1],
    "below": lambda a, b: a.center[1] > b.center[1],
    "next to": lambda a, b: max(abs(a.center[0] - b.center[0]), abs(a.center[1] - b.center[1])) < CLEAR_OFFSET * SIZE,
}


@settings(max_examples=300, deadline=None)
@given(scene_objects(), SEEDS)
def test_relations_are_true(objects: list[SceneObject], seed: int) -> None:
    writer = write_caption(rng_of(seed), group_mentions(objects), SIZE)
    ordered = sorted(writer.spans, key=lambda item: item[1])
    for (first, (_, end)), (second, (start, _)) in pairwise(ordered):
        between = writer.text[end:start]
        for word, is_true in RELATIONS.items():
            if word in between:
                assert len(first.objects) == len(second.objects) == 1
                assert is_true(first.objects[0], second.objects[0])
        assert not re.search("beside|behind|in front|under", between)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_relations_turn_round_when_objects_change_places(ax: int, ay: int, bx: int, by: int) -> None:
    opposite = {
        "to the left of": "to the right of",
        "to the right of": "to the left of",
        "above": "below",
        "below": "above",
        "next to": "next to",
    }
    first, second = thing(DOG, ax, ay), thing(CAT, bx, by)
    word = relation_word(first, second, SIZE)
    assert relation_word(second, first, SIZE) == opposite[word]


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([thing(SCISSORS, 20, 50), thing(DOG, 80, 50)], r"some (\w+ )?scissors (are )?to the left of an? "),
        ([thing(DOG, 20, 50), thing(CAT, 80, 50)], r"\w+ (\w+ )?dog (is )?to the left of \w+ (\w+ )?cat"),
        ([thing(DOG, 20, 20), thing(DOG, 20, 80), thing(CAT, 80, 50)], r"(two|2|a couple of) (\w+ )?dogs (are )?near "),
        ([thing(SHEEP, 20, 50), thing(DOG, 80, 50)], r"\w+ (\w+ )?sheep (is )?to the left of "),
        ([thing(HOURGLASS, 20, 50)], r"an hourglass"),
    ],
)
def test_grammar(objects: list[SceneObject], expected: str) -> None:
    # Names are the same in every caption of these objects, so over many of them each form occurs, in lower case or not.
    texts = [write_caption(rng_of(seed), group_mentions(objects), SIZE).text.lower() for seed in range(300)]
    assert any(re.search(expected, text) for text in texts)
    joined = " | ".join(texts)
    for wrong in ("scissors is", "a hourglass", "dogs is", "cat are", "a dogs", "a scissors", "an dog", "sheeps"):
        assert wrong not in joined


def test_captions_vary_in_form() -> None:
    objects = [thing(DOG, 20, 50), thing(CAT, 80, 50), thing(CUP, 50, 20)]
    texts = [write_caption(rng_of(seed), group_mentions(objects), SIZE).text for seed in range(400)]
    assert len(set(texts)) > 300
    assert sum("to the left of" in text for text in texts) > 10
    assert sum(text.startswith(("A ", "The ", "One ", "This ")) for text in texts) > 20
    assert sum(" / " in text or " & " in text for text in texts) > 20  # fragments
    assert sum(text[0].isupper() for text in texts) > 100


def test_something_absent_is_mentioned_without_boxes() -> None:
    for seed in range(100):
        writer = write_caption(rng_of(seed), [Mention(DOG, (thing(DOG, 20, 50),)), Mention(CAT, ())], SIZE)
        phrases = {phrase.text.split()[-1].lower(): phrase for phrase in writer.phrases(frozenset())}
        assert len(phrases["dog"].boxes) == 1
        assert phrases["cat"].boxes == ()
        assert phrases["cat"].is_plural is False
        # Nothing can be said of the place of what is not there.
        assert not any(word in writer.text for word in RELATIONS)


def test_junk_surrounds_captions_now_and_then_and_keeps_them_whole() -> None:
    changed = 0
    for seed in range(300):
        writer = write_caption(rng_of(seed), [Mention(DOG, (thing(DOG, 20, 50),))], SIZE)
        text, said = writer.text, writer.phrases(frozenset())[0].text
        add_junk(rng_of(seed + 1), writer)
        assert text in writer.text
        (phrase,) = writer.phrases(frozenset())
        assert phrase.text == said
        changed += writer.text != text
    assert changed == pytest.approx(300 * captions.JUNK_SHARE, abs=40)


def meant(text: str, objects: list[SceneObject]) -> list[SceneObject]:
    """Return the objects that an expression fits, read slowly and by itself."""
    match = re.fullmatch(r"the (?:(small|big) )?(.+?)(?: (on the left|on the right|at the top|at the bottom))?", text)
    assert match is not None
    size, name, place = match.groups()
    named = [o for o in objects if o.concept.name == name or o.concept.name.endswith(" " + name)]
    rivals = named if len(named) > 1 else objects
    keys: dict[str, Any] = {
        "small": lambda o: o.side,
        "big": lambda o: -o.side,
        "on the left": lambda o: o.center[0],
        "on the right": lambda o: -o.center[0],
        "at the top": lambda o: o.center[1],
        "at the bottom": lambda o: -o.center[1],
    }
    for word, group in ((size, rivals), (place, named)):
        if word:
            best = min(map(keys[word], group))
            named = [o for o in named if keys[word](o) == best]
    return named


@settings(max_examples=300, deadline=None)
@given(scene_objects(), SEEDS)
def test_an_expression_means_one_object(objects: list[SceneObject], seed: int) -> None:
    found = write_expression(rng_of(seed), objects, SIZE)
    if found is None:
        return
    text, target = found
    assert [o is target for o in meant(text, objects)] == [True]


def test_twins_in_one_place_have_no_expression() -> None:
    assert write_expression(rng_of(0), [thing(DOG, 50, 50), thing(DOG, 52, 52)], SIZE) is None


def test_a_camera_beside_a_movie_camera_needs_more_than_its_name() -> None:
    objects = [thing(CAMERA, 20, 50), thing(MOVIE_CAMERA, 80, 50)]
    said = {write_expression(rng_of(seed), objects, SIZE)[0] for seed in range(40)}  # type: ignore[index]
    assert said == {"the camera on the left", "the movie camera"}


def test_size_needs_a_clear_difference_from_all_others() -> None:
    small, middle, big = thing(DOG, 20, 20, 20), thing(CAT, 50, 50, 22), thing(CUP, 80, 80, 40)
    assert size_word(big, [small, middle]) == "big"
    assert size_word(small, [middle, big]) == ""
    assert size_word(small, [big]) == "small"
    assert size_word(small, []) == ""


def test_mentions_gather_objects_of_a_concept_in_order() -> None:
    first, second, third = thing(DOG, 1, 1), thing(CAT, 2, 2), thing(DOG, 3, 3)
    assert group_mentions([first, second, third]) == [Mention(DOG, (first, third)), Mention(CAT, (second,))]


def test_a_writer_grows_and_remembers() -> None:
    writer = CaptionWriter().write("see ")
    writer.mention(rng_of(0), Mention(DOG, (thing(DOG, 1, 1),)), "cute", is_bare=True)
    assert writer.text == "see cute dog"
    assert [span for _, span in writer.spans] == [(4, 12)]
