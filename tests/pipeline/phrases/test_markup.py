"""Markup and invisible characters in captions: no phrase is made of them, and spans stay those of the stored text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.phrases.markup import in_caption, plain_caption
from pipeline.phrases.noun_phrases import NounPhraseParser
from pipeline.phrases.settings import PhrasesConfig
from pipeline.settings import PROJECT_PARAMS, load
from pipeline.store.records import Phrase


@pytest.fixture(scope="module")
def parser() -> NounPhraseParser:
    return NounPhraseParser(load(PROJECT_PARAMS, PhrasesConfig))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog &amp; a cat", ["dog", "cat"]),
        ("a dog &amp;amp; a cat", ["dog", "cat"]),
        ("a &lt;b&gt;dog&lt;/b&gt; on a sofa", ["dog", "sofa"]),
        ("a <b>dog</b> on a <a href='x?a=1&b=2'>sofa</a>", ["dog", "sofa"]),
        ("a dog<br/>a cat", ["dog", "cat"]),
        ("a brown&nbsp;dog", ["dog"]),
        ("&quot;a red car&quot;", ["red car"]),
        ("\u202ba black dog\u202c", ["black dog"]),
        ("\ufeffa black\u200b dog", ["black\u200b dog"]),
        ("a do\u200bg and a cat", ["do\u200bg", "cat"]),
    ],
)
def test_markup_makes_no_phrases(parser: NounPhraseParser, caption: str, expected: list[str]) -> None:
    [record] = parser.parse([("k", caption)])
    assert record.caption == caption
    assert [phrase.text for phrase in record.phrases] == expected
    for phrase in record.phrases:
        assert caption[slice(*phrase.char_spans[0])] == phrase.text
    assert parser.char_spans(caption) == [list(phrase.char_spans) for phrase in record.phrases]


@pytest.mark.parametrize("caption", ["&nbsp;", "<br>", "\u200b\u200e", "<p></p> &#8203;"])
def test_a_caption_of_markup_alone_is_empty(parser: NounPhraseParser, caption: str) -> None:
    assert [record.reject_reason for record in parser.parse([("k", caption)])] == ["caption_empty"]
    assert parser.char_spans(caption) == []


@pytest.mark.parametrize(
    "caption", ["a dog", "AT&T shop", "3 < 4 and 5 > 2", "a photo of <PERSON>", "&foo bar", " a  b "]
)
def test_plain_captions_are_read_as_they_are(caption: str) -> None:
    assert plain_caption(caption).text == caption
    assert plain_caption(caption).sources is None


@given(
    st.lists(st.sampled_from(["a", " ", "dog", "<b>", "&lt;", "i&gt;", "&amp;", "&nbsp;", "\u200b", "<br>", "&", ";"]))
)
def test_every_character_knows_where_it_came_from(parts: list[str]) -> None:
    caption = "".join(parts)
    plain = plain_caption(caption)
    assert plain_caption(caption).sources is None or len(plain.sources or ()) == len(plain.text)
    for start, end in plain.sources or ():
        assert 0 <= start < end <= len(caption)
    whole = Phrase(text=plain.text, char_spans=((0, len(plain.text)),))
    if plain.text and len(plain.text) not in plain.breaks:
        [moved] = in_caption(caption, plain, [whole])
        assert moved.text == caption[slice(*moved.char_spans[0])] != ""
