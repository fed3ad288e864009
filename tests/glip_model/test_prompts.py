"""Prompts: names cleaned as published, spans that follow their text, chunks that fit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glip_model.prompts import (
    Prompt,
    caption_prompt,
    category_prompt,
    chunk_categories,
    clean_name,
    pack_prompts,
    phrases_between_periods,
)

NAMES = ["person", "traffic light", "hot_dog", "baseball_(object)", "CD player", "smörgåsbord", "hand-held fan", "t.v."]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("dog", "dog"),
        ("traffic_light", "traffic light"),
        ("bear_(animal)_x", "bear x"),
        ("baseball_(object)", "baseball"),
        ("a_(b)_c_(d)_e", "a e"),  # the bracket is greedy
        ("Cottontail-Rabbit", "Cottontail-Rabbit"),  # the tokenizer lower-cases, cleaning does not
    ],
)
def test_names_are_cleaned_as_published(raw: str, clean: str) -> None:
    assert clean_name(raw) == clean


def test_category_prompt_is_the_published_text() -> None:
    prompt = category_prompt(["person", "traffic_light", "dog"])
    assert prompt.text == "person. traffic light. dog"
    assert prompt.char_spans == ([(0, 6)], [(8, 21)], [(23, 26)])
    assert prompt.phrases == ("person", "traffic light", "dog")


def test_a_marked_name_is_the_phrase_and_the_words_around_it_are_not() -> None:
    prompt = category_prompt(["dog", "there is a [package] on the porch", "[puffin] with orange_beaks", "cat"])
    assert prompt.text == "dog. there is a package on the porch. puffin with orange beaks. cat"
    assert prompt.phrases == ("dog", "package", "puffin", "cat")


@pytest.mark.parametrize("name", ["a [b] c [d]", "]a[", "[a", "a]"])
def test_brackets_that_mark_no_name_stay(name: str) -> None:
    assert category_prompt([name]).phrases == (name,)


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "at least one"), (["dog", "(x)"], r"'\(x\)' is empty"), (["a [] b"], "is empty"), (["a [ ] b"], "is empty")],
)
def test_category_prompt_refuses_what_has_no_text(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        category_prompt(names)


def test_a_caption_stays_exactly_as_it_is() -> None:
    caption = "  Two dogs,  one  RED frisbee. "
    prompt = caption_prompt(caption, [[(2, 10)], [(13, 16), (22, 29)]])
    assert prompt.text == caption
    assert prompt.phrases == ("Two dogs", "one frisbee")


@pytest.mark.parametrize("span", [(3, 3), (4, 2), (-1, 2), (0, 6)])
def test_a_span_that_is_empty_or_outside_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"not inside the caption of 5 characters"):
        caption_prompt("a dog", [[span]])


def test_a_blank_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="caption is empty"):
        caption_prompt(" \n", [])


@st.composite
def captions(draw: st.DrawFn) -> Prompt:
    words = draw(st.lists(st.sampled_from(["a", "red", "dog", "U.S.", "on", "naïve", "x"]), min_size=1, max_size=5))
    text = " ".join(words)
    starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
    chosen = draw(st.lists(st.integers(0, len(words) - 1), max_size=3))
    # Spans end before a period at the end of the text, which packing takes away.
    spans = [[(starts[i], starts[i] + len(words[i].rstrip(".")))] for i in chosen]
    return caption_prompt(text + draw(st.sampled_from(["", ".", ". ", " ."])), spans)


@given(
    st.lists(captions() | st.lists(st.sampled_from(NAMES[:5]), min_size=1).map(category_prompt), min_size=1, max_size=4)
)
def test_packing_keeps_every_phrase(prompts: list[Prompt]) -> None:
    packed = pack_prompts(prompts)
    assert packed.phrases == tuple(phrase for prompt in prompts for phrase in prompt.phrases)
    ends = [prompt.text.rstrip(". ") for prompt in prompts]
    assert packed.text == ". ".join(ends)


def test_packing_cuts_a_span_at_the_period_it_takes_away() -> None:
    packed = pack_prompts([caption_prompt("a dog.", [[(2, 6)]]), caption_prompt("cats", [[(0, 4)]])])
    assert packed.text == "a dog. cats"
    assert packed.phrases == ("dog", "cats")


def test_a_caption_of_periods_alone_survives_packing() -> None:
    assert pack_prompts([caption_prompt("...", []), caption_prompt("a dog", [])]).text == ".... a dog"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    names=st.lists(st.sampled_from(NAMES), max_size=30),
    max_tokens=st.integers(8, 40),
    max_categories=st.none() | st.integers(1, 6),
)
def test_chunks_fit_and_none_could_take_one_more(
    tokenizer: Any, names: list[str], max_tokens: int, max_categories: int | None
) -> None:
    def tokens(indices: list[int]) -> int:
        return len(tokenizer(category_prompt([names[i] for i in indices]).text)["input_ids"])

    limit = max_categories or len(names) + 1
    chunks = chunk_categories(names, tokenizer, max_tokens, max_categories)
    assert [i for chunk in chunks for i in chunk] == list(range(len(names)))
    for chunk in chunks:
        assert 1 <= len(chunk) <= limit
        assert tokens(chunk) <= max_tokens
    for chunk, following in itertools.pairwise(chunks):
        assert len(chunk) == limit or tokens([*chunk, following[0]]) > max_tokens


def test_a_name_longer_than_a_prompt_is_refused(tokenizer: Any) -> None:
    assert chunk_categories(["one two three"], tokenizer, 5) == [[0]]
    with pytest.raises(ValueError, match=r"'one two three four' has 4 tokens; a prompt holds 3"):
        chunk_categories(["dog", "one two three four"], tokenizer, 5)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a cat. a remote control.", ["a cat", "a remote control"]),
        ("cat", ["cat"]),
        ("  cat  .  dog  ", ["cat", "dog"]),
        ("cat.dog. 2.5 litre bottle .", ["cat.dog", "2.5 litre bottle"]),
        ("a U.S. flag. J.R.R. Tolkien. cat", ["a U.S. flag", "J.R.R. Tolkien", "cat"]),
        ("flag of the U.S.", ["flag of the U.S."]),
        ("U.S. ", ["U.S."]),
        ("letter A. letter B. A. B.", ["letter A", "letter B", "A", "B"]),
        ("1.2. cat", ["1.2", "cat"]),
        ("...", []),
        ("", []),
        ("一只狗. 红苹果.", ["一只狗", "红苹果"]),
    ],
)
def test_phrases_between_periods(text: str, phrases: list[str]) -> None:
    assert [text[start:end] for ((start, end),) in phrases_between_periods(text)] == phrases
