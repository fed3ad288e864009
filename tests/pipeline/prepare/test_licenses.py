"""Licences of pictures: read where data sets have them, chosen by patterns, none that is not allowed."""

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

from pipeline.prepare.raw import Reject
from pipeline.prepare.readers.coco import read_coco_captions, read_coco_detection
from pipeline.prepare.readers.openimages import read_open_images
from pipeline.prepare.readers.pair_tables import read_captions_jsonl, read_image_parquet
from pipeline.prepare.readers.url_lists import read_url_list
from pipeline.prepare.readers.webdataset import read_webdataset
from pipeline.prepare.values import is_allowed, read_license
from pipeline.store.records import ImageRef

BY, BY_NC = "http://creativecommons.org/licenses/by/2.0/", "http://creativecommons.org/licenses/by-nc/2.0/"


@pytest.fixture
def picture(png: Callable[..., ImageRef]) -> bytes:
    return png(40, 20).bytes or b""


def licenses(read_rows: Any, tables: list[Any], **rules: Any) -> list[str | None]:
    rows = [row for table in tables for row in read_rows(table, **rules)]
    return [row.reason if isinstance(row, Reject) else row.license for row in rows]


@pytest.mark.parametrize(
    ("found", "patterns", "allowed"),
    [
        (BY, ("*/licenses/by/*",), True),
        (BY_NC, ("*/licenses/by/*",), False),
        ("CC-BY", ("cc-by",), True),
        (None, ("*/licenses/by/*",), False),
        (None, ("unknown",), True),
        ("unknown licence of mine", ("unknown",), False),
    ],
)
def test_patterns_decide(found: str | None, patterns: tuple[str, ...], allowed: bool) -> None:
    assert is_allowed(found, patterns) is allowed


@pytest.mark.parametrize(("value", "found"), [("?", None), ("", None), (None, None), (4, None), (" a\n b ", "a b")])
def test_what_says_nothing_is_no_license(value: Any, found: str | None) -> None:
    assert read_license(value) == found


def test_coco_names_them_by_number(context: Any, read_rows: Any, tmp_path: Path, picture: bytes) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(picture + name.encode())
    numbers = {"a": 1, "b": 2, "c": [3]}
    values = {
        "images": [
            {"id": i, "file_name": f"{name}.png", "height": 20, "width": 40, "license": number}
            for i, (name, number) in enumerate(numbers.items())
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9], "caption": f"a dog {i}"} for i in range(3)
        ],
        "categories": [{"id": 1, "name": "dog"}],
        "licenses": [{"id": 1, "url": BY, "name": "Attribution"}, {"id": 2, "name": "Own"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(values))
    options = {"annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}
    assert licenses(read_rows, read_coco_detection(context, **options)) == [BY, "Own", None]
    assert licenses(read_rows, read_coco_captions(context, **options)) == [BY, "Own", None]
    refused = licenses(read_rows, read_coco_detection(context, **options), licenses=("*/by/*", "unknown"))
    assert refused == [BY, "license_refused", None]


def test_open_images_has_a_table_of_them(context: Any, read_rows: Any, tmp_path: Path, picture: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(picture)
    (tmp_path / "boxes.csv").write_text("ImageID,LabelName,XMin,XMax,YMin,YMax\nx,/m/dog,0.1,0.5,0.1,0.5\n")
    (tmp_path / "licenses.csv").write_text(f"ImageID,Subset,License\nx,train,{BY}\n")
    options = {"annotations": str(tmp_path / "boxes.csv"), "images": str(tmp_path)}
    assert licenses(read_rows, read_open_images(context, **options, licenses=str(tmp_path / "licenses.csv"))) == [BY]
    assert licenses(read_rows, read_open_images(context, **options)) == [None]


def test_pairs_have_a_column_or_a_field(context: Any, read_rows: Any, tmp_path: Path, picture: bytes) -> None:
    (tmp_path / "000000000.jpg").write_bytes(picture)
    url = "http://a.example/b.jpg"
    columns = {"URL": [url], "TEXT": ["a dog"], "LICENSE": [BY], "rights": ["own"]}
    pq.write_table(pa.Table.from_pydict(columns), tmp_path / "a.parquet")
    options = {"tables": str(tmp_path / "a.parquet"), "images": str(tmp_path)}
    assert licenses(read_rows, read_url_list(context, **options)) == [BY]
    assert licenses(read_rows, read_url_list(context, **options, license="rights")) == ["own"]
    (tmp_path / "b.csv").write_text(f"url,caption,license\n{url},a dog,{BY}\n")
    assert licenses(read_rows, read_url_list(context, tables=str(tmp_path / "b.csv"), images=str(tmp_path))) == [BY]
    inside = {"image": [{"bytes": picture, "path": None}], "text": ["a dog"], "license": [BY]}
    pq.write_table(pa.Table.from_pydict(inside), tmp_path / "c.parquet")
    assert licenses(read_rows, read_image_parquet(context, tables=str(tmp_path / "c.parquet"))) == [BY]
    line = json.dumps({"file_name": "000000000.jpg", "text": "a dog", "license": BY})
    (tmp_path / "d.jsonl").write_text(line)
    lines = {"captions": str(tmp_path / "d.jsonl"), "images": str(tmp_path)}
    assert licenses(read_rows, read_captions_jsonl(context, **lines)) == [BY]
    with tarfile.open(tmp_path / "e.tar", "w") as tar:
        values = json.dumps({"caption": "a dog", "license": BY}).encode()
        for name, data in (("0.jpg", picture), ("0.json", values)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert licenses(read_rows, read_webdataset(context, shards=str(tmp_path / "e.tar"))) == [BY]
