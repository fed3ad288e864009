"""Captions as they are read aloud: without the markup and the invisible characters that pages of the web leave in them.

Entities are decoded, more than once where they were encoded more than once; tags of HTML and comments give way to a
blank, or to a full stop where they end a line; zero-width characters, soft hyphens and marks of writing direction go.
Other words in angle brackets stay ("<PERSON>" stands for a name in CC12M). Every character knows where it came from.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.store.records import Phrase, Span

_LINES = "article blockquote br center div figcaption figure h1 h2 h3 h4 h5 h6 hr li ol p pre section table td th tr ul"
_INLINE = (
    "a abbr b big button cite code em font i iframe img input label mark q s script small span strike strong style "
    "sub sup tbody thead u video"
)
_TAG = re.compile(rf"<!--.*?-->|</?({'|'.join(f'{_LINES} {_INLINE}'.split())})(?:\s[^<>]*)?/?>", re.I | re.S)
_ENTITY = re.compile(r"&(?:amp;)*(?:#\d{1,7};|#[xX][0-9a-fA-F]{1,6};|[a-zA-Z]\w{1,31};|(?:amp|lt|gt|quot|nbsp)\b)")
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")


@dataclass(frozen=True)
class PlainCaption:
    """What the parser reads in place of a caption."""

    text: str
    sources: tuple[Span, ...] | None
    """Per character the half-open stretch of the caption that it came from; None where the caption is plain itself."""
    breaks: frozenset[int]
    """Offsets in ``text`` that a phrase does not reach across, because a tag or an encoded blank stands there."""


def plain_caption(caption: str) -> PlainCaption:
    """Return a caption without markup and invisible characters."""
    if not (_ENTITY.search(caption) or _INVISIBLE.search(caption) or _TAG.search(caption)):
        return PlainCaption(caption, None, frozenset())
    characters = [(character, source) for character, source in _decode(caption) if not _INVISIBLE.fullmatch(character)]
    decoded = "".join(character for character, _ in characters)
    kept: list[tuple[str, Span]] = []
    breaks: set[int] = set()
    place = 0
    for tag in [*_TAG.finditer(decoded), None]:
        end = tag.start() if tag else len(decoded)
        for character, (begin, stop) in characters[place:end]:
            is_blank = character.isspace()
            if is_blank and stop - begin > 1:
                breaks.add(len(kept) + 1)
            if not (is_blank and kept and kept[-1][0] == " "):
                kept.append((" " if is_blank else character, (begin, stop)))
        if tag:
            place = tag.end()
            source = (characters[tag.start()][1][0], characters[tag.end() - 1][1][1])
            ends_line = (tag[1] or "").lower() in _LINES.split() and kept and kept[-1][0].isalnum()
            kept += [(mark, source) for mark in (". " if ends_line else " " if kept and kept[-1][0] != " " else "")]
            breaks.add(len(kept))
    return PlainCaption("".join(mark for mark, _ in kept), tuple(source for _, source in kept), frozenset(breaks))


def in_caption(caption: str, plain: PlainCaption, phrases: Iterable[Phrase]) -> tuple[Phrase, ...]:
    """Return phrases of the plain text as they stand in the caption; of one with markup inside, what follows it."""
    if plain.sources is None:
        return tuple(phrases)
    moved = []
    for phrase in phrases:
        spans: list[Span] = []
        for start, end in phrase.char_spans:
            start = max([start, *(place for place in plain.breaks if place < end)])
            spans.append((plain.sources[start][0], plain.sources[end - 1][1]))
        begin, stop = spans[0]
        moved.append(
            Phrase(text=caption[begin:stop], char_spans=tuple(dict.fromkeys(spans)), is_plural=phrase.is_plural)
        )
    return tuple(moved)


def _decode(caption: str) -> list[tuple[str, Span]]:
    """Return the characters of a caption with where they came from, entities decoded."""
    characters: list[tuple[str, Span]] = []
    place = 0
    for entity in _ENTITY.finditer(caption):
        characters += [(caption[i], (i, i + 1)) for i in range(place, entity.start())]
        text, before = html.unescape(entity[0]), entity[0]
        while text != before:
            text, before = html.unescape(text), text
        if text == entity[0] or len(text) > 2:  # it is no entity
            characters += [(caption[i], (i, i + 1)) for i in range(*entity.span())]
        else:
            characters += [(character, entity.span()) for character in text]
        place = entity.end()
    return characters + [(caption[i], (i, i + 1)) for i in range(place, len(caption))]
