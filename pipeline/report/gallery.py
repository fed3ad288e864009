"""Pictures that show where a model gains on another and where it loses, with the boxes drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.ops import nms

from glip_model.boxes import pairwise_iou
from glip_model.drawing import LabelledBox, draw_boxes
from glip_model.images import ImageError
from pipeline.evaluation.flickr30k import IOU_THRESHOLD
from pipeline.evaluation.judged import SHOWN_SCORE, Judged
from pipeline.evaluation.labelled import found_boxes, label_names, true_boxes
from pipeline.evaluation.predictions import NO_BOXES
from pipeline.store.drawing import join_pictures
from pipeline.store.records import GroundingRecord

GAP = 12
"""Pixels between pictures that stand side by side."""
_MINOR = 0.1
"""What an object counts that is not novel, beside those that are."""


def choose_gallery(judged: Judged, pair: tuple[str, str | None], count: int) -> list[int]:
    """Return the pictures where one model gains most on another, then a quarter where it loses most.

    An object counts as found when a box that is drawn overlaps it by half; novel ones count most, others break ties.

    Args:
        judged: the benchmark.
        pair: the model, and the one it is compared with; None takes what it finds against what it misses.
        count: pictures, or all if there are fewer.
    """
    model, other = pair
    found, total = found_objects(judged, model)
    gains = found - (found_objects(judged, other)[0] if other else total - found)
    order = np.argsort(-gains, kind="stable")
    losses = count // 4
    best, worst = order[: count - losses], order[max(0, len(order) - losses) :]
    return list(dict.fromkeys(int(i) for i in [*best, *worst]))  # a small set may have a picture in both


def found_objects(judged: Judged, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows,) twice: how many objects the drawn boxes of a model find, and how many there are, by weight."""
    novel = {category.id for category in judged.categories if category.split == "novel"}
    found, total = np.zeros((2, len(judged.records)))
    predictions = judged.predictions[model]
    for number, record in enumerate(judged.records):
        rows = true_boxes(record)
        if not rows:
            continue
        if isinstance(record, GroundingRecord):
            novel = {i for i, phrase in enumerate(record.phrases) if phrase.split == "novel"}
        labels = np.array([label for label, _ in rows], np.int64)
        weights = np.where([label in novel for label, _ in rows], 1.0, _MINOR)
        mine = _shown(judged, model, number)
        truth = torch.tensor([xyxy for _, xyxy in rows])
        overlap = pairwise_iou(torch.from_numpy(predictions.boxes_xyxy[mine]), truth).numpy()
        is_found = ((overlap >= IOU_THRESHOLD) & (predictions.labels[mine][:, None] == labels)).any(0)
        found[number], total[number] = weights[is_found].sum(), weights.sum()
    return found, total


def draw_rows(judged: Judged, numbers: Sequence[int], models: Sequence[str | None]) -> Iterator[list[Image.Image]]:
    """Yield for every number its picture once a model, with the boxes that it found; with the truth for None."""
    for number, picture in zip(numbers, judged.benchmark.pictures(numbers), strict=True):
        if isinstance(picture, ImageError):  # nothing was found in it either
            record = judged.records[number]
            picture = Image.new("RGB", (record.width, record.height), "grey")
        yield [_draw(judged, number, model, picture) for model in models]


def side_by_side(judged: Judged, numbers: Sequence[int], models: Sequence[str | None]) -> Image.Image:
    """Return one picture: a row a test picture (at least one), a column a model or the truth, all of one width."""
    rows = list(draw_rows(judged, numbers, models))
    width = rows[0][0].width
    return join_pictures([[_resize_to_width(picture, width) for picture in row] for row in rows], GAP)


def _draw(judged: Judged, number: int, model: str | None, picture: Image.Image) -> Image.Image:
    record = judged.records[number]
    names, truth = label_names(record, judged.categories), [(*each, None) for each in true_boxes(record)]
    boxes = truth if model is None else found_boxes(judged.predictions[model], _shown(judged, model, number))
    # A thing has the same colour in all pictures of a row: the truth's order first.
    groups = {label: group for group, label in enumerate(dict.fromkeys(label for label, *_ in (*truth, *boxes)))}
    labelled = [LabelledBox(box, names.get(label, str(label)), score, groups[label]) for label, box, score in boxes]
    return draw_boxes(picture, sorted(labelled, key=lambda box: box.group))


def _shown(judged: Judged, model: str, number: int) -> np.ndarray:
    """Return the boxes of a row that are drawn, best first.

    Of detections those of some score that no better one of any category overlaps by half, so that pictures stay
    legible; otherwise the best one of every phrase.
    """
    found, mine = judged.predictions[model], judged.rows_found[model].get(number, NO_BOXES)
    if judged.benchmark.task == "detection":
        mine = mine[found.scores[mine] >= SHOWN_SCORE]
        kept = nms(torch.from_numpy(found.boxes_xyxy[mine]), torch.from_numpy(found.scores[mine]), IOU_THRESHOLD)
        return np.asarray(mine[kept.numpy()])
    return found.best_of_labels(mine)


def _resize_to_width(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, max(1, round(picture.height * width / picture.width))))
