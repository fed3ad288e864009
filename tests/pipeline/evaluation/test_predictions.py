"""Predictions at rest: what is written comes back, broken files say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from glip_model.structures import Detections
from pipeline.errors import BenchmarkError, ShardError, StorageError
from pipeline.evaluation.predictions import (
    PREDICTION_SCHEMA,
    check_rows,
    read_missing,
    read_predictions,
    to_table,
    write_predictions,
)
from pipeline.store.shards import read_fingerprint


def detections(*rows: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    return Detections(
        torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        torch.tensor([row[1] for row in rows]),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
    )


FOUND = [
    detections(((1, 2, 3, 4), 0.75, 1), ((5, 6, 7, 8), 0.5, 0)),
    detections(),
    detections(((0.5, 0.25, 9, 9), 0.125, 1)),
]


def test_boxes_come_back_with_their_rows_and_category_ids(tmp_path: Path) -> None:
    path = tmp_path / "dev" / "detection" / "part-00000.parquet"
    write_predictions(
        path, to_table(["a", "b", "c"], FOUND, labels=[40, 70]), {"fingerprint": "f"}, {"b": "image_missing"}
    )
    got = read_predictions([path], [3])
    assert got.keys == ("a", "a", "c")
    assert got.numbers.tolist() == [0, 0, 2]
    assert got.labels.tolist() == [70, 40, 70]
    assert got.boxes_xyxy.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [0.5, 0.25, 9, 9]]
    assert got.boxes_xyxy.dtype == got.scores.dtype == np.float32
    assert got.scores.tolist() == [0.75, 0.5, 0.125]
    assert len(got) == 3
    assert read_missing([path]) == {"b": "image_missing"}
    assert read_fingerprint(path) == "f"


def test_without_labels_the_phrase_index_stays() -> None:
    table = to_table(["a", "b", "c"], FOUND, labels=None)
    assert table["label"].to_pylist() == [1, 0, 1]
    assert table.schema == PREDICTION_SCHEMA


@pytest.mark.parametrize("table", [to_table([], [], [3]), to_table(["a"], [detections()], None)])
def test_no_boxes_at_all_are_predictions_too(tmp_path: Path, table: Any) -> None:
    write_predictions(tmp_path / "p.parquet", table, {})
    got = read_predictions([tmp_path / "p.parquet"], [table.num_rows])
    assert len(got) == 0
    assert got.boxes_xyxy.shape == (0, 4)
    assert got.by_number() == {}


def test_rows_are_counted_over_all_shards(tmp_path: Path) -> None:
    # The second shard has four rows and no box in any; the third begins after all of these.
    parts = [(["a", "b"], [FOUND[1], FOUND[0]]), (["c"] * 4, [FOUND[1]] * 4), (["d"], [FOUND[2]])]
    places = [tmp_path / f"part-{i}.parquet" for i in range(3)]
    for place, (keys, found) in zip(places, parts, strict=True):
        write_predictions(place, to_table(keys, found, None), {})
    got = read_predictions(places, [2, 4, 1])
    assert got.numbers.tolist() == [1, 1, 6]
    assert got.keys == ("b", "b", "d")


def test_positions_by_row_keep_their_order(make_predictions: Any) -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    got = make_predictions([(4, 0, box, 0.9), (2, 0, box, 0.8), (4, 1, box, 0.7)]).by_number()
    assert {number: index.tolist() for number, index in got.items()} == {2: [1], 4: [0, 2]}


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, to_table(["a", "b", "c"], FOUND, None), {})

    def break_off(table: Any, where: Path, **options: Any) -> None:
        Path(where).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", break_off)
    with pytest.raises(StorageError, match=r"p\.parquet: cannot be written \(disk full"):
        write_predictions(path, to_table([], [], None), {})
    assert [each.name for each in tmp_path.iterdir()] == ["p.parquet"]
    assert len(read_predictions([path], [3])) == 3


def test_missing_and_broken_files_name_themselves(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    with pytest.raises(ShardError, match=r"p\.parquet: no such shard"):
        read_predictions([path], [1])
    path.write_bytes(b"not parquet")
    with pytest.raises(ShardError, match=r"p\.parquet: not a readable Parquet file"):
        read_predictions([path], [1])


def test_rows_must_be_the_benchmarks_own(make_predictions: Any) -> None:
    found = make_predictions([(0, 0, (0.0, 0.0, 1.0, 1.0), 0.5), (2, 0, (0.0, 0.0, 1.0, 1.0), 0.5)])
    check_rows(found, ["key-0", "key-1", "key-2"], "grounding")
    with pytest.raises(BenchmarkError, match="grounding: predictions are for row 2"):
        check_rows(found, ["key-0", "key-1"], "grounding")
    with pytest.raises(BenchmarkError, match="row 0 = 'key-0'"):
        check_rows(found, ["other", "key-1", "key-2"], "grounding")
