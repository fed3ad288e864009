"""Noun phrases of captions by spaCy: what a caption speaks of, as exact character spans.

Three extractors: ``noun_chunks``, spaCy's own, and ``tagged_chunks``, which need no parse, both cleaned as ``cleaning``
says; and ``grammar``, the one of GLIP's published demo, for comparison. The spans index the caption exactly as it is
stored. Chunks that lie in one another are refused: of those the longest stays.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from pipeline.errors import ConfigError, MissingInputError
from pipeline.phrases.cleaning import Cleaner
from pipeline.phrases.grammar import GrammarExtractor
from pipeline.phrases.markup import PlainCaption, in_caption, plain_caption
from pipeline.phrases.ruler import keep_deciding_rules
from pipeline.phrases.settings import PhrasesConfig
from pipeline.phrases.tagged_chunks import tagged_chunks
from pipeline.store.records import Phrase, PhrasesRecord

UNUSED_COMPONENTS = ("ner", "lemmatizer", "senter")
# Noun chunks need attribute_ruler, without which they are silently empty.
NEEDED_COMPONENTS = {
    "noun_chunks": ("tagger", "parser", "attribute_ruler"),
    "tagged_chunks": ("tagger", "attribute_ruler"),
    "grammar": ("tagger",),
}


class NounPhraseParser:
    """A spaCy pipeline and the extractor behind it.

    Raises:
        MissingInputError: the pipeline package is not installed.
        ConfigError: it lacks a component that the extractor needs.
    """

    def __init__(self, config: PhrasesConfig) -> None:
        self._config, self._cleaner = config, Cleaner(config)
        self._grammar = GrammarExtractor() if config.extractor == "grammar" else None
        try:
            with _without_torch():
                package = importlib.import_module(config.spacy_model)
        except ImportError as error:
            raise MissingInputError(
                f"phrases.spacy_model: no package {config.spacy_model!r}; install it or name another"
            ) from error
        if not hasattr(package, "load"):
            raise ConfigError(f"phrases.spacy_model: {config.spacy_model} is a package, but no spaCy pipeline")
        needed = NEEDED_COMPONENTS[config.extractor]
        unused = [*UNUSED_COMPONENTS, *(() if "parser" in needed else ("parser",))]
        self._nlp = package.load(exclude=unused)
        missing = [name for name in needed if name not in self._nlp.pipe_names]
        if missing:
            raise ConfigError(f"phrases.spacy_model: {config.spacy_model} has no {', '.join(missing)}")
        if "attribute_ruler" in needed:
            keep_deciding_rules(self._nlp.get_pipe("attribute_ruler"))

    @property
    def name(self) -> str:
        """Name and version, for provenance."""
        grammar = "" if self._config.extractor == "noun_chunks" else f", {self._config.extractor}"
        return f"{self._config.spacy_model}=={self._nlp.meta['version']}{grammar}"

    def parse(self, rows: Sequence[tuple[str, str]]) -> list[PhrasesRecord]:
        """Return the phrases of every caption, in order; a caption that cannot be used keeps its reason.

        Args:
            rows: keys and captions.
        """
        plain = [plain_caption(caption) for _, caption in rows]
        reasons = [reject_reason(caption, each, self._config) for (_, caption), each in zip(rows, plain, strict=True)]
        usable = (each.text for each, reason in zip(plain, reasons, strict=True) if reason is None)
        records = []
        # The zone forgets the words of these captions afterwards; without it the vocabulary grows with every shard.
        with self._nlp.memory_zone():
            docs = iter(self._nlp.pipe(usable, batch_size=self._config.batch_size))
            for (key, caption), each, reason in zip(rows, plain, reasons, strict=True):
                phrases = () if reason else in_caption(caption, each, self._phrases(next(docs)))
                why = reason or (None if phrases else "no_phrases")
                records.append(PhrasesRecord(key=key, caption=caption, phrases=phrases, reject_reason=why))
        return records

    def char_spans(self, caption: str) -> list[list[tuple[int, int]]]:
        """Return where the phrases of one caption stand in it; the parser of ``GLIPPredictor.predict``."""
        plain = plain_caption(caption)
        phrases = self._phrases(self._nlp(plain.text)) if plain.text.strip() else ()
        return [list(phrase.char_spans) for phrase in in_caption(caption, plain, phrases)]

    def _phrases(self, doc: Any) -> tuple[Phrase, ...]:
        if self._grammar is not None:
            return self._grammar.extract(doc)
        if self._config.extractor == "tagged_chunks":
            return self._cleaner.clean(doc.text, tagged_chunks(doc))
        return self._cleaner.clean(doc.text, _outermost(list(doc.noun_chunks)))


def reject_reason(caption: str, plain: PlainCaption, config: PhrasesConfig) -> str | None:
    """Return why a caption is not parsed; None where it is."""
    if not plain.text.strip():
        return "caption_empty"
    return "caption_too_long" if len(caption) > config.max_caption_chars else None


def _outermost(chunks: list[Any]) -> list[Any]:
    """Return chunks that do not overlap, of those that do the longest; spaCy's rules for English give no others."""
    is_apart = all(before.end <= after.start for before, after in pairwise(chunks))
    if is_apart:
        return chunks
    from spacy.util import filter_spans  # there by now: a parser loads spaCy, this module does not

    longest: list[Any] = filter_spans(chunks)
    return longest


@contextmanager
def _without_torch() -> Iterator[None]:
    """Let spaCy be imported without PyTorch, which takes twice as long as the rest of it.

    It imports PyTorch wherever that is installed, for pipelines of transformers; these need one of the packages named
    here. What has been imported already stays.
    """
    extensions = ("spacy_transformers", "spacy_curated_transformers")
    if "torch" in sys.modules or any(importlib.util.find_spec(name) for name in extensions):
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own sign for a module that is not there
    try:
        yield
    finally:
        del sys.modules["torch"]
