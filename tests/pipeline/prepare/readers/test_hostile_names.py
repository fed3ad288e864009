"""Files that name pictures where none of theirs are: they are read below their folder or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.prepare.raw import RawTable, SourceContext, Url
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.odvg import read_odvg
from pipeline.prepare.readers.pair_tables import read_captions_jsonl, read_image_parquet
from pipeline.prepare.readers.url_lists import read_url_list
from pipeline.prepare.validation import Reject

REFUSED = {"image_outside_folder", "image_missing"}


def captions_jsonl(context: SourceContext, folder: Path, images: Url, names: list[str]) -> RawTable:
    (folder / "a.jsonl").write_text("".join(json.dumps({"image": name, "text": "a dog"}) + "\n" for name in names))
    return read_captions_jsonl(context, captions=Url(folder / "a.jsonl"), images=images)[0]


def image_parquet(context: SourceContext, folder: Path, images: Url, names: list[str]) -> RawTable:
    rows = [{"image": {"bytes": None, "path": name}, "caption": "a dog"} for name in names]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return read_image_parquet(context, tables=Url(folder / "a.parquet"), images=images)[0]


def odvg(context: SourceContext, folder: Path, images: Url, names: list[str]) -> RawTable:
    region = {"phrase": "dog", "bbox": [1, 1, 9, 9]}
    lines = [{"filename": name, "grounding": {"caption": "a dog", "regions": [region]}} for name in names]
    (folder / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_odvg(context, annotations=Url(folder / "b.jsonl"), images=images)[0]


def coco(context: SourceContext, folder: Path, images: Url, names: list[str]) -> RawTable:
    content = {
        "images": [{"id": i, "file_name": name, "coco_url": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "bbox": [1, 1, 9, 9], "category_id": 1} for i in range(len(names))],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (folder / "c.json").write_text(json.dumps(content))
    return read_coco_detection(context, annotations=Url(folder / "c.json"), images=images, search=True)[0]


@pytest.mark.parametrize("pictures", ["embed", "reference"])
@pytest.mark.parametrize("table", [captions_jsonl, image_parquet, odvg, coco])
def test_names_lead_nowhere_but_below_the_folder_of_pictures(
    table: Callable[..., RawTable],
    pictures: str,
    tmp_path: Path,
    context: SourceContext,
    read_rows: Callable[..., list[Any]],
    lures: Callable[[Path], list[str]],
    web: Any,
) -> None:
    raw = tmp_path / "raw"
    names = [name.removeprefix(f"{raw}/images/") for name in lures(raw / "images")]
    names += ["..%2f..%2felsewhere/secret.png", "%2e%2e/%2e%2e/elsewhere/secret.png", "..\\..\\elsewhere\\secret.png"]
    found = read_rows(table(context, raw, Url(raw / "images"), names), pictures=pictures, roots=())
    assert len(found) == len(names)
    assert all(isinstance(row, Reject) and row.reason in REFUSED for row in found), found
    assert {row.reason for row in found[:2]} == {"image_outside_folder"}  # links
    assert web.requests == []
    allowed = read_rows(table(context, raw, Url(raw / "images"), names[:2]), roots=(str(tmp_path / "elsewhere"),))
    assert not any(isinstance(row, Reject) and row.reason in REFUSED for row in allowed)


def test_a_list_of_addresses_asks_nobody_on_this_machine_or_network(
    tmp_path: Path,
    context: SourceContext,
    read_rows: Callable[..., list[Any]],
    lures: Callable[[Path], list[str]],
    web: Any,
) -> None:
    places = [*lures(tmp_path / "raw"), web.url.replace("127.0.0.1", "localhost") + "/secret.png"]
    pq.write_table(pa.table({"url": places, "caption": ["a dog"] * len(places)}), tmp_path / "list.parquet")
    (table,) = read_url_list(context, tables=Url(tmp_path / "list.parquet"))
    found = read_rows(table, roots=())
    assert [row.reason in REFUSED for row in found] == [True] * len(places)
    assert web.requests == []
    assert [row.width for row in read_rows(table, roots=(web.url,)) if not isinstance(row, Reject)] == [40]
