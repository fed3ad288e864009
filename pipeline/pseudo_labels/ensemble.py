"""Several teachers as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from glip_model.images import ImageError
from glip_model.prompts import Prompt
from glip_model.resizing import ResizeRule
from glip_model.structures import Detections
from pipeline.errors import ConfigError
from pipeline.pseudo_labels.fusion import fuse
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import (
    Answer,
    PreparedTeacher,
    Teacher,
    answer_question,
    describe_teacher,
    divide_names,
    open_teacher,
    prepare_question,
    prepared,
)
from pipeline.store.provenance import fingerprint

Names = str | Sequence[str]
"""One teacher, or several."""


class EnsembleTeacher:
    """Runs several teachers on the same prompts and merges their boxes; a picture that fails for one fails for all.

    Args:
        teachers: by name, at least two.
        fusion_threshold, nms_threshold: see ``fuse``.

    Attributes:
        resize_rule: that of all teachers if they agree; else pictures come as they are.
    """

    def __init__(
        self, teachers: Sequence[tuple[str, Teacher | PreparedTeacher]], fusion_threshold: float, nms_threshold: float
    ) -> None:
        self._names = tuple(name for name, _ in teachers)
        self._teachers = [prepared(teacher) for _, teacher in teachers]
        self._thresholds = fusion_threshold, nms_threshold
        first, *others = (teacher.resize_rule for teacher in self._teachers)
        self.resize_rule: ResizeRule | None = first if all(rule == first for rule in others) else None

    def each(self, change: Callable[[PreparedTeacher], PreparedTeacher]) -> EnsembleTeacher:
        """Return the same of teachers that are changed."""
        changed = [(name, change(teacher)) for name, teacher in zip(self._names, self._teachers, strict=True)]
        return EnsembleTeacher(changed, *self._thresholds)

    def divide(self, names: Sequence[str]) -> list[list[int]]:
        """Return which names are asked for at once, so that all teachers can; ValueError where one is too long."""
        chunks = [list(range(len(names)))]
        for teacher in self._teachers:
            chunks = [
                [chunk[i] for i in part]
                for chunk in chunks
                for part in divide_names(teacher, [names[i] for i in chunk])
            ]
        return chunks

    def prepare(self, images: Sequence[Any], prompts: Sequence[Prompt]) -> Any:
        """Return what ``answer`` takes."""
        return self.prepare_several(images, [(prompt,) for prompt in prompts])

    def prepare_several(self, images: Sequence[Any], prompts: Sequence[Sequence[Prompt]]) -> Any:
        """Return what ``answer`` takes, of several prompts a picture."""
        return [prepare_question(teacher, images, prompts) for teacher in self._teachers]

    def answer(self, question: Any) -> list[Answer]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        answers = [answer_question(*each) for each in zip(self._teachers, question, strict=True)]
        return [self._fused(found) for found in zip(*answers, strict=True)]

    def _fused(self, found: Sequence[Answer]) -> Answer:
        known = [answer for answer in found if isinstance(answer, Detections)]
        if len(known) < len(found):
            return next(answer for answer in found if isinstance(answer, ImageError))
        return fuse(known, self._names, *self._thresholds)


def open_teachers(names: Names, config: PseudoLabelConfig) -> Teacher | PreparedTeacher:
    """Load a teacher, or several as one; MissingInputError as ``open_teacher``, ConfigError where one comes twice."""
    if isinstance(names, str):
        return open_teacher(names, precision=config.precision)
    short = short_names(names)
    if len(names) == 1:
        return open_teachers(names[0], config)
    opened = [(name, open_teacher(each, precision=config.precision)) for name, each in zip(short, names, strict=True)]
    return EnsembleTeacher(opened, config.fusion_threshold, config.nms_threshold)


def describe_teachers(names: Names) -> dict[str, Any]:
    """Return what ``describe_teacher`` does; of several teachers as one that has them under ``teachers``."""
    if isinstance(names, str):
        return describe_teacher(names)
    if len(names) == 1:
        return describe_teacher(names[0])
    each = [describe_teacher(name) for name in names]
    whole = {"name": " + ".join(short_names(names)), "sha256": fingerprint({"teachers": each}), "files": {}}
    return whole | {"teachers": each}


def extras_for(names: Names, config: PseudoLabelConfig) -> set[str]:
    """Return which of ``records.EXTRAS`` labels by these teachers with these settings have."""
    fields = {
        ("teachers", "agreement"): not isinstance(names, str) and len(names) > 1,
        ("in_pass",): bool(config.passes),
        ("category",): bool(config.names),
    }
    return {name for group, is_there in fields.items() if is_there for name in group}


def short_names(names: Sequence[str]) -> list[str]:
    """Return what boxes call each of several teachers: the end of its name, all of it where others end alike.

    Raises:
        ConfigError: one is named twice.
    """
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ConfigError(f"the teacher {repeated[0]} is named twice; two of the same agree on everything")
    ends = [PurePath(name).name or name for name in names]
    return [end if ends.count(end) == 1 else name for end, name in zip(ends, names, strict=True)]
