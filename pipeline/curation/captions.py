"""What captions alone say: how long they are, in which language, which words they have, which say the same."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import Any

from pipeline.cli import named_extras
from pipeline.curation.settings import CurateConfig
from pipeline.errors import ConfigError, MissingInputError
from pipeline.store.storage import read_text, to_place

_NO_LETTERS = re.compile(r"[\W\d_]+")
MAX_WORDS_IN_LIST = 100_000


class CaptionRules:
    """The filters of captions.

    Args:
        config: section ``curate``.
        words: what ``blocked_words`` returns.
    """

    def __init__(self, config: CurateConfig, words: tuple[str, ...]) -> None:
        self._config, self._words = config, words

    def reason_of(self, caption: str) -> str | None:
        """Return why a caption is rejected; None where it is not."""
        config, words = self._config, len(caption.split())
        if words < config.min_words:
            return "caption_short"
        if config.max_words and words > config.max_words:
            return "caption_long"
        if self._words and self._blocked.search(caption):
            return "caption_blocked"
        if config.languages:
            language, probability = self._identifier.classify(caption)
            if language not in config.languages and probability >= config.min_language_score:
                return "caption_language"
        return None

    @cached_property
    def _blocked(self) -> re.Pattern[str]:
        longest_first = sorted(self._words, key=len, reverse=True)
        pieces = (r"\s+".join(map(re.escape, word.split())) for word in longest_first)
        return re.compile(rf"(?<!\w)(?:{'|'.join(pieces)})(?!\w)", re.IGNORECASE)

    @cached_property
    def _identifier(self) -> Any:
        with named_extras():
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def blocked_words(config: CurateConfig) -> tuple[str, ...]:
    """Return the words of the setting and of its file, sorted.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: it holds more words than a list of words has.
    """
    found = set(config.blocked_words)
    if config.blocked_words_file is not None:
        text = read_text(to_place(config.blocked_words_file))
        if text is None:
            raise MissingInputError(
                f"{config.blocked_words_file}: no such file of words; mend curate.blocked_words_file"
            )
        found |= set(text.splitlines())
    words = tuple(sorted(word.strip() for word in found if word.strip()))
    if len(words) > MAX_WORDS_IN_LIST:
        raise ConfigError(f"curate.blocked_words: {len(words)} words; expected at most {MAX_WORDS_IN_LIST}")
    return words


def check_languages(config: CurateConfig) -> None:
    """Refuse languages that nobody here can tell.

    Raises:
        ConfigError: the message names those that can be told.
        MissingInputError: py3langid is not installed.
    """
    if not config.languages:
        return
    with named_extras():
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = LanguageIdentifier.from_model_file(MODEL_FILE).labels
    unknown = sorted(set(config.languages) - set(known))
    if unknown:
        raise ConfigError(
            f"curate.languages: {', '.join(unknown)}: no such language; known: {', '.join(sorted(known))}"
        )


def caption_hash(caption: str) -> int:
    """Return 64 bits that are equal for captions which say the same but for case, digits and punctuation."""
    plain = _NO_LETTERS.sub(" ", caption.lower()).strip()
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")
