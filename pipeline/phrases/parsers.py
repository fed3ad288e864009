"""The parser that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.phrases.settings import PhrasesConfig
from pipeline.store.records import PhrasesRecord, Span


class Parser(Protocol):
    """Finds the phrases of captions."""

    @property
    def name(self) -> str:
        """Name and version, for provenance."""
        ...

    def parse(self, rows: Sequence[tuple[str, str]]) -> list[PhrasesRecord]:
        """Return the phrases of every caption, in order, of keys and captions."""
        ...

    def char_spans(self, caption: str) -> list[list[Span]]:
        """Return where the phrases of one caption stand in it."""
        ...


def make_parser(config: PhrasesConfig) -> Parser:
    """Return the parser for ``phrases.extractor``; it says what it raises."""
    if config.extractor == "llm":
        from pipeline.phrases.llm import LlmPhraseParser

        return LlmPhraseParser(config)
    from pipeline.phrases.noun_phrases import NounPhraseParser  # spaCy takes seconds to load

    return NounPhraseParser(config)


def describe_endpoint(config: PhrasesConfig) -> dict[str, Any]:
    """Return what phrases depend on besides the settings: the endpoint that is asked, where one is."""
    if config.extractor != "llm":
        return {}
    from pipeline.phrases.llm import QUESTION, read_endpoint

    return {"endpoint": read_endpoint(config).describe(QUESTION)}
