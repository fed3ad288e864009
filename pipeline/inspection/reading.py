"""The door to shards of labels: grounding and detection records, of a teacher and of people alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow.dataset

from pipeline.errors import MissingInputError, ShardError
from pipeline.inspection.defects import sound_record
from pipeline.inspection.detections import (
    DetectionLabels,
    as_grounding_row,
    label_columns,
    names_in,
)
from pipeline.store.dataset import open_dataset
from pipeline.store.records import GROUNDING_SCHEMA, DetectionRecord, GroundingRecord
from pipeline.store.row_groups import Recent, RowGroups
from pipeline.store.shards import KIND, KIND_KEY, holds_detections, list_shards, read_metadata
from pipeline.store.storage import Place, exists, to_place


def read_pseudo_labels(url: str | Path) -> pyarrow.dataset.Dataset:
    """Open labels as one lazy table, for notebooks: as they are stored, grounding or detection records.

    Nothing is read until it is asked for, and then only the columns that are: without ``image`` a scan of millions of
    rows does not touch their pictures.

        labels = read_pseudo_labels("s3://bucket/pseudo_labels")
        labels.head(5).to_pandas()
        duckdb.sql("SELECT source, count(*) FROM labels GROUP BY 1")

    Args:
        url: folder of ``part-*.parquet`` shards, one of them, or a URL such as ``s3://…``.

    Raises:
        MissingInputError: there are no shards.
        ShardError: they hold other records.
    """
    place = to_place(str(url))
    next(label_shards(place))
    return open_dataset(place)


def open_labels(place: Place) -> pyarrow.dataset.Dataset | DetectionLabels:
    """Open labels as a table that DuckDB can ask, with the columns of grounding records; errors as above.

    That of detection records is without the pictures.
    """
    shards = list(label_shards(place))
    return DetectionLabels(shards) if holds_detections(shards[0]) else open_dataset(place)


def labelled_names(place: Place) -> list[str] | None:
    """Return the names that pictures were labelled with, in order; None where there are captions. Errors as above."""
    shard = next(label_shards(place))
    return list(names_in(shard).values()) if holds_detections(shard) else None


def label_shards(place: Place) -> Iterator[Place]:
    """Yield the shards of a folder, or one that is named itself, each when its turn comes to be looked at.

    Raises:
        MissingInputError: there are none.
        ShardError: one is broken or holds other records.
    """
    for path in [place] if exists(place) else _list_shards(place):
        kind = read_metadata(path).get(KIND_KEY)
        if kind not in (KIND[GroundingRecord], KIND[DetectionRecord]):
            raise ShardError(
                f"{path}: holds {kind or 'no'} records; expected grounding or detection records, that is labels of a "
                "teacher or of people"
            )
        yield path


def read_records(found: Iterable[tuple[Place, int]], defects: Counter[str]) -> Iterator[GroundingRecord]:
    """Yield rows; of those that lie together in order, the pictures of each row group are read once.

    Args:
        found: shards and rows in them, from 0.
        defects: what is broken in them is left out, and counted here, by kind.

    Raises:
        ShardError: a shard is broken.
    """
    for shard, rows in groupby(found, key=itemgetter(0)):
        is_detection = holds_detections(shard)
        names = names_in(shard) if is_detection else {}
        groups = RowGroups([shard], label_columns(GROUNDING_SCHEMA.names, is_detection), is_repeated=False)
        tables = Recent(groups.read, 1)
        for _, row in rows:
            if row >= groups.rows.sum():
                raise ShardError(f"{shard}: has fewer rows than a moment ago; was it written anew? Ask again")
            group, place = groups.locate(row)
            (found_row,) = tables[group].slice(place, 1).to_pylist()
            yield sound_record(as_grounding_row(found_row, names) if is_detection else found_row, defects)


def read_record(shard: Place, row: int, defects: Counter[str] | None = None) -> GroundingRecord:
    """Return one row, as ``read_records`` does; raise ShardError where the shard is broken."""
    return next(read_records([(shard, row)], Counter() if defects is None else defects))


def _list_shards(folder: Place) -> list[Place]:
    try:
        return list_shards(folder)
    except MissingInputError:
        is_here = isinstance(folder, Path) and folder.is_dir()
        below = sorted({str(path.parent) for path in folder.glob("*/part-*.parquet")}) if is_here else []
        if below:
            raise MissingInputError(f"{folder}: no shards here; look into {' or '.join(below)}") from None
        raise
