"""Lines of a file cut anywhere: every line once, whole, in its order."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import CAPTION_DAMAGED, CAPTION_NOT_UTF8
from pipeline.prepare.readers.lines import (
    MAX_CELL_CHARS,
    bytes_per_part,
    decode_line,
    decode_text,
    json_lines,
    line_ranges,
    open_csv,
    open_text,
    read_lines,
)

contents = st.text(st.sampled_from("ab é\N{DOG FACE}\t"), max_size=12)


@given(st.lists(contents), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 40))
def test_every_line_is_read_once_however_the_file_is_cut(
    lines: list[str], ending: str, has_final_ending: bool, length: int
) -> None:
    text = ending.join(lines) + (ending if has_final_ending else "")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lines.txt"
        path.write_bytes(text.encode())
        read = [line for start, stop in line_ranges(str(path), length) for line in read_lines(str(path), start, stop)]
    expected = text.encode().split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert [line for _, line in read] == [line.rstrip(b"\r") for line in expected]
    for place, line in read:
        assert text.encode()[place : place + len(line)] == line


def test_a_compressed_file_is_one_part(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n" * 1000))
    ((start, stop),) = line_ranges(str(path), 10)
    assert [line for _, line in read_lines(str(path), start, stop)] == [b"one", b"two"] * 1000


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.touch()
    assert list(line_ranges(str(path), 10)) == []
    assert bytes_per_part(str(path), 100) == 1


def test_parts_hold_about_as_many_lines_as_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"x" * 99 + b"\n" + (b"y" * 99 + b"\n") * 999)
    length = bytes_per_part(str(path), 200)
    counts = [sum(1 for _ in read_lines(str(path), start, stop)) for start, stop in line_ranges(str(path), length)]
    assert counts == [200] * 5


def test_json_lines_are_told_by_their_place_and_blank_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n \nno json\n\xff\n' + b"[" * 100_000 + b'\n"caf\xe9"')
    label = f"{path}, byte"
    assert list(json_lines(str(path), 0, -1)) == [
        (f"{label} 0", {"a": 1}, ()),
        (f"{label} 11", None, ()),
        (f"{label} 19", None, (CAPTION_NOT_UTF8,)),
        (f"{label} 21", None, ()),
        (f"{label} 100022", "café", (CAPTION_NOT_UTF8,)),
    ]


def test_text_is_read_whatever_its_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt.gz"
    path.write_bytes(gzip.compress("é\n".encode() + b"\xe9\nend"))
    notes: set[str] = set()
    with open_text(str(path), notes) as lines:
        assert (next(lines), notes) == ("é\n", set())
        assert (next(lines), notes) == ("é\n", {CAPTION_NOT_UTF8})
        assert list(lines) == ["end"]


EMOJI, HALF = b"\xed\xa0\xbd\xed\xb8\x80", b"\xed\xa0\xbd"


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        ("a 😀 café".encode(), "a 😀 café", None),
        (b"caf\xe9", "café", CAPTION_NOT_UTF8),
        (b"it\x92s \x93Lap Leg\x94", "it’s “Lap Leg”", CAPTION_NOT_UTF8),
        (b"smile " + EMOJI, "smile 😀", CAPTION_NOT_UTF8),
        ("café ".encode() + EMOJI, "café 😀", CAPTION_NOT_UTF8),
        (b"smile " + HALF, "smile \ufffd", CAPTION_DAMAGED),
        (EMOJI + HALF, "😀\ufffd", CAPTION_DAMAGED),
        (b"a\xc0\x80b", "a\0b", CAPTION_NOT_UTF8),
        ("日本語".encode()[:-1], "日本\ufffd", CAPTION_DAMAGED),
        ("café, naïve".encode() + b"\xe2\x80", "café, naïve\ufffd", CAPTION_DAMAGED),
        (b"caf\xe9 \x81", "café \ufffd", CAPTION_DAMAGED),
        ("кот".encode("cp1251"), "êîò", CAPTION_DAMAGED),
        ("行人".encode("gbk"), "ÐÐÈË", CAPTION_DAMAGED),
        (b"", "", None),
    ],
)
def test_text_that_is_no_utf8_is_decoded_and_told(data: bytes, text: str, note: str | None) -> None:
    assert decode_line(data) == decode_text(data) == (text, note)


def test_a_mark_within_a_file_is_no_mark(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes(b"a\n\xff\xfeb\n")
    with open_text(str(tmp_path / "lines.txt")) as lines:
        assert list(lines) == ["a\n", "ÿþb\n"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-8"])
def test_text_is_read_without_its_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    path.write_bytes("é,a\r\n\u0a0a\n犬".encode(encoding))
    with open_text(str(path)) as lines:
        assert list(lines) == ["é,a\r\n", "\u0a0a\n", "犬"]


def test_lines_lie_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\xef\xbb\xbf[1]\n[2]\n")
    assert list(read_lines(str(path), 0, -1)) == [(0, b"[1]"), (7, b"[2]")]
    path.write_text("[1]\n", encoding="utf-16")
    with pytest.raises(MissingInputError, match="expected UTF-8"):
        list(read_lines(str(path), 0, -1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere"):
        list(read_lines(str(tmp_path / "nowhere"), 0, 10))


def test_csv_lines_may_end_with_carriage_returns_outside_of_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'a,b\rc,"d\re"\r\nf\0,g\n')
    with open_csv(str(tmp_path / "a.csv")) as lines:
        assert list(csv.reader(lines)) == [["a", "b"], ["c", "d\re"], ["f\0", "g"]]


def test_a_quote_that_nobody_closes_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,"b\n' + "c,d\n" * (MAX_CELL_CHARS // 4))
    with (
        pytest.raises(MissingInputError, match=r"a\.csv: not readable as CSV"),
        open_csv(str(tmp_path / "a.csv")) as rows,
    ):
        list(csv.reader(rows))
