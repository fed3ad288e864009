"""GRIT's regions as pseudo-labels, out of Parquet and out of tars."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.prepare.raw import DroppedBox, RawGrounding, Reject
from pipeline.prepare.readers.grit import read_grit
from pipeline.prepare.validation import Rules, to_records
from pipeline.store.records import GroundingRecord, ImageRef

CAPTION = "a dog chases a red frisbee"
CHUNKS = [
    [0.0, 5.0, 0.1, 0.2, 0.5, 0.8, 0.75],
    [13.0, 26.0, 0.5, 0.5, 1.0, 1.0, 0.9],
    [0.0, 5.0, 0.0, 0.0, 0.25, 0.5, 1.0],
]
EXPRESSIONS = [[0.0, 26.0, 0.1, 0.2, 0.5, 0.8, 0.6]]
Shown = list[tuple[str, list[tuple[tuple[float, ...], float]]]]


def shown(record: GroundingRecord) -> Shown:
    return [
        (p.text, [(tuple(round(side, 3) for side in box.xyxy), round(box.score, 5)) for box in p.boxes])
        for p in record.phrases
    ]


@pytest.fixture
def images(tmp_path: Path, png: Callable[..., ImageRef]) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "000000000.jpg").write_bytes(png(40, 20).bytes or b"")
    return folder


def write_table(path: Path, **columns: Any) -> Path:
    row = {"url": ["http://a.example/b.jpg"], "caption": [CAPTION], "noun_chunks": [CHUNKS], "ref_exps": [EXPRESSIONS]}
    pq.write_table(pa.Table.from_pydict({**row, **{name: [value] for name, value in columns.items()}}), path)
    return path


def test_regions_of_a_span_are_boxes_of_one_phrase(context: Any, read_rows: Any, images: Path, tmp_path: Path) -> None:
    tables = str(write_table(tmp_path / "a.parquet", license="CC BY 2.0"))
    (table,) = read_grit(context, tables=tables, images=str(images))
    (record,) = read_rows(table)
    chunks = [
        ("a dog", [((4, 4, 20, 16), 0.75), ((0, 0, 10, 10), 1.0)]),
        ("a red frisbee", [((20, 10, 40, 20), 0.9)]),
    ]
    assert shown(record) == chunks
    assert record.is_pseudo_label
    assert all(box.score < 1 for phrase in record.phrases for box in phrase.boxes)
    assert record.license == "CC BY 2.0"
    (table,) = read_grit(context, tables=tables, images=str(images), regions="both")
    (record,) = read_rows(table)
    assert shown(record) == [*chunks, (CAPTION, [((4, 4, 20, 16), 0.6)])]
    (table,) = read_grit(context, tables=tables, images=str(images), regions="ref_exps")
    assert [text for text, _ in shown(read_rows(table)[0])] == [CAPTION]


@pytest.mark.parametrize("as_text", [False, True])
def test_tars_have_the_regions_in_their_json(
    context: Any, read_rows: Any, tmp_path: Path, png: Callable[..., ImageRef], as_text: bool
) -> None:
    def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))

    regions: Any = json.dumps(CHUNKS) if as_text else CHUNKS
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        add(tar, "000000000.jpg", png(40, 20).bytes or b"")
        add(tar, "000000000.txt", CAPTION.encode())
        add(tar, "000000000.json", json.dumps({"noun_chunks": regions, "license": "?"}).encode())
        add(tar, "000000001.jpg", png(41, 20).bytes or b"")
        add(tar, "000000001.txt", b"no regions")
    (table,) = read_grit(context, shards=str(tmp_path / "*.tar"))
    record, reject = read_rows(table)
    assert [text for text, _ in shown(record)] == ["a dog", "a red frisbee"]
    assert record.license is None
    assert isinstance(reject, Reject)
    assert reject.reason == "no_phrases"


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ([0.0, 5.0, 0.1], "span_empty"),
        ([90.0, 95.0, 0.1, 0.1, 0.5, 0.5, 0.5], "span_empty"),
        ([0.0, 5.0, 0.5, 0.5, 0.1, 0.1, 0.5], "box_degenerate"),
        ([0.0, 5.0, 0.1, 0.1, 0.5, 0.5, 7.0], "box_malformed"),
        ([0.0, 5.0, float("nan"), 0.1, 0.5, 0.5, 0.5], "box_malformed"),
    ],
)
def test_regions_that_are_wrong_are_counted(
    context: Any, read_rows: Any, images: Path, tmp_path: Path, region: list[float], reason: str
) -> None:
    tables = str(write_table(tmp_path / "a.parquet", noun_chunks=[*CHUNKS, region]))
    (table,) = read_grit(context, tables=tables, images=str(images))
    *dropped, record = read_rows(table)
    assert [each.reason for each in dropped] == [reason]
    assert len(record.phrases) == 2


def test_one_of_tables_and_shards_is_named(context: Any) -> None:
    with pytest.raises(ConfigError, match="needs either tables or shards"):
        read_grit(context)


@pytest.mark.parametrize(
    ("chunks", "boxes"),
    [("no JSON", 1), ('[[0, 5, 0.1, 0.2, 0.5, 0.8, 0.75], "x"]', 2), ("{}", 1), ("", 0), (None, 0), (7, 1)],
)
def test_regions_that_are_none_are_counted_as_dropped_boxes(
    context: Any, images: Path, tmp_path: Path, chunks: Any, boxes: int
) -> None:
    tables = str(write_table(tmp_path / "a.parquet", noun_chunks=chunks))
    (table,) = read_grit(context, tables=tables, images=str(images))
    (row,) = [row for part in table.parts(9) for row in part.rows()]
    assert isinstance(row, RawGrounding)
    assert sum(len(phrase.boxes) for phrase in row.phrases) == boxes
    rules = Rules(source="test", pictures="embed", max_pixels=10_000, categories=frozenset())
    out = list(to_records([row], rules))
    dropped = sum(isinstance(item, DroppedBox) for item in out)
    kept = sum(len(phrase.boxes) for item in out if isinstance(item, GroundingRecord) for phrase in item.phrases)
    assert dropped + kept == boxes
