"""From a stretch of a parsed caption to the words in it that a box can be drawn around.

1. A stretch is divided at free-standing punctuation, which the parser often takes into it ("yo-yo | free download"),
   at slashes between words ("cat/dog") and at addresses of the web.
2. Leading determiners, possessives, pronouns, adverbs, numbers and quantifiers are cut ("also a dog" → "dog"), and
   so are trailing stop heads ("gift box clipart" → "gift box"), which name a medium or nothing to point at. Counts
   stay outside of the phrase ("three dogs" → "dogs"), adjectives inside ("old sofa").
3. What does not end in a noun then, has more than ``max_words`` words, or has an abstract head ("a great idea") is
   left out; so are pronouns, the ones that are tagged as nouns too ("someone", "the red one").
4. Whether the phrase names several things is kept, because a singular phrase has one box: by a count where there is
   one ("two fish"), else by the number of the noun.
5. Near-duplicates, phrases that differ by case, hyphens or number alone, become one phrase with several spans, as in
   "Red Shoes | buy red shoes"; a mention that introduces another thing stays ("a dog and another dog").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.phrases.settings import PhrasesConfig
from pipeline.store.records import Phrase

_LEADING_TAGS = frozenset({"DT", "PDT", "PRP$", "PRP", "WP$", "WDT", "CD", "POS", "EX", "RB", "CC", "IN", "UH"})
_PLURAL_QUANTIFIERS = frozenset({"several", "many", "few", "various", "multiple", "both", "these", "those"})
_SINGULAR_QUANTIFIERS = frozenset({"a", "an", "one", "1", "each", "every", "another", "this"})
_QUANTIFIERS = _PLURAL_QUANTIFIERS | frozenset({"some", "more", "other", "another"})
# Larger numbers are years and sizes more often than counts ("2019 calendar", "100 watt lamp").
_NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_COUNTS = frozenset(_NUMBER_WORDS) | frozenset(str(number) for number in range(2, 21))
# Words in front of a noun that tell of a thing that was not spoken of before.
_INTRODUCING = _COUNTS | frozenset({"a", "an", "one", "another", "other", "second", "third", "some", "more", "several"})
_NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})
_PLURAL_TAGS = frozenset({"NNS", "NNPS"})
# Nouns by their tag, but they stand for a thing named elsewhere, as pronouns do.
_PRO_FORMS = frozenset({"one", "ones"})
_SLASHES = frozenset({"/", "|", "\\"})
_PLURAL_ENDING = re.compile(r"(?<=\w\w[^s])s$")


class Cleaner:
    """Applies the rules above with the lists and limits of the settings."""

    def __init__(self, config: PhrasesConfig) -> None:
        self._config = config
        self._stop_heads, self._abstract_heads = frozenset(config.stop_heads), frozenset(config.abstract_heads)

    def clean(self, text: str, stretches: Iterable[Iterable[Any]]) -> tuple[Phrase, ...]:
        """Return the phrases of a caption.

        Args:
            text: the caption as it is stored; spans index it.
            stretches: runs of spaCy tokens that may name something, in order, without overlap.
        """
        mentions = [mention for stretch in stretches for mention in self._mentions(text, stretch)]
        return _merge_repeats(mentions) if self._config.merge_repeats else tuple(phrase for phrase, _ in mentions)

    def _mentions(self, text: str, stretch: Iterable[Any]) -> Iterator[tuple[Phrase, bool]]:
        """Yield phrases, and whether the words around each introduce another thing than was named before."""
        for piece in _divide(stretch):
            cut, tokens = self._trim(piece)
            if not tokens or not _is_noun(tokens[-1]) or _is_head_in(self._abstract_heads, tokens[-1]):
                continue
            start, end = tokens[0].idx, tokens[-1].idx + len(tokens[-1])
            if len(text[start:end].split()) <= self._config.max_words:
                phrase = Phrase(text=text[start:end], char_spans=((start, end),), is_plural=_is_plural(cut, tokens))
                yield phrase, any(token.lower_ in _INTRODUCING for token in cut)

    def _trim(self, tokens: list[Any]) -> tuple[list[Any], list[Any]]:
        """Cut what does not describe the thing off both ends; return what was cut in front, and the rest."""
        start, end = 0, len(tokens)
        while start < end and _is_no_description(tokens[start]):
            start += 1
        # The possessive mark goes with the stop head that it led to ("the car's front" → "car").
        while end > start and (
            _is_head_in(self._stop_heads, tokens[end - 1])
            or _has_no_letter(tokens[end - 1])
            or tokens[end - 1].tag_ == "POS"
        ):
            end -= 1
        return tokens[:start], tokens[start:end]


def _merge_repeats(mentions: Iterable[tuple[Phrase, bool]]) -> tuple[Phrase, ...]:
    merged: list[Phrase] = []
    place: dict[str, int] = {}
    for phrase, introduces in mentions:
        name = _without_variation(phrase.text)
        if introduces or name not in place:
            place[name] = len(merged)
            merged.append(phrase)
        else:
            first = merged[place[name]]
            is_plural = first.is_plural or phrase.is_plural
            spans = first.char_spans + phrase.char_spans
            merged[place[name]] = replace(first, char_spans=spans, is_plural=is_plural)
    return tuple(merged)


def _without_variation(text: str) -> str:
    return _PLURAL_ENDING.sub("", re.sub(r"[\s\-]+", " ", text.casefold()))


def _divide(stretch: Iterable[Any]) -> Iterator[list[Any]]:
    """Divide tokens at punctuation that stands free and at addresses; a hyphen inside a word does not divide."""
    piece: list[Any] = []
    for token in stretch:
        is_mark = _has_no_letter(token) and (token.text in _SLASHES or _stands_free(token))
        if is_mark or token.like_url or token.like_email:
            yield piece
            piece = []
        else:
            piece.append(token)
    yield piece


def _stands_free(token: Any) -> bool:
    return token.i > 0 and bool(token.nbor(-1).whitespace_) and not token.like_num


def _is_head_in(heads: frozenset[str], token: Any) -> bool:
    word = token.lower_
    return word in heads or (token.tag_ in _PLURAL_TAGS and word.removesuffix("s") in heads)


def _is_no_description(token: Any) -> bool:
    return token.tag_ in _LEADING_TAGS or token.lower_ in _QUANTIFIERS or _has_no_letter(token)


def _is_noun(token: Any) -> bool:
    return token.tag_ in _NOUN_TAGS and token.pos_ != "PRON" and token.lower_ not in _PRO_FORMS


def _is_plural(cut: Sequence[Any], tokens: Sequence[Any]) -> bool:
    """Tell whether a phrase names several things, by the words cut in front of it or else by its noun."""
    # "two tone shirt": a number before a compound often counts the first noun of it.
    is_compound = any(token.tag_ in _NOUN_TAGS for token in tokens[:-1])
    for token in reversed(cut):  # the nearest word decides: "a few fish"
        if token.lower_ in _SINGULAR_QUANTIFIERS:
            return False
        if token.lower_ in _PLURAL_QUANTIFIERS or (token.lower_ in _COUNTS and not is_compound):
            return True
    return tokens[-1].tag_ in _PLURAL_TAGS


def _has_no_letter(token: Any) -> bool:
    text = token.text
    return not (text.isalpha() or any(character.isalpha() for character in text))
