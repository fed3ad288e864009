"""A teacher that looks at large pictures piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from glip_model.images import ImageError
from glip_model.prompts import Prompt
from glip_model.resizing import ResizeRule
from glip_model.structures import Detections
from glip_model.tiling import Tile, merge_tiles, tiles
from pipeline.pseudo_labels.teachers import Answer, PreparedTeacher, answer_question, prepare_question


class TiledTeacher:
    """Asks another teacher about overlapping pieces of pictures, and about each whole, and puts the answers together.

    Pictures come as they are, and pieces are cut when their turn comes: a few of them are in memory at a time.

    Args:
        teacher: is asked.
        side: of a piece in pixels.
        batch_size: pieces at once.
        nms_threshold: IoU above which boxes of a phrase suppress one another.
    """

    resize_rule: ResizeRule | None = None

    def __init__(self, teacher: PreparedTeacher, side: int, batch_size: int, nms_threshold: float) -> None:
        self._teacher, self._side = teacher, side
        self._batch_size, self._nms_threshold = batch_size, nms_threshold
        if hasattr(teacher, "divide"):
            self.divide = teacher.divide

    def prepare(self, images: Sequence[Any], prompts: Sequence[Prompt]) -> Any:
        """Return what ``answer`` takes."""
        return images, [(prompt,) for prompt in prompts]

    def prepare_several(self, images: Sequence[Any], prompts: Sequence[Sequence[Prompt]]) -> Any:
        """Return what ``answer`` takes, of several prompts a picture."""
        return images, prompts

    def answer(self, question: Any) -> list[Answer]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        images, prompts = question
        sizes = [(image.height, image.width) for image in images]
        places = [tiles(size, self._side) for size in sizes]
        found: list[dict[Tile, Answer]] = [{} for _ in images]
        for batch in self._batches([(i, place) for i, each in enumerate(places) for place in each], sizes):
            pieces = [self._cut(images[i], place) for i, place in batch]
            asked = prepare_question(self._teacher, pieces, [prompts[i] for i, _ in batch])
            for (i, place), detections in zip(batch, answer_question(self._teacher, asked), strict=True):
                found[i][place] = detections
        return [self._merge(*each) for each in zip(found, places, sizes, strict=True)]

    def _merge(self, found: Mapping[Tile, Answer], places: Sequence[Tile], size: tuple[int, int]) -> Answer:
        """Return what is found in all pieces of a picture, or why nothing is known of one."""
        parts = [answer for place in places if isinstance(answer := found[place], Detections)]
        if len(parts) < len(places):
            return next(answer for answer in found.values() if isinstance(answer, ImageError))
        return merge_tiles(parts, places, size, self._nms_threshold)

    def _cut(self, image: Image.Image, place: Tile) -> Any:
        piece = image if place == (0, 0, image.width, image.height) else image.crop(place)
        return piece if self._teacher.resize_rule is None else self._teacher.resize_rule(piece)

    def _batches(
        self, pieces: Sequence[tuple[int, Tile]], sizes: Sequence[tuple[int, int]]
    ) -> list[list[tuple[int, Tile]]]:
        """Return pieces of one padded size together, at most a batch of them."""
        rule, groups = self._teacher.resize_rule, dict[Any, list[tuple[int, Tile]]]()
        for i, (x1, y1, x2, y2) in pieces:
            shape = None if rule is None else rule.padded(rule.size((y2 - y1, x2 - x1)))
            groups.setdefault(shape, []).append((i, (x1, y1, x2, y2)))
        size = self._batch_size
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
