"""Captions of the embedded scenes, as people write them: sentences, lists and alt-text fragments, with exact spans.

Counts and spatial relations are true of the scene, sizes of what the caption speaks of; adjectives of taste are free. A
mention's span is its noun phrase without determiner and count ("small dog" in "the small dog", "cups" in "three cups").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.prepare.embedded.scenes import SceneObject
from pipeline.prepare.embedded.sprites import Concept
from pipeline.store.records import Phrase, ScoredBox, Span

TASTE = ("cute", "nice", "lovely", "funny", "pretty", "simple", "beautiful", "shiny", "cartoon")
NUMBERS = {2: ("two", "2", "a couple of"), 3: ("three", "3", "several"), 4: ("four", "4", "several"), 5: ("five", "5")}
CLEAR_RATIO = 1.35
"""How many times larger one object must be before a caption calls it so."""
CLEAR_OFFSET = 0.18
"""Share of the picture's side by which two objects must differ in place before a caption says so."""
OPENINGS = (
    "",
    "",
    "",
    "a picture of ",
    "an illustration of ",
    "there is ",
    "photo of ",
    "look at ",
    "I can see ",
    "here is ",
)
ENDINGS = ("", "", "", ".", " on a colorful background", " on a plain background", ", illustration", " - clipart")
JUNK_BEFORE = ("Free download: ", "HD wallpaper - ", "NEW! ", "clipart | ", "IMG_2041 ", "Stock vector ")
JUNK_AFTER = (
    " | free download",
    " #cute #art",
    " - www.example-clipart.net",
    " (png, 512x512)",
    ", royalty free",
    " hd wallpaper",
    " ... click to enlarge",
)
JUNK_SHARE = 0.4


@dataclass(frozen=True)
class Mention:
    """Objects of one concept that a caption speaks of together; no objects when it speaks of something absent."""

    concept: Concept
    objects: tuple[SceneObject, ...]


@dataclass
class CaptionWriter:
    """Text that grows piece by piece and remembers where each mention stands."""

    text: str = ""
    spans: list[tuple[Mention, Span]] = field(default_factory=list)

    def write(self, piece: str) -> CaptionWriter:
        """Append plain words."""
        self.text += piece
        return self

    def mention(self, rng: np.random.Generator, mention: Mention, adjective: str, is_bare: bool = False) -> None:
        """Append determiner or count (unless ``is_bare``), adjective and noun; only the last two are the span."""
        count = max(1, len(mention.objects))
        name = mention.concept.name if count == 1 else mention.concept.plural
        noun = f"{adjective} {name}".strip()
        if not is_bare:
            self.write(_determiner(rng, noun, count, mention.concept))
        start = len(self.text)
        self.write(noun)
        self.spans.append((mention, (start, len(self.text))))

    def phrases(self, base: frozenset[str]) -> tuple[Phrase, ...]:
        """Return the mentions as phrases with their boxes, base or novel by concept."""
        return tuple(
            Phrase(
                text=self.text[start:end],
                char_spans=((start, end),),
                boxes=tuple(ScoredBox(xyxy=placed.box) for placed in mention.objects),
                split="base" if mention.concept.name in base else "novel",
                is_plural=len(mention.objects) > 1,
            )
            for mention, (start, end) in self.spans
        )


def group_mentions(objects: Sequence[SceneObject]) -> list[Mention]:
    """Gather objects of the same concept, in the order in which concepts first appear."""
    groups: dict[str, list[SceneObject]] = {}
    for placed in objects:
        groups.setdefault(placed.concept.name, []).append(placed)
    return [Mention(members[0].concept, tuple(members)) for members in groups.values()]


def write_caption(rng: np.random.Generator, mentions: Sequence[Mention], image_size: int) -> CaptionWriter:
    """Describe a scene; every mention is spoken of once."""
    writer = CaptionWriter()
    order = [mentions[i] for i in rng.permutation(len(mentions))]
    style = rng.random()
    if style < 0.25:
        _write_fragment(rng, writer, order)
    elif style < 0.6 and len(order) >= 2 and all(mention.objects for mention in order[:2]):
        _write_relation(rng, writer, order, image_size)
    else:
        writer.write(_pick(rng, OPENINGS))
        _write_list(rng, writer, order, order)
        writer.write(_pick(rng, ENDINGS))
    if rng.random() < 0.5 and writer.text[:1].isalpha():
        writer.text = writer.text[0].upper() + writer.text[1:]
    return writer


def add_junk(rng: np.random.Generator, writer: CaptionWriter) -> None:
    """Surround a caption with what alt-text of the web carries, spans moved along."""
    if rng.random() >= JUNK_SHARE:
        return
    if rng.random() < 0.4:
        before = _pick(rng, JUNK_BEFORE)
        writer.text = before + writer.text
        writer.spans = [(m, (start + len(before), end + len(before))) for m, (start, end) in writer.spans]
    else:
        writer.write(_pick(rng, JUNK_AFTER))


