"""Pairs in Parquet and in JSON lines, and encodings of captions in every kind of list."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import (
    CAPTION_DAMAGED,
    CAPTION_NOT_UTF8,
    Converted,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.pair_tables import read_captions_jsonl, read_image_parquet, read_img2dataset_files
from pipeline.prepare.readers.url_lists import read_url_list
from pipeline.store.records import CaptionRecord

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
Encode = Callable[..., bytes]
Read = Callable[..., list[Any]]


class TestImageParquet:
    def write(self, path: Path, rows: list[dict[str, Any]], **options: Any) -> Url:
        pq.write_table(pa.Table.from_pylist(rows), path, **options)
        return Url(path)

    def test_pictures_are_taken_from_their_column(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        rows = [{"image": {"bytes": picture((40 + i, 30)), "path": f"{i}.jpg"}, "text": f"no {i}"} for i in range(5)]
        url = self.write(tmp_path / "a.parquet", rows, row_group_size=2)
        (table,) = read_image_parquet(context, tables=url)
        assert [part.num_rows for part in table.parts(100)] == [2, 2, 1]
        assert [(row.width, row.caption) for row in read_rows(table)] == [(40 + i, f"no {i}") for i in range(5)]

    def test_columns_can_be_named(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        url = self.write(tmp_path / "a.parquet", [{"jpg": picture(), "caption": "x", "alt": "a dog"}])
        (table,) = read_image_parquet(context, tables=url, image="jpg", caption="alt")
        (row,) = read_rows(table)
        assert isinstance(row, CaptionRecord)
        assert row.caption == "a dog"

    @pytest.mark.parametrize("compression", ["zstd", "gzip"])
    def test_a_file_that_unpacks_to_gigabytes_is_refused_unread(
        self, compression: str, tmp_path: Path, context: SourceContext, read_rows: Read
    ) -> None:
        rows = [{"image": bytes(300 << 20), "text": "a dog"}]
        url = self.write(tmp_path / "a.parquet", rows, compression=compression, use_dictionary=False)
        with pytest.raises(MissingInputError, match=r"a\.parquet: .*columns of \d+ bytes would unpack to 3\d{8}"):
            read_rows(*read_image_parquet(context, tables=url))

    def test_rows_without_bytes_or_caption_are_rejects(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        rows = [
            {"image": {"bytes": None, "path": "/etc/passwd"}, "caption": "a dog"},
            {"image": None, "caption": "a dog"},
            {"image": {"bytes": picture(), "path": None}, "caption": None},
        ]
        (table,) = read_image_parquet(context, tables=self.write(tmp_path / "a.parquet", rows))
        assert read_rows(table) == [
            Reject("/etc/passwd", "image_unreadable"),
            Reject("row 1", "image_unreadable"),
            Reject("row 2", "caption_empty"),
        ]

    def test_a_list_of_captions_is_several_pairs_or_the_first(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        rows = [{"image": picture(), "caption": ["a dog", "an animal"]}, {"image": picture(), "caption": []}]
        url = self.write(tmp_path / "a.parquet", rows)
        (table,) = read_image_parquet(context, tables=url)
        first, second, empty = read_rows(table)
        assert [first.caption, second.caption] == ["a dog", "an animal"]
        assert empty == Reject("row 1", "caption_empty")
        (table,) = read_image_parquet(context, tables=url, several="first")
        assert [getattr(row, "caption", None) for row in read_rows(table)] == ["a dog", None]

    def test_lists_of_pictures_lose_none_in_silence(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        one, two = ({"bytes": picture((40 + i, 30)), "path": f"{i}.jpg"} for i in range(2))
        rows = [
            {"image": [one], "caption": ["one"]},
            {"image": [one, two], "caption": ["two"]},
            {"image": [one, two], "caption": ["two", "three"]},
            {"image": [], "caption": ["none"]},
        ]
        (table,) = read_image_parquet(context, tables=self.write(tmp_path / "a.parquet", rows))
        first, second, *rejects = read_rows(table)
        assert [(row.width, row.caption) for row in (first, second)] == [(40, "one"), (40, "two")]
        assert [row.reason for row in rejects] == ["row_malformed"] * 3 + ["image_unreadable"]

    def test_a_null_beside_a_filled_column_says_nothing(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        rows = [{"image": picture(), "caption": None, "text": "a"}, {"image": picture(), "caption": "b", "text": "c"}]
        (table,) = read_image_parquet(context, tables=self.write(tmp_path / "a.parquet", rows))
        assert [row.caption for row in read_rows(table)] == ["a", "b"]

    def test_pictures_without_bytes_are_taken_from_the_folder(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(picture())
        rows = [{"image": {"bytes": None, "path": path}, "caption": "a dog"} for path in ("a.jpg", "/etc/passwd")]
        url = self.write(tmp_path / "a.parquet", rows)
        (table,) = read_image_parquet(context, tables=url, images=Url(tmp_path))
        first, second = read_rows(table)
        assert first.width == 40
        assert second == Reject("/etc/passwd", "image_outside_folder")

    def test_a_column_of_paths_is_taken_from_the_folder(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(picture())
        rows = [{"image": path, "caption": "a dog"} for path in ("a.jpg", "b.jpg")]
        url = self.write(tmp_path / "a.parquet", rows)
        (table,) = read_image_parquet(context, tables=url, images=Url(tmp_path))
        first, second = read_rows(table)
        assert first.width == 40
        assert second == Reject("b.jpg", "image_missing")
        (table,) = read_image_parquet(context, tables=url)
        assert [row.reason for row in read_rows(table)] == ["image_unreadable"] * 2

    @pytest.mark.parametrize("is_list", [False, True])
    def test_captions_in_another_encoding_are_decoded_and_counted(
        self, is_list: bool, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        texts: pa.Array = pa.array(["café".encode("latin-1"), "犬".encode(), None]).view(pa.string())
        if is_list:
            texts = pa.ListArray.from_arrays([0, 1, 2, 3], texts)
        table = pa.table({"image": [{"bytes": picture(), "path": f"{i}.jpg"} for i in range(3)], "caption": texts})
        pq.write_table(table, tmp_path / "a.parquet")
        (table,) = read_image_parquet(context, tables=Url(tmp_path / "a.parquet"))
        first, told, second, third = read_rows(table)
        assert [first.caption, second.caption] == ["café", "犬"]
        assert told == Converted("0.jpg", CAPTION_NOT_UTF8)
        assert third == Reject("2.jpg", "caption_empty")

    def test_a_missing_column_and_a_broken_file_are_told(
        self, tmp_path: Path, picture: Encode, context: SourceContext
    ) -> None:
        url = self.write(tmp_path / "a.parquet", [{"image": picture(), "label": 3}])
        (table,) = read_image_parquet(context, tables=url)
        with pytest.raises(MissingInputError, match=r"no column 'caption' or 'text' or 'TEXT' \(found: image, label\)"):
            list(table.parts(100))
        for content in (b"", b"PAR1", b"PAR1" + bytes(500) + b"PAR1"):
            (tmp_path / "b.parquet").write_bytes(content)
            (table,) = read_image_parquet(context, tables=Url(tmp_path / "b.parquet"))
            with pytest.raises(MissingInputError, match=r"b\.parquet: not a readable Parquet file"):
                list(table.parts(100))

    def test_a_row_group_that_is_broken_is_a_reject(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        rows = [{"image": picture((40 + i, 30)), "caption": "a dog"} for i in range(4)]
        url = self.write(tmp_path / "a.parquet", rows, row_group_size=2, compression="zstd")
        data = bytearray((tmp_path / "a.parquet").read_bytes())
        start = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).data_page_offset
        data[start : start + 60] = bytes(60)
        (tmp_path / "a.parquet").write_bytes(data)
        (table,) = read_image_parquet(context, tables=url)
        *good, bad = read_rows(table)
        assert [row.width for row in good] == [40, 41]
        assert isinstance(bad, Reject)
        assert bad.reason == "row_malformed"


def test_img2dataset_files_are_found_by_their_keys(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "00000").mkdir()
    rows = []
    for i, (suffix, status) in enumerate([("jpg", "success"), ("webp", "success"), ("jpg", "failed_to_download")]):
        key = f"00000{i:04d}"
        if status == "success":
            (tmp_path / "00000" / f"{key}.{suffix}").write_bytes(picture((40 + i, 30)))
        rows.append({"key": key, "caption": f"no {i}", "url": "https://example.org", "status": status, "width": 9})
    rows.append({"key": "../../secret", "caption": "x", "url": "", "status": "success", "width": 9})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    (table,) = read_img2dataset_files(context, tables=Url(tmp_path / "*.parquet"), images=Url(tmp_path))
    first, second, failed, hostile = read_rows(table)
    assert [(row.width, row.caption) for row in (first, second)] == [(40, "no 0"), (41, "no 1")]
    assert failed == Reject("000000002", "image_missing")
    assert hostile.reason == "image_outside_folder"


def test_shards_of_img2dataset_have_any_number_of_digits(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    for shard in ("000012", "0003"):
        (tmp_path / shard).mkdir()
        (tmp_path / shard / f"{shard}00007.jpg").write_bytes(picture())
        pq.write_table(pa.table({"key": [f"{shard}00007"], "caption": ["a dog"]}), tmp_path / f"{shard}.parquet")
    (table,) = read_img2dataset_files(context, tables=Url(tmp_path / "*.parquet"), images=Url(tmp_path))
    assert [row.caption for row in read_rows(table)] == ["a dog", "a dog"]
    keys = [f"{shard}00007" for shard in ("000012", "0003")] + ["00004"]
    pq.write_table(pa.table({"key": keys, "caption": ["six", "four", "none"]}), tmp_path / "all.parquet")
    (table,) = read_img2dataset_files(context, tables=Url(tmp_path / "all.parquet"), images=Url(tmp_path))
    assert [getattr(row, "caption", row) for row in read_rows(table)] == [
        "six",
        "four",
        Reject("00004", "image_missing"),
    ]


OTHERS = {
    "a dog": (b"a dog", ()),
    "café": ("café".encode("latin-1"), (CAPTION_NOT_UTF8,)),
    "it’s 😀": ("it’s ".encode() + b"\xed\xa0\xbd\xed\xb8\x80", (CAPTION_NOT_UTF8,)),
    "日本\ufffd": ("日本語".encode()[:-1], (CAPTION_DAMAGED,)),
    "犬": ("犬".encode(), ()),
}
"""Captions by what they are read as, with their bytes and what is told of them."""


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv with quotes", "csv without header", "jsonl"])
def test_captions_in_other_encodings_are_decoded_and_counted_in_every_kind_of_list(
    kind: str, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    delimiter, quote = b"\t" if kind == "tsv" else b",", b'"' if "quotes" in kind else b""
    lines = [] if "without" in kind else [b"url" + delimiter + b"caption"]
    for i, (data, _) in enumerate(OTHERS.values()):
        (tmp_path / f"{i:09d}.jpg").write_bytes(picture())
        lines.append(b"http://a/%d.jpg" % i + delimiter + quote + data + quote)
    (tmp_path / f"a.{kind[:3]}").write_bytes(b"\n".join(lines))
    if kind == "jsonl":
        rows = [b'{"image": "%09d.jpg", "text": "%s"}' % (i, data) for i, (data, _) in enumerate(OTHERS.values())]
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
        (table,) = read_captions_jsonl(context, captions=Url(tmp_path / "a.jsonl"), images=Url(tmp_path))
    else:
        (table,) = read_url_list(context, tables=Url(tmp_path / f"a.{kind[:3]}"), images=Url(tmp_path))
    found = read_rows(table)
    assert [row.caption for row in found if isinstance(row, CaptionRecord)] == list(OTHERS)
    wanted: list[Any] = []
    for text, (_, notes) in OTHERS.items():
        wanted += [text, *notes]
    assert [row.what if isinstance(row, Converted) else row.caption for row in found] == wanted


def test_a_caption_with_half_a_character_is_counted(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "text": "a dog \\ud83d"}\n')
    (table,) = read_captions_jsonl(context, captions=Url(tmp_path / "a.jsonl"), images=Url(tmp_path))
    record, told = read_rows(table)
    assert (record.caption, told) == ("a dog \ufffd", Converted("a.jpg", CAPTION_DAMAGED))


class TestCaptionsJsonl:
    def test_every_line_is_a_pair(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        lines = []
        for i in range(20):
            (tmp_path / f"{i}.jpg").write_bytes(picture((40 + i, 30)))
            lines.append(json.dumps({"file_name": f"{i}.jpg", "text": f"no {i}"}))
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
        (table,) = read_captions_jsonl(context, captions=Url(tmp_path / "metadata.jsonl"), images=Url(tmp_path))
        assert len(list(table.parts(6))) == 4
        for rows_per_part in (6, 1000):
            rows = read_rows(table, rows_per_part)
            assert [(row.width, row.caption) for row in rows] == [(40 + i, f"no {i}") for i in range(20)]

    def test_bad_lines_are_rejects(
        self, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(picture())
        good = json.dumps({"pic": "a.jpg", "alt": "a dog"}).encode()
        lines = [
            good,
            b"{",
            b"[]",
            b"\xff",
            b"",
            b'{"pic": 5}',
            b'{"pic": "../a.jpg", "alt": "x"}',
            b'{"pic": "a.jpg"}',
        ]
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
        (table,) = read_captions_jsonl(
            context, captions=Url(tmp_path / "a.jsonl.gz"), images=Url(tmp_path), image="pic", caption="alt"
        )
        first, *rejects = read_rows(table)
        assert first.caption == "a dog"
        assert [row.reason for row in rejects] == ["row_malformed"] * 4 + ["image_outside_folder", "caption_empty"]

    def test_an_empty_file_has_no_pairs(self, tmp_path: Path, context: SourceContext, read_rows: Read) -> None:
        (tmp_path / "a.jsonl").touch()
        (table,) = read_captions_jsonl(context, captions=Url(tmp_path / "a.jsonl"), images=Url(tmp_path))
        assert read_rows(table) == []
