"""Noun phrases of captions by spaCy: what a caption speaks of, as exact character spans.

From spaCy's noun chunks to phrases:

1. A chunk is divided at free-standing punctuation, which the parser often takes into it ("yo-yo | free download").
2. Leading determiners, possessives, pronouns, adverbs, numbers and quantifiers are cut ("also a dog" → "dog"), and
   so are trailing stop heads ("gift box clipart" → "gift box"), which name a medium or nothing to point at.
3. What does not end in a noun then, or has more than ``max_words`` words, is left out; so are pronouns.
4. Whether the last noun stands in the plural is kept, because a singular phrase names one thing.

The spans index the caption exactly as it is stored.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.config import PhrasesConfig
from pipeline.data.records import CaptionRecord, Phrase, PhrasesRecord
from pipeline.errors import ConfigError, MissingInputError

# The parser needs tagger and tok2vec; noun chunks need attribute_ruler, without which they are silently empty.
UNUSED_COMPONENTS = ("ner", "lemmatizer", "senter")
NEEDED_COMPONENTS = ("tagger", "parser", "attribute_ruler")
_LEADING_TAGS = frozenset({"DT", "PDT", "PRP$", "PRP", "WP$", "WDT", "CD", "POS", "EX", "RB", "CC", "IN", "UH"})
_QUANTIFIERS = frozenset({"several", "many", "some", "few", "various", "multiple", "more", "other", "another"})
_NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})
_PLURAL_TAGS = frozenset({"NNS", "NNPS"})


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
        self._nlp = package.load(exclude=list(UNUSED_COMPONENTS))
        missing = [name for name in NEEDED_COMPONENTS if name not in self._nlp.pipe_names]
        if missing:
            raise ConfigError(f"phrases.spacy_model: {config.spacy_model} has no {', '.join(missing)}")

    @property
    def name(self) -> str:
        """Name and version, for provenance."""
        version = importlib.metadata.version(self._config.spacy_model.replace("_", "-"))
        return f"{self._config.spacy_model}=={version}"

    def parse(self, rows: Sequence[CaptionRecord]) -> list[PhrasesRecord]:
        """Return the phrases of every caption, in order; a caption that cannot be used keeps its reason."""
        usable = [row for row in rows if self._reject_reason(row.caption) is None]
        docs = self._nlp.pipe((row.caption for row in usable), batch_size=self._config.batch_size)
        found = {id(row): self._phrases(doc) for row, doc in zip(usable, docs, strict=True)}
        return [self._record(row, found.get(id(row))) for row in rows]

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
                tokens = self._trim(piece)
                if not tokens or len(tokens) > self._config.max_words or tokens[-1].tag_ not in _NOUN_TAGS:
                    continue
                start, end = tokens[0].idx, tokens[-1].idx + len(tokens[-1])
                is_plural = tokens[-1].tag_ in _PLURAL_TAGS
                found.append(Phrase(text=doc.text[start:end], char_spans=((start, end),), is_plural=is_plural))
        return tuple(found)

    def _trim(self, tokens: list[Any]) -> list[Any]:
        """Cut what does not describe the thing off both ends."""
        while tokens and (
            tokens[0].tag_ in _LEADING_TAGS or tokens[0].lower_ in _QUANTIFIERS or _has_no_letter(tokens[0])
        ):
            tokens = tokens[1:]
        while tokens and (tokens[-1].lower_ in self._stop_heads or _has_no_letter(tokens[-1])):
            tokens = tokens[:-1]
        return tokens


def _divide(chunk: Iterable[Any]) -> Iterator[list[Any]]:
    """Divide tokens at punctuation that stands free; a hyphen inside a word does not."""
    piece: list[Any] = []
    for token in chunk:
        stands_free = token.i > 0 and bool(token.nbor(-1).whitespace_)
        if _has_no_letter(token) and stands_free and not token.like_num:
            yield piece
            piece = []
        else:
            piece.append(token)
    yield piece


def _has_no_letter(token: Any) -> bool:
    return not any(character.isalpha() for character in token.text)


def count_phrases(records: Iterable[PhrasesRecord]) -> Iterator[str]:
    """Yield the text of every phrase in lower case, for statistics."""
    for record in records:
        for phrase in record.phrases:
            yield phrase.text.lower()
