"""Predictions at rest: a Parquet file for every shard of records, from which all metrics are computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glip_model.structures import Detections
from pipeline.errors import BenchmarkError
from pipeline.store.atomic import replacing, storage_errors
from pipeline.store.shards import PROVENANCE_KEY, read_metadata, read_table
from pipeline.store.storage import Place

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),  # row of the shard of records
        pa.field("label", pa.int32(), nullable=False),  # category id, or phrase of the caption counted from 0
        *(pa.field(side, pa.float32(), nullable=False) for side in ("x1", "y1", "x2", "y2", "score")),
    ]
)
NO_BOXES = np.zeros(0, np.int64)
"""Positions of the boxes of a row without any."""
MISSING_KEY = "glip.missing_pictures"
"""Metadata key of a file: the rows whose picture could not be read, by key, with the reason."""


@dataclass(frozen=True)
class Predictions:
    """Boxes as flat arrays, in the order of their rows, best score first within a row."""

    keys: tuple[str, ...]
    """(M,) key of the row that each box belongs to."""
    numbers: np.ndarray
    """(M,) int32 number of that row."""
    labels: np.ndarray
    """(M,) int32 category id or phrase number."""
    boxes_xyxy: np.ndarray
    """(M, 4) float32 pixels."""
    scores: np.ndarray
    """(M,) float32."""

    def __len__(self) -> int:
        """Count the boxes."""
        return len(self.scores)

    def by_number(self) -> dict[int, np.ndarray]:
        """Return the positions of every row's boxes, best score first; rows without any are absent."""
        order = np.lexsort((-self.scores, self.numbers))
        numbers, starts = np.unique(self.numbers[order], return_index=True)
        return dict(zip(numbers.tolist(), np.split(order, starts)[1:], strict=True))

    def best_of_labels(self, mine: np.ndarray) -> np.ndarray:
        """Return of the positions of a row's boxes, best first, those that are the first of their label."""
        _, first = np.unique(self.labels[mine], return_index=True)
        return np.asarray(mine[np.sort(first)])


def to_table(keys: Sequence[str], detections: Sequence[Detections], labels: Sequence[int] | None) -> pa.Table:
    """Flatten detections of several rows.

    Args:
        keys: per row.
        detections: per row.
        labels: what phrase index i stands for; None keeps the index.
    """
    counts = [len(found) for found in detections]
    padded = [Detections.none(), *detections]
    index, boxes, scores = (
        np.concatenate([getattr(found, name).numpy() for found in padded])
        for name in ("phrase_index", "boxes_xyxy", "scores")
    )
    columns = [
        pa.array([key for key, count in zip(keys, counts, strict=True) for _ in range(count)], pa.string()),
        pa.array(np.repeat(np.arange(len(keys), dtype=np.int32), counts)),
        pa.array((index if labels is None else np.asarray(labels)[index]).astype(np.int32)),
        *(pa.array(boxes[:, side].astype(np.float32)) for side in range(4)),
        pa.array(scores.astype(np.float32)),
    ]
    return pa.Table.from_arrays(columns, schema=PREDICTION_SCHEMA)


def write_predictions(
    place: Place, table: pa.Table, provenance: Mapping[str, Any], missing: Mapping[str, str] | None = None
) -> None:
    """Write the predictions of a shard whole or not at all; StorageError where that cannot be.

    Args:
        place: of the file.
        table: see ``to_table``.
        provenance: what the predictions depend on.
        missing: key to reason of the rows whose pictures could not be read.
    """
    metadata = {PROVENANCE_KEY: json.dumps(provenance), MISSING_KEY: json.dumps(missing or {})}
    with storage_errors(place), replacing(place) as aside:
        pq.write_table(table.replace_schema_metadata(metadata), aside, compression="zstd", write_page_checksum=True)


def read_predictions(places: Sequence[Place], rows: Sequence[int]) -> Predictions:
    """Read the predictions of a benchmark's shards as one, rows counted over all of them.

    Args:
        places: what ``write_predictions`` wrote, in order.
        rows: of the shard of records behind each.

    Raises:
        ShardError: a file is missing or broken.
    """
    tables = [read_table(place, PREDICTION_SCHEMA.names) for place in places]
    starts = np.cumsum([0, *rows[:-1]])
    numbers = [table["number"].to_numpy() + start for table, start in zip(tables, starts, strict=True)]
    table = pa.concat_tables([PREDICTION_SCHEMA.empty_table(), *tables])
    keys = table["key"].combine_chunks().dictionary_encode()  # one string a row, not one a box
    return Predictions(
        keys=tuple(np.array(keys.dictionary.to_pylist(), object)[keys.indices.to_numpy()]),
        numbers=np.concatenate([np.zeros(0, np.int32), *numbers]).astype(np.int32),
        labels=table["label"].to_numpy(),
        boxes_xyxy=np.stack([table[side].to_numpy() for side in ("x1", "y1", "x2", "y2")], 1),
        scores=table["score"].to_numpy(),
    )


def read_missing(places: Sequence[Place]) -> dict[str, str]:
    """Return key to reason of the rows whose pictures could not be read."""
    missing: dict[str, str] = {}
    for place in places:
        missing |= json.loads(read_metadata(place).get(MISSING_KEY, "{}"))
    return missing


def check_rows(predictions: Predictions, keys: Sequence[str], name: str) -> None:
    """Raise BenchmarkError when predictions were made for other rows than these."""
    numbers, places = np.unique(predictions.numbers, return_index=True)
    for number, place in zip(numbers.tolist(), places.tolist(), strict=True):
        key = predictions.keys[place]
        if number >= len(keys) or keys[number] != key:
            raise BenchmarkError(
                f"{name}: predictions are for row {number} = {key!r}, which is not in the records; run: dvc repro"
            )
