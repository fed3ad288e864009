"""Predictions at rest: one Parquet file a split and task, from which every metric is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glip_model.structures import Detections
from pipeline.data.shards import read_table
from pipeline.errors import BenchmarkError

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),  # row of the split's shards, counted over all of them
        pa.field("label", pa.int32(), nullable=False),  # category id, or phrase of the caption counted from 0
        *(pa.field(side, pa.float32(), nullable=False) for side in ("x1", "y1", "x2", "y2", "score")),
    ]
)


@dataclass(frozen=True)
class Predictions:
    """Boxes of a split as flat arrays, in the order of its rows, best score first within a row."""

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
        """Return the positions of every row's boxes; rows without any are absent."""
        if not len(self):
            return {}
        order = np.argsort(self.numbers, kind="stable")
        numbers, starts = np.unique(self.numbers[order], return_index=True)
        return dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))


def to_table(
    keys: Sequence[str], numbers: Sequence[int], detections: Sequence[Detections], labels: Sequence[int] | None
) -> pa.Table:
    """Flatten detections of several rows.

    Args:
        keys: per row.
        numbers: per row.
        detections: per row.
        labels: what phrase index i stands for; None keeps the index.
    """
    counts = [len(found) for found in detections]
    index = np.concatenate([found.phrase_index.numpy() for found in detections] or [np.zeros(0, np.int64)])
    boxes = np.concatenate([found.boxes_xyxy.numpy() for found in detections] or [np.zeros((0, 4), np.float32)])
    scores = np.concatenate([found.scores.numpy() for found in detections] or [np.zeros(0, np.float32)])
    columns = [
        pa.array([key for key, count in zip(keys, counts, strict=True) for _ in range(count)], pa.string()),
        pa.array(np.repeat(np.asarray(numbers, np.int32), counts)),
        pa.array((index if labels is None else np.asarray(labels)[index]).astype(np.int32)),
        *(pa.array(boxes[:, side].astype(np.float32)) for side in range(4)),
        pa.array(scores.astype(np.float32)),
    ]
    return pa.Table.from_arrays(columns, schema=PREDICTION_SCHEMA)


def write_predictions(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write predictions whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.concat_tables([PREDICTION_SCHEMA.empty_table(), *tables]), aside, compression="zstd")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_predictions(path: Path) -> Predictions:
    """Read what ``write_predictions`` wrote; ShardError when the file is missing or broken."""
    table = read_table(path, PREDICTION_SCHEMA.names)
    boxes = np.stack([table[side].to_numpy() for side in ("x1", "y1", "x2", "y2")], 1)
    return Predictions(
        keys=tuple(table["key"].to_pylist()),
        numbers=table["number"].to_numpy(),
        labels=table["label"].to_numpy(),
        boxes_xyxy=boxes,
        scores=table["score"].to_numpy(),
    )


def check_rows(predictions: Predictions, keys: Sequence[str], name: str) -> None:
    """Raise BenchmarkError when predictions were made for other rows than these."""
    for key, number in zip(predictions.keys, predictions.numbers.tolist(), strict=True):
        if number >= len(keys) or keys[number] != key:
            raise BenchmarkError(
                f"{name}: predictions are for row {number} = {key!r}, which is not in the records; run: dvc repro"
            )
