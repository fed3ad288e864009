"""From a teacher's answers about a batch of pictures to labelled rows, in one pass over them or several.

Phrases that have no box after a pass are gone through again as the settings say: from lower scores, or each asked for
by itself. What was found stays, and what it holds is not free for others.
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
    """A row whose picture can be looked at."""

    row: int
    image: Image.Image | ResizedImage
    prompts: tuple[Prompt, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in whose pixels boxes are told."""
        image = self.image
        return image.original_size if isinstance(image, ResizedImage) else (image.height, image.width)


Found = tuple[Detections, Detections | None]
"""In a picture, and in its mirror image where that was asked about."""
Ask = Callable[[Sequence[Asked]], tuple[Sequence[Found | ImageError], float]]
"""What the teacher finds, or why nothing is known, and the seconds that it worked."""


@dataclass
class _Seen:
    """A row, what its phrases have so far, and what was found for those that were asked for by themselves."""

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
    """Label the rows of a batch; return them by their places, and the seconds that the teacher worked."""
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
    """Give phrases without a box what they get in a further pass."""
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
    """Ask for each phrase without a box by itself, unless it was asked for so before; return the teacher's seconds.

    Of what nothing is known, nothing is found.
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
