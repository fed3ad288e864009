"""What a model finds, in place of what people drew: the truth of pictures for which there is no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from glip_model.predictor import GLIPPredictor
from pipeline.evaluation.benchmark import list_benchmarks
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.store.records import Category, DetectedObject, DetectionRecord
from pipeline.store.shards import categories_to_metadata, read_shard, shard_name, write_shard
from pipeline.store.storage import Place


def write_stand_in(
    predictor: GLIPPredictor,
    records: Place,
    names: Sequence[str],
    config: EvaluateConfig,
    min_score: float,
    out: Place,
    allowed: Sequence[str] = (),
) -> None:
    """Write the pictures of detection records anew, with the boxes that a model finds of other names.

    Args:
        predictor: with the model.
        records: folder of a split, by task.
        names: to ask for.
        config: section ``evaluate``.
        min_score: boxes below it are left out.
        out: folder for the shard.
        allowed: where pictures may be besides ``records``, see ``allowed_roots``.
    """
    categories = [Category(id=number, name=name) for number, name in enumerate(names, 1)]
    found: list[DetectionRecord] = []
    for benchmark in list_benchmarks(records.parent, [records.name], allowed)[0]:
        rows = [record for path in benchmark.shards for record in read_shard(path, DetectionRecord)]
        for record, picture in zip(rows, benchmark.pictures(range(len(rows))), strict=True):
            if isinstance(picture, Image.Image):
                [detected] = predictor.detect(
                    [picture], names, config.max_prompt_categories, max_detections=config.max_detections
                )
                kept = detected.above(min_score)
                boxes = zip(kept.phrase_index.tolist(), kept.boxes_xyxy.tolist(), kept.scores.tolist(), strict=True)
                objects = tuple(
                    DetectedObject(category_id=number + 1, xyxy=tuple(box), score=score) for number, box, score in boxes
                )
                found.append(replace(record, objects=objects))
    write_shard(out / shard_name(0), found, DetectionRecord, categories_to_metadata(categories))
