"""What a tuned model gets wrong, as pictures beside it: what it takes for what, and where it does worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from glip_model.boxes import pairwise_iou
from glip_model.whole_files import save_picture
from pipeline.cli import printable
from pipeline.evaluation.benchmark import Benchmark
from pipeline.evaluation.flickr30k import IOU_THRESHOLD
from pipeline.evaluation.judged import SHOWN_SCORE, Judged, judge
from pipeline.evaluation.labelled import true_boxes
from pipeline.evaluation.predictions import NO_BOXES
from pipeline.report.gallery import side_by_side
from pipeline.store.folders import sent_folder
from pipeline.store.storage import Place, remove_folder

Call = tuple[int, int]
"""Places of what is shown and of what it is called among the categories; one beyond them is nothing."""
FOLDER = "mistakes"
"""Beside the model."""
CONFUSION_FILE = "confusion.png"
WORST = 8
"""Pictures that are drawn."""
SHOWN_NAMES = 24
"""Categories of the confusion picture; those with the fewest objects are left out."""
_CELL, _NAMES, _FONT = 34, 150, 12
"""Pixels of a cell and of the names beside it, and size of the letters."""
_MAX_CHARS = 22


def write_mistakes(benchmark: Benchmark, predictions: Place, model: str, out: Place) -> int:
    """Write the confusion picture and the worst pictures into a folder of ``out``; return how many of the latter.

    Args:
        benchmark: of detection.
        predictions: folder of MODEL/SPLIT/TASK.
        model: name of its folder there.
        out: folder of the model.
    """
    judged = judge(benchmark, predictions, [model])
    rows, names = calls_of(judged, model), [category.name for category in judged.categories]
    worst = worst_rows(rows, WORST)
    remove_folder(out / FOLDER)
    with sent_folder(out / FOLDER) as folder:
        save_picture(draw_confusion(confusion(rows, len(names)), names), folder / CONFUSION_FILE)
        for place, number in enumerate(worst, 1):
            picture = side_by_side(judged, [number], [None, model])
            save_picture(picture, folder / f"worst-{place:02d}.jpg", quality=90)
    return len(worst)


def worst_rows(rows: Sequence[Sequence[Call]], most: int) -> list[int]:
    """Return the rows with the most mistakes, the worst first; rows without any are none of them."""
    wrong = np.array([sum(shown != called for shown, called in calls) for calls in rows])
    return [int(i) for i in np.argsort(-wrong, kind="stable")[:most] if wrong[i]]


def calls_of(judged: Judged, model: str) -> list[list[Call]]:
    """Return what the objects of every row are called, and what is called where there is nothing.

    Boxes of some score choose, best first, the free object that they overlap most, by half at least, whatever it is
    called.
    """
    place = {category.id: i for i, category in enumerate(judged.categories)}
    nothing = len(place)
    predictions = judged.predictions[model]
    found = predictions.by_number()
    rows = []
    for number, record in enumerate(judged.records):
        truth = [(place[label], xyxy) for label, xyxy in true_boxes(record) if label in place]
        mine = found.get(number, NO_BOXES)
        mine = mine[predictions.scores[mine] >= SHOWN_SCORE]
        mine = mine[np.argsort(-predictions.scores[mine], kind="stable")]
        corners = torch.tensor([xyxy for _, xyxy in truth]).reshape(-1, 4)
        overlap = pairwise_iou(torch.from_numpy(predictions.boxes_xyxy[mine]), corners).numpy()
        shown = np.full(len(mine), nothing)
        for i in range(len(mine)):
            best = int(overlap[i].argmax()) if truth else 0
            if truth and overlap[i, best] >= IOU_THRESHOLD:
                shown[i] = truth[best][0]
                overlap[:, best] = 0.0  # taken
        calls = [
            (int(each), place.get(int(predictions.labels[at]), nothing)) for each, at in zip(shown, mine, strict=True)
        ]
        left = Counter(each for each, _ in truth) - Counter(each for each, _ in calls)
        rows.append([*calls, *((each, nothing) for each in left.elements())])
    return rows


def confusion(rows: Sequence[Sequence[Call]], num_names: int) -> np.ndarray:
    """Return (K + 1, K + 1) int64: rows are what is shown, columns what it is called.

    The last row counts boxes where there is nothing, the last column objects that nobody found.
    """
    counts = np.zeros((num_names + 1, num_names + 1), np.int64)
    for calls in rows:
        for call in calls:
            counts[call] += 1
    return counts


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Draw what ``confusion`` counted: the darker a cell, the larger its share of the row."""
    often = np.argsort(-counts[:-1].sum(1), kind="stable")[:SHOWN_NAMES]
    kept = [*sorted(often.tolist()), len(names)]
    shown = counts[np.ix_(kept, kept)]
    labels = [*(printable(names[i], "")[:_MAX_CHARS] for i in kept[:-1]), ""]
    side = _NAMES + _CELL * len(kept)
    page = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT)
    for i, label in enumerate(labels):
        at = _NAMES + _CELL * i
        draw.text((_NAMES - 6, at + _CELL / 2), label or "nothing there", "black", font, anchor="rm")
        upright = Image.new("RGB", (_NAMES, _CELL), "white")
        ImageDraw.Draw(upright).text((6, _CELL / 2), label or "not found", "black", font, anchor="lm")
        page.paste(upright.rotate(90, expand=True), (at, 0))
    for i, row in enumerate(shown):
        for j, count in enumerate(row):
            share = count / max(1, row.sum())
            right = i == j and i < len(kept) - 1
            tint = (
                (255 - int(200 * share), 255 - int(90 * share), 255) if right else (255, *[255 - int(170 * share)] * 2)
            )
            corner = _NAMES + _CELL * j, _NAMES + _CELL * i
            draw.rectangle((*corner, corner[0] + _CELL, corner[1] + _CELL), fill=tint, outline="lightgrey")
            if count:
                middle = corner[0] + _CELL / 2, corner[1] + _CELL / 2
                draw.text(middle, str(count), "black", font, anchor="mm")
    return page
