"""From the phrases of captions to classes of one's own: by a table, by synonyms, by the head noun.

A phrase means the class of the longest name that it ends in: "an old yellow forklift" a "forklift", "orange safety
vests" a "safety vest". Names that stand for no class keep phrases from meaning one: "hot dog" no "dog".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glip_model.prompts import clean_name
from pipeline.errors import ConfigError
from pipeline.store.vocabulary import Vocabulary, read_table_of_names, table_of_names
from pipeline.store.words import singulars, words_of


@dataclass(frozen=True)
class Ontology:
    """Classes, and the phrases that mean each.

    Attributes:
        classes: in order.
        meanings: the words of a phrase in lower case → its class, or ``""`` where it means none.
    """

    classes: tuple[str, ...]
    meanings: Mapping[tuple[str, ...], str]

    @classmethod
    def of(cls, table: Mapping[str, str]) -> Ontology:
        """Make one of phrases and the class of each, ``""`` for none; a class's own name means it, too.

        Raises:
            ConfigError: there are no classes, one has no words, or a phrase stands for two.
        """
        classes = Vocabulary.of({phrase: name for phrase, name in table.items() if name}).classes
        exact: dict[tuple[str, ...], str] = {}
        for phrase, name in [*table.items(), *((name, name) for name in classes if name not in table)]:
            words = _words(phrase)
            if not words:
                raise ConfigError(f"{phrase!r} has no words; no phrase of a caption can mean it")
            if exact.setdefault(words, name.strip()) != name.strip():
                raise ConfigError(f"{phrase!r} stands for both {exact[words]!r} and {name!r}; a phrase means one class")
        meanings = dict(exact)
        for (*before, last), name in exact.items():
            for form in sorted(singulars(last)):
                meanings.setdefault((*before, form), name)
        return cls(classes, meanings)

    @classmethod
    def read(cls, text: str) -> Ontology:
        """Read one from the command line, or from a file that is named there, see ``read_table_of_names``."""
        try:
            return cls.of(read_table_of_names(text))
        except ConfigError as error:
            raise ConfigError(str(error) if "--names" in str(error) else f"--names {text}: {error}") from None

    @classmethod
    def of_settings(cls, names: Mapping[str, Any]) -> Ontology | None:
        """Make one of a setting, which says what a file of names does; None where it names nothing."""
        return cls.of(table_of_names(names)) if names else None

    def category(self, phrase: str) -> str | None:
        """Return the class that a phrase means; None where it means none of them."""
        *before, last = _words(phrase) or ("",)
        # As it stands before what it may be the plural of: "glasses" are no "glass" where both are names.
        forms = [last, *sorted(singulars(last) - {last}, key=lambda form: (-len(form), form))]
        for start in range(len(before) + 1):
            for form in forms:
                if (found := self.meanings.get((*before[start:], form))) is not None:
                    return found or None
        return None


def _words(phrase: str) -> tuple[str, ...]:
    return tuple(words_of(clean_name(phrase)))
