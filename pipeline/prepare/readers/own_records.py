"""Detection records of this project as raw data: what ``glip label`` or ``prepare`` wrote, to be learned from again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import Part, RawDetection, RawImage, RawObject, RawRow, RawTable, Reject, SourceContext, Url
from pipeline.store.records import NOTHING_FOUND, DetectionRecord
from pipeline.store.shards import (
    holds_detections,
    list_shards,
    read_categories,
    read_end,
    read_shard,
    rows_sha256,
)
from pipeline.store.storage import Place, to_place
from pipeline.store.urls import redact


def read_detection_records(context: SourceContext, *, shards: Url, min_score: float = 0.0) -> list[RawTable]:
    """Shards of detection records, as ``glip label`` writes them; boxes keep their scores.

    Pictures that the teacher could not look at are rejects. One where nothing was found is a picture without boxes.

    Options:
        shards: the folder of part-*.parquet.
        min_score: boxes below it are left out.
    """
    places = list_shards(to_place(shards))
    if not holds_detections(places[0]):
        raise MissingInputError(f"{places[0]}: no detection records; name a folder that glip label --names wrote")
    categories = read_categories(places[0])

    def parts(rows_per_part: int) -> Iterator[Part]:
        for place in places:
            if read_categories(place) != categories:
                raise MissingInputError(f"{place}: has another vocabulary than {places[0].name}; label it anew")
            count = read_end(place)[0].num_rows
            yield Part(redact(str(place)), f"{rows_sha256(place)} {min_score}", partial(_rows, place, min_score), count)

    return [RawTable(DetectionRecord, parts, categories=tuple(categories))]


def _rows(place: Place, min_score: float) -> Iterator[RawRow]:
    for record in read_shard(place, DetectionRecord):
        if record.reject_reason not in (None, NOTHING_FOUND):
            yield Reject(record.key, record.reject_reason)
            continue
        objects = [
            RawObject(xyxy=box.xyxy, category_id=box.category_id, is_crowd=box.is_crowd, area=box.area, score=box.score)
            for box in record.objects
            if box.score >= min_score
        ]
        image = RawImage(
            data=record.image.bytes, url=record.image.path, height=record.height or None, width=record.width or None
        )
        yield RawDetection(
            name=record.key,
            image=image,
            objects=objects,
            negative_category_ids=record.negative_category_ids,
            not_exhaustive_category_ids=record.not_exhaustive_category_ids,
        )
