"""Noun chunks by part-of-speech tags alone: without a dependency parse, which takes a third of the time of parsing.

A chunk is a run of tags: determiners, then adjectives, participles, numbers and nouns, with hyphens, adverbs before an
adjective and possessives inside, up to its last noun. It goes through the same clean-up as spaCy's own chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_LETTERS = {
    "d": ("DT", "PDT", "PRP$"),
    "c": ("CD",),
    "j": ("JJ", "JJR", "JJS", "AFX"),
    "v": ("VBN",),
    "g": ("VBG",),
    "r": ("RB",),
    "a": ("CC",),
    "h": ("HYPH",),
    "s": ("POS",),
    "n": ("NN", "NNS", "NNP", "NNPS", "FW"),
}
_LETTER_OF = {tag: letter for letter, tags in _LETTERS.items() for tag in tags}
_CHUNK = re.compile(
    r"(?:d+g?)?"  # a gerund describes where it follows a determiner or a description ("the setting sun"); else it is
    # the verb of a clause ("people walking dogs")
    r"(?:[cjvn]|r[jv]|ja(?=j)|[acjnvr]h|(?<=[jv])g)*"  # "a cold and dull winter", "a black-and-white cow"
    r"(?:s(?:[cjvn]|[acjnvr]h)*n|n)+"  # with possessors: "the car's left door"
)


def tagged_chunks(doc: Any) -> Iterator[list[Any]]:
    """Yield the chunks of a tagged spaCy ``Doc`` as lists of tokens, in order, without overlap."""
    tokens = list(doc)
    letters = "".join(_LETTER_OF.get(token.tag_, " ") for token in tokens)
    for match in _CHUNK.finditer(letters):
        yield tokens[slice(*match.span())]
