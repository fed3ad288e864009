"""Noun phrases of captions by a language model behind an endpoint, each of its phrases checked against the caption.

A model may say anything: what does not stand in the caption word by word is left out, and so is what is longer than
``max_words``. A caption about which nothing usable is said keeps the reason ``answer_unusable``.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.phrases.markup import in_caption, plain_caption
from pipeline.phrases.noun_phrases import reject_reason
from pipeline.phrases.settings import PhrasesConfig
from pipeline.store.endpoint import UNUSABLE, Client, Endpoint, is_endpoint, json_entries, text_part
from pipeline.store.records import Phrase, PhrasesRecord, Span

logger = logging.getLogger(__name__)

QUESTION = """A caption of a picture: {caption}
List every phrase in it that names a thing which may be seen in the picture and which a box can be drawn around, with \
its adjectives and without articles, numbers and possessives. Leave out what cannot be pointed at, such as times, \
ideas, styles and the picture itself. Write phrases exactly as they stand in the caption, in their order.
Answer with JSON alone: {{"phrases": [{{"phrase": "…", "plural": whether it names several things}}]}}."""


class LlmPhraseParser:
    """Asks an endpoint for the phrases of each caption, several captions at once.

    Args:
        config: names the endpoint's file.
        sleep: waits so many seconds.

    Raises:
        ConfigError: ``phrases.endpoint`` names no file of an endpoint.
        MissingInputError: the file or the key is not there.
    """

    def __init__(self, config: PhrasesConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        self._config, self._client = config, Client(read_endpoint(config), sleep)

    @property
    def name(self) -> str:
        """Name of the model, for provenance."""
        return f"{self._client.settings.model}, llm"

    def parse(self, rows: Sequence[tuple[str, str]]) -> list[PhrasesRecord]:
        """Return the phrases of every caption, in order; a caption that cannot be used keeps its reason.

        Args:
            rows: keys and captions.

        Raises:
            MissingInputError: the endpoint refuses, or gives no answer.
        """
        with ThreadPoolExecutor(self._client.settings.at_once) as pool:
            return list(pool.map(self._parse, rows))

    def char_spans(self, caption: str) -> list[list[Span]]:
        """Return where the phrases of one caption stand in it; the parser of ``GLIPPredictor.predict``."""
        return [list(phrase.char_spans) for phrase in self._parse(("", caption)).phrases]

    def _parse(self, row: tuple[str, str]) -> PhrasesRecord:
        key, caption = row
        plain = plain_caption(caption)
        reason = reject_reason(caption, plain, self._config)
        phrases: tuple[Phrase, ...] = ()
        if reason is None:
            question = text_part(QUESTION.format(caption=json.dumps(plain.text, ensure_ascii=False)))
            try:
                phrases = self._client.ask([question], lambda text: read_phrases(text, plain.text, self._config))
            except ValueError as error:
                logger.warning("%s: no usable answer about %r: %s", self.name, caption[:60], error)
                reason = UNUSABLE
        found = in_caption(caption, plain, phrases)
        why = reason or (None if found else "no_phrases")
        return PhrasesRecord(key=key, caption=caption, phrases=found, reject_reason=why)


def read_endpoint(config: PhrasesConfig) -> Endpoint:
    """Return the endpoint that settings name; errors as above."""
    if not is_endpoint(config.endpoint):
        raise ConfigError(
            f"phrases.endpoint is {config.endpoint!r}; extractor llm needs the YAML file of an endpoint, see "
            "pipeline/pseudo_labels/README.md"
        )
    return Endpoint.read(Path(config.endpoint))


def read_phrases(text: str, caption: str, config: PhrasesConfig) -> tuple[Phrase, ...]:
    """Return the phrases of an answer that stand in the caption, in its order, none inside of another.

    Args:
        text: JSON, maybe in a fence of Markdown or after other words.
        caption: as it was asked about; spans index it.
        config: limits, and whether phrases that are said again become one.

    Raises:
        ValueError: there is no list of phrases in it, or none of them stands in the caption.
    """
    entries = json_entries(text)
    said = [(each["phrase"], each.get("plural")) for each in entries if isinstance(each.get("phrase"), str)]
    taken: list[Span] = []
    found: list[Phrase] = []
    for words, plural in said:
        span = _place(words, caption, taken)
        if span is None or len(words.split()) > config.max_words:
            continue
        taken.append(span)
        is_plural = plural if isinstance(plural, bool) else None
        found.append(Phrase(text=caption[slice(*span)], char_spans=(span,), is_plural=is_plural))
    if entries and not found:
        raise ValueError(f"none of {len(entries)} phrases stands in the caption: {text[:200]!r}")
    found.sort(key=lambda phrase: phrase.char_spans)
    return tuple(_merged(found)) if config.merge_repeats else tuple(found)


def _place(words: str, caption: str, taken: Sequence[Span]) -> Span | None:
    """Return where words stand in a caption, not inside of other words and apart from what is taken; None: nowhere."""
    if not any(character.isalnum() for character in words):
        return None
    spaced = r"\s+".join(map(re.escape, words.split()))
    pattern = rf"(?<!\w){spaced}(?!\w)"
    for match in re.finditer(pattern, caption, re.IGNORECASE):
        start, end = match.span()
        if all(end <= begin or stop <= start for begin, stop in taken):
            return start, end
    return None


def _merged(phrases: Sequence[Phrase]) -> Iterator[Phrase]:
    """Yield phrases, those that are said again as one with several spans."""
    by_text: dict[str, Phrase] = {}
    for phrase in phrases:
        name = " ".join(phrase.text.casefold().split())
        first: Any = by_text.get(name)
        by_text[name] = phrase if first is None else replace(first, char_spans=first.char_spans + phrase.char_spans)
    yield from by_text.values()
