"""Validation during training: the leading measures of a dev set, and some pictures to look at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from glip_model.drawing import LabelledBox, draw_boxes
from glip_model.glip import GLIP
from glip_model.predictor import GLIPPredictor
from glip_model.whole_files import save_picture
from pipeline.errors import MissingInputError
from pipeline.evaluation.benchmark import TASKS, Benchmark, list_benchmarks, predict_shard, predictions_of
from pipeline.evaluation.labelled import found_boxes, label_names, true_boxes
from pipeline.evaluation.predictions import NO_BOXES, Predictions, read_predictions, write_predictions
from pipeline.evaluation.scoring import ALL, LEADING, leading, score
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.store.drawing import join_pictures
from pipeline.store.shards import read_metadata, read_shard, shard_name, write_shard
from pipeline.store.storage import Place, is_folder


@dataclass(frozen=True)
class DevSet:
    """Judges models by the benchmarks of a split, in the process that calls it."""

    folder: Place
    """Records of the split, by task."""
    config: EvaluateConfig
    rows: int
    """Rows of each benchmark that are evaluated, the first ones."""
    pictures: int
    """Pictures of each benchmark that are drawn."""
    allowed: tuple[str, ...] = ()
    """Where pictures may be besides the records' folder, see ``allowed_roots``."""

    def benchmarks(self) -> list[Benchmark]:
        """Return the benchmarks; MissingInputError where there are none."""
        if not is_folder(self.folder):
            raise MissingInputError(f"{self.folder}: no such folder; run: dvc repro prepare")
        return list_benchmarks(self.folder.parent, [self.folder.name], self.allowed)[0]

    def __call__(self, model: GLIP, tokenizer: Any, samples: Path) -> dict[str, float]:
        """Return the leading measure of every benchmark in percent, by its name; what has no boxes has no score.

        Args:
            model: put into eval mode.
            tokenizer: of the model.
            samples: folder for sample pictures.
        """
        predictor = GLIPPredictor(model, tokenizer, next(model.parameters()).device, self.config.precision)
        scores = {}
        for number, whole in enumerate(self.benchmarks()):
            with tempfile.TemporaryDirectory() as folder:
                benchmark = _first_rows(whole, self.rows, Path(folder) / "records")
                places = predictions_of(benchmark, Path(folder) / "predictions")
                for path, place in zip(benchmark.shards, places, strict=True):
                    found = predict_shard(predictor, path, benchmark.task, self.config, benchmark.roots)
                    write_predictions(place, found.table, {}, found.missing)
                predictions = read_predictions(places, benchmark.rows)
                values = leading(benchmark.task, score(benchmark, predictions).metrics)
                value = values.get(ALL, values.get("fixed"))
                if value is not None:
                    scores[f"{benchmark.name}/{LEADING[benchmark.task]}"] = value
                for row, picture in _drawn(benchmark, predictions, self.pictures):
                    save_picture(picture, samples / f"{benchmark.task}-{number}-{row:03d}.jpg", quality=90)
        return scores


def _first_rows(benchmark: Benchmark, rows: int, folder: Path) -> Benchmark:
    """Return a benchmark of the first rows; a shard that is cut is written to ``folder``."""
    shards: list[Place] = []
    counts: list[int] = []
    for number, (path, count) in enumerate(zip(benchmark.shards, benchmark.rows, strict=True)):
        left = min(count, rows - sum(counts))
        if left < count and left > 0:
            record_type = TASKS[benchmark.task]
            records = read_shard(path, record_type)[:left]
            path = folder / shard_name(number)
            write_shard(path, records, record_type, read_metadata(benchmark.shards[number]))
        if left > 0:
            shards.append(path)
            counts.append(left)
    return replace(benchmark, shards=tuple(shards), rows=tuple(counts))


def _drawn(benchmark: Benchmark, predictions: Predictions, count: int) -> Iterator[tuple[int, Image.Image]]:
    """Yield row and picture of the first rows: labelled boxes on the left, as many of those found on the right."""
    categories = benchmark.categories()
    rows = list(range(min(count, sum(benchmark.rows))))
    found, records = predictions.by_number(), benchmark.read()
    for row, image in zip(rows, benchmark.pictures(rows), strict=True):
        if not isinstance(image, Image.Image):
            continue
        record = records[row]
        texts, truth = label_names(record, categories), true_boxes(record)
        groups = {label: i for i, label in enumerate(sorted(texts))}
        labelled = [LabelledBox(box, texts[label], group=groups[label]) for label, box in truth if label in texts]
        best = found.get(row, NO_BOXES)[: max(1, len(labelled))]
        guessed = [
            LabelledBox(box, texts.get(label, getattr(record, "caption", "")), score, groups.get(label, 0))
            for label, box, score in found_boxes(predictions, best)
        ]
        yield row, join_pictures([[draw_boxes(image, labelled, "labelled"), draw_boxes(image, guessed, "found")]])
