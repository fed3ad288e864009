"""Pairs in Parquet, in lists of URLs and in JSON lines."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import (
    CAPTION_DAMAGED,
    CAPTION_NOT_UTF8,
    CAPTION_UNQUOTED,
    Converted,
    RawPair,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.pair_tables import (
    read_captions_jsonl,
    read_image_parquet,
    read_img2dataset_files,
    read_url_list,
)
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


URLS = [f"https://example.org/pictures/a%20{i}.jpg?x=1" for i in range(3)]
CAPTIONS = ['a "quoted dog', "eine Katze, ein Hund", "<b>चित्र</b>"]


class TestUrlList:
    @pytest.mark.parametrize("order", [("caption", "url"), ("url", "caption")])
    @pytest.mark.parametrize("has_header", [False, True])
    @pytest.mark.parametrize("name", ["list.tsv", "list.tsv.gz"])
    def test_a_tsv_is_read_in_either_order(
        self,
        order: tuple[str, str],
        has_header: bool,
        name: str,
        tmp_path: Path,
        picture: Encode,
        context: SourceContext,
        read_rows: Read,
    ) -> None:
        for i in range(3):
            (tmp_path / f"{i:09d}.jpg").write_bytes(picture((40 + i, 30)))
        lines = ["\t".join(order)] if has_header else []
        for url, caption in zip(URLS, CAPTIONS, strict=True):
            lines.append("\t".join({"url": url, "caption": caption}[column] for column in order))
        text = ("\n".join(lines) + "\n").encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        (table,) = read_url_list(context, tables=Url(tmp_path / name), images=Url(tmp_path))
        assert [(row.width, row.caption) for row in read_rows(table)] == [(40 + i, CAPTIONS[i]) for i in range(3)]

    @pytest.mark.parametrize(
        ("template", "names"),
        [
            ("{md5}.jpg", [hashlib.md5(url.encode()).hexdigest() + ".jpg" for url in URLS]),
            ("x/{sha256}", ["x/" + hashlib.sha256(url.encode()).hexdigest() for url in URLS]),
            ("{url_name}", [f"a {i}.jpg" for i in range(3)]),
            ("{row}.png", [f"{i}.png" for i in range(3)]),
        ],
    )
    def test_pictures_are_called_as_the_option_says(
        self, template: str, names: list[str], tmp_path: Path, context: SourceContext
    ) -> None:
        pq.write_table(pa.table({"URL": URLS, "TEXT": CAPTIONS}), tmp_path / "a.parquet")
        options = {"tables": Url(tmp_path / "a.parquet"), "images": Url("/pictures"), "file_name": template}
        (table,) = read_url_list(context, **options)
        rows = [row for part in table.parts(10) for row in part.rows()]
        assert all(isinstance(row, RawPair) for row in rows)
        assert [(row.image.folder, row.image.url) for row in rows if isinstance(row, RawPair)] == [
            ("/pictures", name) for name in names
        ]

    def test_a_csv_may_have_line_ends_in_quotes(self, tmp_path: Path, context: SourceContext) -> None:
        (tmp_path / "a.csv").write_text(f'url,caption\n{URLS[0]},"two\nlines"\n{URLS[1]}\n')
        (table,) = read_url_list(context, tables=Url(tmp_path / "a.csv"), images=Url("/pictures"))
        first, second = [row for part in table.parts(10) for row in part.rows()]
        assert isinstance(first, RawPair)
        assert first.caption == "two\nlines"
        assert isinstance(second, Reject)

    def test_without_a_folder_pictures_are_fetched_from_the_web_alone(
        self, tmp_path: Path, context: SourceContext, read_rows: Read
    ) -> None:
        addresses = ["file:///etc/passwd", "s3://bucket/key", "/etc/passwd"]
        pq.write_table(pa.table({"url": [*addresses, None], "caption": ["x"] * 4}), tmp_path / "a.parquet")
        (table,) = read_url_list(context, tables=Url(tmp_path / "a.parquet"))
        assert [row.reason for row in read_rows(table)] == ["image_missing"] * 3 + ["row_malformed"]
        pq.write_table(pa.table({"url": URLS, "caption": CAPTIONS}), tmp_path / "a.parquet")
        (table,) = read_url_list(context, tables=Url(tmp_path / "a.parquet"))
        assert [row.image.url for part in table.parts(9) for row in part.rows() if isinstance(row, RawPair)] == URLS

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
    @pytest.mark.parametrize(
        "header", [("caption", "url"), ("Caption", "Image_URL"), ("title", "link"), ("URL-less caption", "my url")]
    )
    @pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.txt", ",")])
    def test_a_header_is_what_has_no_url_where_the_next_row_has_one(
        self, encoding: str, header: tuple[str, str], name: str, delimiter: str, tmp_path: Path, context: SourceContext
    ) -> None:
        rows = [header, *((f"dög {i}", url) for i, url in enumerate(URLS))]
        (tmp_path / name).write_text("".join(delimiter.join(row) + "\n" for row in rows), encoding=encoding)
        (table,) = read_url_list(context, tables=Url(tmp_path / name), images=Url("/p"), file_name="{row}")
        found = [row for part in table.parts(10) for row in part.rows() if isinstance(row, RawPair)]
        assert [(row.image.url, row.caption, row.name) for row in found] == [
            (str(i), f"dög {i}", url) for i, url in enumerate(URLS)
        ]

    def test_quotes_of_a_tsv_are_those_of_the_text_unless_all_inside_are_doubled(
        self, tmp_path: Path, context: SourceContext
    ) -> None:
        captions = ['say "hi"', '"hi"', '"', '"" hi', 'a "b']
        table = pd.DataFrame({"caption": captions, "url": [f"http://x/{i}.jpg" for i in range(len(captions))]})
        lists = {
            "pandas.tsv": table.to_csv(sep="\t", index=False),
            "plain.tsv": "".join(f"{row.caption}\t{row.url}\n" for row in table.itertuples()),
        }
        for name, content in lists.items():
            (tmp_path / name).write_text(content)
            (found,) = read_url_list(context, tables=Url(tmp_path / name), images=Url("/p"))
            pairs = [row for part in found.parts(10) for row in part.rows() if isinstance(row, RawPair)]
            assert [row.caption for row in pairs] == captions
            assert {row.converted for row in pairs} == {(CAPTION_UNQUOTED,) if name == "pandas.tsv" else ()}

    @pytest.mark.parametrize("blanks", ["\n", "\n\n", ",\n"])
    def test_blank_lines_before_a_header_are_passed_over(
        self, blanks: str, tmp_path: Path, context: SourceContext
    ) -> None:
        (tmp_path / "a.csv").write_text(f"{blanks}caption,url\na,http://x/0.jpg\nb,http://x/1.jpg\n")
        (table,) = read_url_list(context, tables=Url(tmp_path / "a.csv"), images=Url("/p"), file_name="{row}")
        found = [row for part in table.parts(10) for row in part.rows() if isinstance(row, RawPair)]
        assert [(row.caption, row.image.url) for row in found] == [("a", "0"), ("b", "1")]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("title,alt,link\na,b,http://x/0.jpg\n", "which column has the captions"),
            ("a,b,http://x/0.jpg\nc,d,http://x/1.jpg\n", "which column has the captions"),
            ("a dog,\na cat,http://x/1.jpg\n", "may be a header or a row whose URL is broken"),
            ("a dog,NaN\na cat,http://x/1.jpg\n", "may be a header or a row whose URL is broken"),
            ("a dog,x.org/0.jpg\na cat,http://x/1.jpg\n", "may be a header or a row whose URL is broken"),
            ("caption,big,small\na,http://x/0.jpg,http://x/1.jpg\n", "several columns of URLs"),
        ],
    )
    def test_a_list_that_may_mean_several_things_is_refused(
        self, content: str, message: str, tmp_path: Path, context: SourceContext
    ) -> None:
        (tmp_path / "a.csv").write_text(content)
        (table,) = read_url_list(context, tables=Url(tmp_path / "a.csv"), images=Url("/p"))
        with pytest.raises(MissingInputError, match=message):
            list(table.parts(10))

    def test_options_name_columns_or_number_them(self, tmp_path: Path, context: SourceContext) -> None:
        def captions(content: str, **options: str) -> list[str]:
            (tmp_path / "a.csv").write_text(content)
            (table,) = read_url_list(context, tables=Url(tmp_path / "a.csv"), images=Url("/p"), **options)
            return [row.caption for part in table.parts(10) for row in part.rows() if isinstance(row, RawPair)]

        assert captions("title,alt,link\na,b,http://x/0.jpg\n", caption="alt") == ["b"]
        assert captions("caption,big,small\na,http://x/0.jpg,http://x/1.jpg\n", url="big") == ["a"]
        assert captions("a,b,http://x/0.jpg\n", caption="2", url="3") == ["b"]
        with pytest.raises(MissingInputError, match="which column has the captions"):
            captions("caption,link\na,http://x/0.jpg\n", caption="alt")

    def test_a_delimiter_inside_of_a_caption_is_a_reject(self, tmp_path: Path, context: SourceContext) -> None:
        (tmp_path / "a.csv").write_text("caption,url\na dog, big,http://x/0.jpg\na cat,http://x/1.jpg,\n")
        (table,) = read_url_list(context, tables=Url(tmp_path / "a.csv"), images=Url("/p"))
        first, second = [row for part in table.parts(10) for row in part.rows()]
        assert isinstance(first, Reject)
        assert isinstance(second, RawPair)
        assert second.caption == "a cat"

    def test_a_list_without_urls_is_told(self, tmp_path: Path, context: SourceContext) -> None:
        (tmp_path / "a.tsv").write_text("a dog\ta cat\n" * 3)
        (table,) = read_url_list(context, tables=Url(tmp_path / "a.tsv"), images=Url("/pictures"))
        with pytest.raises(MissingInputError, match="no column of URLs beside one of captions"):
            list(table.parts(10))

    @pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real samples are not here: {SHARED}")
    def test_real_lists_are_read(self, context: SourceContext) -> None:
        (table,) = read_url_list(
            context, tables=Url(SHARED / "cc3m/cc3m_validation_1.tsv"), images=Url("/pictures"), file_name="{row}"
        )
        rows = [row for part in table.parts(10**6) for row in part.rows()]
        lines = (SHARED / "cc3m/cc3m_validation_1.tsv").read_text(encoding="utf-8").splitlines()
        assert [(row.caption, row.name) for row in rows if isinstance(row, RawPair)] == [
            tuple(line.split("\t")[:2]) for line in lines
        ]
        (table,) = read_url_list(
            context, tables=Url(SHARED / "laion_sample/laion_2000.parquet"), images=Url("/pictures"), file_name="{row}"
        )
        rows = [row for part in table.parts(10**6) for row in part.rows()]
        frame = pq.read_table(SHARED / "laion_sample/laion_2000.parquet").to_pydict()
        assert [row.caption for row in rows if isinstance(row, RawPair)] == frame["TEXT"]


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


def test_a_null_character_of_a_list_is_counted(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "a.csv").write_text("caption,url\na\0dog,http://x/a.jpg\n")
    (table,) = read_url_list(context, tables=Url(tmp_path / "a.csv"), images=Url(tmp_path), file_name="a.jpg")
    record, told = read_rows(table)
    assert (record.caption, told) == ("a dog", Converted("http://x/a.jpg", CAPTION_DAMAGED))


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


def test_an_address_that_is_none_costs_its_row_alone(
    tmp_path: Path, picture: Callable[..., bytes], context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    (tmp_path / "b.jpg").write_bytes(picture())
    (tmp_path / "a.csv").write_text("caption,url\na dog,http://[/a.jpg\na cat,http://x/b.jpg\n")
    options = {"tables": Url(tmp_path / "a.csv"), "images": Url(tmp_path)}
    (table,) = read_url_list(context, **options, file_name="{url_name}")
    bad, record = read_rows(table)
    assert (bad.reason, record.caption) == ("image_missing", "a cat")