def write_expression(
    rng: np.random.Generator, objects: Sequence[SceneObject], image_size: int
) -> tuple[str, SceneObject] | None:
    """Return an expression that singles out one object, or None when no simple one does."""
    for i in rng.permutation(len(objects)):
        target = objects[i]
        rivals = [other for other in objects if other is not target and _is_called(other.concept, target.concept.name)]
        if not rivals:
            size = size_word(target, [other for other in objects if other is not target])
            adjective = f"{size} " if size and rng.random() < 0.5 else ""
            return f"the {adjective}{target.concept.name}", target
        place = _place_word(target, rivals, image_size)
        if place:
            return f"the {target.concept.name} {place}", target
        size = size_word(target, rivals)
        if size:
            return f"the {size} {target.concept.name}", target
    return None


def size_word(target: SceneObject, others: Sequence[SceneObject]) -> str:
    """Return "small" or "big" when the object clearly is, against every other; else nothing."""
    if others and all(other.side >= CLEAR_RATIO * target.side for other in others):
        return "small"
    if others and all(target.side >= CLEAR_RATIO * other.side for other in others):
        return "big"
    return ""


def relation_word(left: SceneObject, right: SceneObject, image_size: int) -> str:
    """Say where the first object is, seen from the second."""
    dx, dy = left.center[0] - right.center[0], left.center[1] - right.center[1]
    if max(abs(dx), abs(dy)) < CLEAR_OFFSET * image_size:
        return "next to"
    if abs(dx) > abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


def _write_fragment(rng: np.random.Generator, writer: CaptionWriter, mentions: Sequence[Mention]) -> None:
    separator = _pick(rng, (", ", " and ", " & ", " / "))
    for i, mention in enumerate(mentions):
        writer.write(separator if i else "")
        writer.mention(rng, mention, _adjective(rng, mention, mentions), is_bare=True)
    writer.write(_pick(rng, ("", ", illustration", " clipart", " - cartoon drawing", " sticker set")))


def _write_relation(
    rng: np.random.Generator, writer: CaptionWriter, mentions: Sequence[Mention], image_size: int
) -> None:
    first, second = mentions[0], mentions[1]
    relation = "near"
    if len(first.objects) == 1 and len(second.objects) == 1:
        relation = relation_word(first.objects[0], second.objects[0], image_size)
    verb = "is" if len(first.objects) == 1 and not _is_always_plural(first.concept) else "are"
    writer.mention(rng, first, _adjective(rng, first, mentions))
    writer.write(f" {verb} {relation} " if rng.random() < 0.6 else f" {relation} ")
    writer.mention(rng, second, _adjective(rng, second, mentions))
    if len(mentions) > 2:
        writer.write(_pick(rng, (", with ", ", and there is also ", " plus ", ". We also see ")))
        _write_list(rng, writer, mentions[2:], mentions)
    writer.write(_pick(rng, ("", "", ".")))


def _write_list(
    rng: np.random.Generator, writer: CaptionWriter, listed: Sequence[Mention], mentions: Sequence[Mention]
) -> None:
    """Write some of a caption's mentions as a list; sizes are seen against all of them."""
    for i, mention in enumerate(listed):
        if i:
            last = i == len(listed) - 1
            writer.write(_pick(rng, (" and ", " with ", " and also ")) if last else ", ")
        writer.mention(rng, mention, _adjective(rng, mention, mentions))


def _adjective(rng: np.random.Generator, mention: Mention, mentions: Sequence[Mention]) -> str:
    if rng.random() < 0.65:
        return ""
    others = [placed for other in mentions if other is not mention for placed in other.objects]
    size = size_word(mention.objects[0], others) if len(mention.objects) == 1 else ""
    return size if size and rng.random() < 0.6 else _pick(rng, TASTE)


def _determiner(rng: np.random.Generator, noun: str, count: int, concept: Concept) -> str:
    if count > 1:
        return _pick(rng, NUMBERS.get(count, ("many",))) + " "
    if _is_always_plural(concept):
        return "some "
    if rng.random() < 0.2:
        return _pick(rng, ("the ", "one ", "this "))
    return "an " if noun.startswith(("a", "e", "i", "o", "u", "hour")) else "a "


def _is_always_plural(concept: Concept) -> bool:
    """Say whether a noun is plural even for one thing ("scissors"); "sheep" is not."""
    return concept.name == concept.plural and concept.name.endswith("s")


def _is_called(concept: Concept, name: str) -> bool:
    """Say whether people may understand a name as this concept: "camera" also means a movie camera."""
    return concept.name == name or concept.name.endswith(f" {name}")


def _place_word(target: SceneObject, rivals: Sequence[SceneObject], image_size: int) -> str:
    clear = CLEAR_OFFSET * image_size
    x, y = target.center
    if all(x < rival.center[0] - clear for rival in rivals):
        return "on the left"
    if all(x > rival.center[0] + clear for rival in rivals):
        return "on the right"
    if all(y < rival.center[1] - clear for rival in rivals):
        return "at the top"
    if all(y > rival.center[1] + clear for rival in rivals):
        return "at the bottom"
    return ""


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
