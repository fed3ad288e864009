"""Turns a teacher's answers about a batch of pictures into labelled rows, in one pass or several.

A later pass labels the phrases that have no box yet, as the settings say: with a lower threshold, or with a prompt of
their own. Boxes of earlier passes stay and take part in the competition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image

from glip_model.images import ImageError
from glip_model.prompts import Prompt
from glip_model.resizing import ResizedImage
from glip_model.structures import Detections
from pipeline.pseudo_labels.fusion import merge_detections
from pipeline.pseudo_labels.questions import L, Look, Questions
from pipeline.pseudo_labels.settings import PassConfig, PseudoLabelConfig
from pipeline.store.records import Phrase


@dataclass(frozen=True)
class Asked:
    """A row whose picture was decoded."""

    row: int
    image: Image.Image | ResizedImage
    prompts: tuple[Prompt, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image whose pixels boxes are given in."""
        image = self.image
        return image.original_size if isinstance(image, ResizedImage) else (image.height, image.width)


Found = tuple[Detections, Detections | None]
"""Detections in a picture, and in its mirror image where test-time flipping is on."""
Ask = Callable[[Sequence[Asked]], tuple[Sequence[Found | ImageError], float]]
"""Returns per row the teacher's detections or the error of its picture, and the seconds that the teacher took."""


@dataclass
class _Seen:
    """The state of a row between passes: its phrases so far, and detections of those that had a prompt of their own."""

    asked: Asked
    look: Look
    phrases: tuple[Phrase, ...]
    alone: dict[int, Found] = field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        """Phrases without a box."""
        return [i for i, phrase in enumerate(self.phrases) if not phrase.boxes]


def label_batch(
    questions: Questions[L], batch: Sequence[Asked], config: PseudoLabelConfig, ask: Ask
) -> tuple[dict[int, L], float]:
    """Label the rows of a batch; return them by row number, and the seconds that the teacher took."""
    answers, seconds = ask(batch)
    seen, labelled = list[_Seen](), dict[int, L]()
    for asked, answer in zip(batch, answers, strict=True):
        if isinstance(answer, ImageError):
            labelled[asked.row] = questions.left_out(asked.row, answer.reason)
            continue
        found, mirrored = (None if each is None else questions.by_phrase(each) for each in answer)
        assert found is not None
        look = Look(asked.size, found, mirrored, in_pass=1 if config.passes else None)
        seen.append(_Seen(asked, look, questions.select(asked.row, look)))
    for number, again in enumerate(config.passes, 2):
        if again.alone:
            seconds += _ask_alone(questions, seen, config.batch_size, ask)
        for each in seen:
            _label_again(questions, each, again, number)
    return labelled | {each.asked.row: questions.labelled(each.asked.row, each.phrases) for each in seen}, seconds


def _label_again(questions: Questions[L], seen: _Seen, again: PassConfig, number: int) -> None:
    """Select boxes for the phrases that have none, with the settings of a further pass."""
    look = replace(seen.look, min_score=again.min_score, in_pass=number)
    if again.alone:
        found = [seen.alone[i] for i in seen.missing if i in seen.alone]
        mirrored = [mirror for _, mirror in found if mirror is not None]
        if not found:
            return
        look = replace(
            look,
            detections=merge_detections([detections for detections, _ in found]),
            mirrored=merge_detections(mirrored) if mirrored else None,
        )
    if seen.missing:
        seen.phrases = questions.select(seen.asked.row, look, seen.phrases)


def _ask_alone(questions: Questions[L], seen: Sequence[_Seen], batch_size: int, ask: Ask) -> float:
    """Run the teacher on prompts of one phrase each, for phrases without a box; return the teacher's seconds.

    Each phrase is asked about alone once, whatever the number of passes. One whose picture fails stays without
    detections.
    """
    waiting = [(each, i) for each in seen for i in each.missing if i not in each.alone]
    seconds = 0.0
    for start in range(0, len(waiting), batch_size):
        some = waiting[start : start + batch_size]
        asked = [replace(each.asked, prompts=(questions.alone(each.asked.row, i),)) for each, i in some]
        answers, more = ask(asked)
        seconds += more
        for (each, i), answer in zip(some, answers, strict=True):
            if not isinstance(answer, ImageError):
                found, mirrored = answer
                each.alone[i] = _of_phrase(found, i), None if mirrored is None else _of_phrase(mirrored, i)
    return seconds


def _of_phrase(found: Detections, number: int) -> Detections:
    return replace(found, phrase_index=torch.full_like(found.phrase_index, number))
