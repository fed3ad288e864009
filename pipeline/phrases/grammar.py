"""Noun phrases by the grammar of GLIP's published demo, to compare with: no parser, no clean-up.

An optional determiner, adjectives, nouns; every further occurrence of the same words in the caption is a span of the
same phrase (Li et al., CVPR 2022, and the code beside it, which uses NLTK). NLTK's tagger needs data that is fetched
apart; the tags here are those of the spaCy pipeline, of the same Penn tag set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.store.records import Phrase

GRAMMAR = "NP: {<DT>?<JJ.*>*<NN.*>+}"


class GrammarExtractor:
    """Applies the grammar to tagged captions."""

    def __init__(self) -> None:
        from nltk import RegexpParser  # takes as long to import as spaCy

        self._chunker = RegexpParser(GRAMMAR)

    def extract(self, doc: Any) -> tuple[Phrase, ...]:
        """Return the phrases of a tagged spaCy ``Doc``; spans of different phrases may overlap, as in the original."""
        found: dict[str, Phrase] = {}
        lowered = doc.text.lower()
        # Some letters grow when they are lowered ("İ"); then the caption is searched as it is.
        searched = lowered if len(lowered) == len(doc.text) else doc.text
        for tokens in self._chunks(doc):
            start, end = tokens[0].idx, tokens[-1].idx + len(tokens[-1])
            words = searched[start:end]
            if words in found or not any(character.isalnum() for character in words):
                continue
            spans = tuple(match.span() for match in re.finditer(re.escape(words), searched))
            is_plural = tokens[-1].tag_ in ("NNS", "NNPS")
            found[words] = Phrase(text=doc.text[start:end], char_spans=spans, is_plural=is_plural)
        return tuple(found.values())

    def _chunks(self, doc: Any) -> Iterator[list[Any]]:
        tagged = [(token, token.tag_) for token in doc if not token.is_space]
        if not tagged:
            return
        for tree in self._chunker.parse(tagged).subtrees(lambda tree: tree.label() == "NP"):
            yield [token for token, _ in tree.leaves()]
