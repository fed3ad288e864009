"""Pairs in lists of URLs."""

from __future__ import annotations

import gzip
import hashlib
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
    CAPTION_UNQUOTED,
    Converted,
    RawPair,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.url_lists import read_url_list

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
Encode = Callable[..., bytes]
Read = Callable[..., list[Any]]


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


def test_a_null_character_of_a_list_is_counted(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "a.csv").write_text("caption,url\na\0dog,http://x/a.jpg\n")
    (table,) = read_url_list(context, tables=Url(tmp_path / "a.csv"), images=Url(tmp_path), file_name="a.jpg")
    record, told = read_rows(table)
    assert (record.caption, told) == ("a dog", Converted("http://x/a.jpg", CAPTION_DAMAGED))


def test_an_address_that_is_none_costs_its_row_alone(
    tmp_path: Path, picture: Callable[..., bytes], context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    (tmp_path / "b.jpg").write_bytes(picture())
    (tmp_path / "a.csv").write_text("caption,url\na dog,http://[/a.jpg\na cat,http://x/b.jpg\n")
    options = {"tables": Url(tmp_path / "a.csv"), "images": Url(tmp_path)}
    (table,) = read_url_list(context, **options, file_name="{url_name}")
    bad, record = read_rows(table)
    assert (bad.reason, record.caption) == ("image_missing", "a cat")
