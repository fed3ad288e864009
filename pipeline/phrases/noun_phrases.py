"""Noun phrases of captions by spaCy: what a caption speaks of, as exact character spans.

From spaCy's noun chunks to phrases:

1. A chunk is divided at free-standing punctuation, which the parser often takes into it ("yo-yo | free download"),
   at slashes between words ("cat/dog") and at addresses of the web.
2. Leading determiners, possessives, pronouns, adverbs, numbers and quantifiers are cut ("also a dog" → "dog"), and
   so are trailing stop heads ("gift box clipart" → "gift box"), which name a medium or nothing to point at. Counts
   stay outside of the phrase ("three dogs" → "dogs"), adjectives inside ("old sofa").
3. What does not end in a noun then, or has more than ``max_words`` words, is left out; so are pronouns, the ones that
   are tagged as nouns too ("someone", "the red one").
4. Whether the phrase names several things is kept, because a singular phrase has one box: by a count where there is
   one ("two fish"), else by the number of the noun.

Chunks never nest, so phrases do not either. A phrase that is said twice stays twice: each mention may name another
thing, and who gets which box is settled where boxes are. The spans index the caption exactly as it is stored.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.config import PhrasesConfig
from pipeline.data.records import CaptionRecord, Phrase, PhrasesRecord
from pipeline.errors import ConfigError, MissingInputError

# The parser needs tagger and tok2vec; noun chunks need attribute_ruler, without which they are silently empty.
UNUSED_COMPONENTS = ("ner", "lemmatizer", "senter")
NEEDED_COMPONENTS = ("tagger", "parser", "attribute_ruler")
_LEADING_TAGS = frozenset({"DT", "PDT", "PRP$", "PRP", "WP$", "WDT", "CD", "POS", "EX", "RB", "CC", "IN", "UH"})
_PLURAL_QUANTIFIERS = frozenset({"several", "many", "few", "various", "multiple", "both", "these", "those"})
_SINGULAR_QUANTIFIERS = frozenset({"a", "an", "one", "1", "each", "every", "another", "this"})
_QUANTIFIERS = _PLURAL_QUANTIFIERS | frozenset({"some", "more", "other", "another"})
# Larger numbers are years and sizes more often than counts ("2019 calendar", "100 watt lamp").
_NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_COUNTS = frozenset(_NUMBER_WORDS) | frozenset(str(number) for number in range(2, 21))
_NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})
_PLURAL_TAGS = frozenset({"NNS", "NNPS"})
# Nouns by their tag, but they stand for a thing named elsewhere, as pronouns do.
_PRO_FORMS = frozenset({"one", "ones"})
_SLASHES = frozenset({"/", "|", "\\"})


class NounPhraseParser:
    """A spaCy pipeline and the clean-up around it.

    Raises:
        MissingInputError: the pipeline package is not installed.
        ConfigError: it lacks a component that noun chunks need.
    """

    def __init__(self, config: PhrasesConfig) -> None:
        self._config = config
        self._stop_heads = frozenset(config.stop_heads)
        try:
            package = importlib.import_module(config.spacy_model)
        except ImportError as error:
            raise MissingInputError(
                f"phrases.spacy_model: no package {config.spacy_model!r}; install it or name another"
            ) from error
        if not hasattr(package, "load"):
            raise ConfigError(f"phrases.spacy_model: {config.spacy_model} is a package, but no spaCy pipeline")
        self._nlp = package.load(exclude=list(UNUSED_COMPONENTS))
        missing = [name for name in NEEDED_COMPONENTS if name not in self._nlp.pipe_names]
        if missing:
            raise ConfigError(f"phrases.spacy_model: {config.spacy_model} has no {', '.join(missing)}")

    @property
    def name(self) -> str:
        """Name and version, for provenance."""
        return f"{self._config.spacy_model}=={self._nlp.meta['version']}"

    def parse(self, rows: Sequence[CaptionRecord]) -> list[PhrasesRecord]:
        """Return the phrases of every caption, in order; a caption that cannot be used keeps its reason."""
        usable = [row for row in rows if self._reject_reason(row.caption) is None]
        # The zone forgets the words of these captions afterwards; without it the vocabulary grows with every shard.
        with self._nlp.memory_zone():
            docs = self._nlp.pipe((row.caption for row in usable), batch_size=self._config.batch_size)
            found = {id(row): self._phrases(doc) for row, doc in zip(usable, docs, strict=True)}
        return [self._record(row, found.get(id(row))) for row in rows]

    def char_spans(self, caption: str) -> list[list[tuple[int, int]]]:
        """Return where the phrases of one caption stand in it; the parser of ``GLIPPredictor.predict``."""
        return [list(phrase.char_spans) for phrase in self._phrases(self._nlp(caption))]

    def _record(self, row: CaptionRecord, phrases: tuple[Phrase, ...] | None) -> PhrasesRecord:
        reason = self._reject_reason(row.caption) if phrases is None else (None if phrases else "no_phrases")
        return PhrasesRecord(key=row.key, caption=row.caption, phrases=phrases or (), reject_reason=reason)

    def _reject_reason(self, caption: str) -> str | None:
        if not caption.strip():
            return "caption_empty"
        return "caption_too_long" if len(caption) > self._config.max_caption_chars else None

    def _phrases(self, doc: Any) -> tuple[Phrase, ...]:
        found = []
        for chunk in doc.noun_chunks:
            for piece in _divide(chunk):
                cut, tokens = self._trim(piece)
                if not tokens or not _is_noun(tokens[-1]):
                    continue
                start, end = tokens[0].idx, tokens[-1].idx + len(tokens[-1])
                text = doc.text[start:end]
                if len(text.split()) <= self._config.max_words:
                    found.append(Phrase(text=text, char_spans=((start, end),), is_plural=_is_plural(cut, tokens)))
        return tuple(found)

    def _trim(self, tokens: list[Any]) -> tuple[list[Any], list[Any]]:
        """Cut what does not describe the thing off both ends; return what was cut in front, and the rest."""
        start, end = 0, len(tokens)
        while start < end and _is_no_description(tokens[start]):
            start += 1
        # The possessive mark goes with the stop head that it led to ("the car's front" → "car").
        while end > start and (
            self._is_stop_head(tokens[end - 1]) or _has_no_letter(tokens[end - 1]) or tokens[end - 1].tag_ == "POS"
        ):
            end -= 1
        return tokens[:start], tokens[start:end]

    def _is_stop_head(self, token: Any) -> bool:
        word = token.lower_
        return word in self._stop_heads or (token.tag_ in _PLURAL_TAGS and word.removesuffix("s") in self._stop_heads)


def _divide(chunk: Iterable[Any]) -> Iterator[list[Any]]:
    """Divide tokens at punctuation that stands free and at addresses; a hyphen inside a word does not divide."""
    piece: list[Any] = []
    for token in chunk:
        stands_free = token.i > 0 and bool(token.nbor(-1).whitespace_) and not token.like_num
        is_mark = _has_no_letter(token) and (stands_free or token.text in _SLASHES)
        if is_mark or token.like_url or token.like_email:
            yield piece
            piece = []
        else:
            piece.append(token)
    yield piece


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
    return not any(character.isalpha() for character in token.text)


def count_phrases(records: Iterable[PhrasesRecord]) -> Iterator[str]:
    """Yield the text of every phrase in lower case, for statistics."""
    for record in records:
        for phrase in record.phrases:
            yield phrase.text.lower()
