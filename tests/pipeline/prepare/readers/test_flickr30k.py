from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import CAPTION_DAMAGED, CAPTION_NOT_UTF8, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.flickr30k import (
    MAX_FILE_BYTES,
    Mention,
    merge,
    parse_boxes,
    parse_sentence,
    read_flickr30k_entities,
    split_lines,
)
from pipeline.store.records import GroundingRecord
from pipeline.store.shards import read_shard, write_shard

ReadRows = Callable[..., list[Any]]
Read = Callable[..., list[RawTable]]

SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#3/bodyparts/people their hands] .
[/EN#1/people Two young , White males] are outside near [/EN#4/scene many bushes] .
[/EN#1/people Two men] in [/EN#5/clothing green shirts] are standing in [/EN#9/scene a yard] .
[/EN#6/people A man] looks at [/EN#0/notvisual each other] while [/EN#6/people he] stands .
Nothing is marked here .
"""
XML = """\
<annotation>
	<filename>1000092795.jpg</filename>
	<size>
		<width>40</width>
		<height>30</height>
		<depth>3</depth>
	</size>
	<object>
		<name>1</name>
		<bndbox>
			<xmin>1</xmin>
			<ymin>2</ymin>
			<xmax>10</xmax>
			<ymax>20</ymax>
		</bndbox>
	</object>
	<object>
		<name>1</name>
		<name>6</name>
		<bndbox>
			<xmin>21</xmin>
			<ymin>6</ymin>
			<xmax>40</xmax>
			<ymax>30</ymax>
		</bndbox>
	</object>
	<object>
		<name>4</name>
		<scene>1</scene>
		<nobndbox>0</nobndbox>
	</object>
	<object>
		<name>5</name>
		<scene>0</scene>
		<nobndbox>1</nobndbox>
	</object>
</annotation>
"""


def annotation(*objects: str) -> bytes:
    size = "<size><width>40</width><height>30</height></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>".encode()


def box(*corners: Any, names: tuple[str, ...] = ("1",)) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    inside = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object>{''.join(f'<name>{n}</name>' for n in names)}<bndbox>{inside}</bndbox></object>"


@pytest.fixture
def read(context: SourceContext, tmp_path: Path, picture: Callable[..., bytes]) -> Read:
    """Writes a picture with its two files, by id, and opens the split."""

    def write_and_open(
        pictures: dict[str, tuple[Any, Any]] | None = None, listed: str | None = None, **options: Any
    ) -> list[RawTable]:
        pictures = {"1000092795": (SENTENCES, XML)} if pictures is None else pictures
        for folder in ("Sentences", "Annotations", "pictures"):
            (tmp_path / folder).mkdir(exist_ok=True)
        for name, files in pictures.items():
            (tmp_path / "pictures" / f"{name}.jpg").write_bytes(picture())
            for content, place in zip(files, (f"Sentences/{name}.txt", f"Annotations/{name}.xml"), strict=True):
                if content is not None:
                    (tmp_path / place).write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "train.txt").write_text("\n".join(pictures) + "\n" if listed is None else listed)
        options = {"annotations": Url(tmp_path), "images": Url(tmp_path / "pictures"), "split": "train"} | options
        return read_flickr30k_entities(context, **options)

    return write_and_open


def test_every_sentence_is_a_row_with_its_phrases(read: Read, read_rows: ReadRows) -> None:
    [table] = read()
    rows = read_rows(table)
    assert table.record_type is GroundingRecord
    assert [row.caption for row in rows[:4]] == [
        "Two young guys with shaggy hair look at their hands .",
        "Two young , White males are outside near many bushes .",
        "Two men in green shirts are standing in a yard .",
        "A man looks at each other while he stands .",
    ]
    assert rows[4] == Reject("1000092795, sentence 4", "no_phrases")
    assert [phrase.text for phrase in rows[0].phrases] == ["Two young guys", "shaggy hair", "their hands"]
    assert [phrase.char_spans for phrase in rows[0].phrases] == [((0, 14),), ((20, 31),), ((40, 51),)]
    assert (rows[0].height, rows[0].width) == (30, 40)


def test_phrases_count_to_their_types_also_after_a_shard(read: Read, read_rows: ReadRows, tmp_path: Path) -> None:
    rows = read_rows(read({"7": ("[/EN#1/people A man] in [/EN#2/clothing/other a sack] near [/EN#3 it] .", XML)})[0])
    write_shard(tmp_path / "part-00000.parquet", rows, GroundingRecord)
    (row,) = read_shard(tmp_path / "part-00000.parquet", GroundingRecord)
    assert [phrase.split for phrase in row.phrases] == ["people", "clothing/other", None]


def test_the_same_sentence_of_one_picture_is_as_many_rows(read: Read, read_rows: ReadRows) -> None:
    sentence = "[/EN#1/people A man] runs .\n"
    rows = read_rows(read({"7": (sentence * 2, XML)})[0])
    assert [row.caption for row in rows] == ["A man runs ."] * 2
    assert rows[0].key != rows[1].key


def test_boxes_belong_to_chains_and_reach_to_the_last_pixel(read: Read, read_rows: ReadRows) -> None:
    rows = read_rows(read()[0])
    found = [[[box.xyxy for box in phrase.boxes] for phrase in row.phrases] for row in rows[:4]]
    first, second = (0, 1, 10, 20), (20, 5, 40, 30)
    assert found == [
        [[first, second], [], []],
        [[first, second], []],
        [[first, second], [], []],
        [[second], [], [second]],
    ]


def test_merged_boxes_are_one_box_around_all(read: Read, read_rows: ReadRows) -> None:
    rows = read_rows(read(boxes="merged")[0])
    assert [[box.xyxy for box in phrase.boxes] for phrase in rows[0].phrases] == [[(0, 1, 40, 30)], [], []]
    assert [[box.xyxy for box in phrase.boxes] for phrase in rows[3].phrases] == [
        [(20, 5, 40, 30)],
        [],
        [(20, 5, 40, 30)],
    ]


def test_pictures_are_known_by_their_number_in_flickr30k(read: Read) -> None:
    [part] = read()[0].parts(100)
    assert {row.image.picture_id for row in part.rows()} == {"flickr30k/1000092795"}  # type: ignore[union-attr]


def test_pictures_need_not_be_opened(read: Read, read_rows: ReadRows, tmp_path: Path) -> None:
    [table] = read()
    (tmp_path / "pictures" / "1000092795.jpg").unlink()
    rows = read_rows(table, pictures="unread")
    assert (rows[0].height, rows[0].width) == (30, 40)


def test_chain_zero_has_no_box_whatever_the_file_says(read: Read, read_rows: ReadRows) -> None:
    rows = read_rows(read({"7": ("[/EN#0/notvisual it] rains .", annotation(box(1, 1, 9, 9, names=("0",))))})[0])
    assert [phrase.boxes for phrase in rows[0].phrases] == [()]


def test_lists_may_lie_elsewhere(read: Read, read_rows: ReadRows, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val.txt").write_bytes(b"1000092795\r\n\r\n")
    rows = read_rows(read(listed="", lists=Url(tmp_path / "lists"), split="val")[0])
    assert len(rows) == 5


def test_files_are_read_from_any_file_system(
    context: SourceContext, read_rows: ReadRows, picture: Callable[..., bytes]
) -> None:
    root = "memory://flickr30k"
    contents = {"Sentences/7.txt": SENTENCES.encode(), "Annotations/7.xml": XML.encode(), "train.txt": b"7"}
    for name, content in {**contents, "pictures/7.jpg": picture()}.items():
        with fsspec.open(f"{root}/{name}", "wb") as file:
            file.write(content)
    [table] = read_flickr30k_entities(
        context, annotations=Url(root), images=Url(f"{root}/pictures"), split="train", boxes="separate"
    )
    assert [type(row) for row in read_rows(table)] == [GroundingRecord] * 4 + [Reject]


def test_parts_are_ranges_of_the_list(read: Read, read_rows: ReadRows) -> None:
    [table] = read({str(i): (f"[/EN#1/people person {i}] .", annotation(box(1, 1, 9, 9))) for i in range(5)})
    names = [part.name.rpartition(", ")[2] for part in table.parts(10)]
    assert names == ["pictures 0 to 2", "pictures 2 to 4", "pictures 4 to 5"]
    assert [row.caption for row in read_rows(table, rows_per_part=1)] == [f"person {i} ." for i in range(5)]


def test_identity_follows_files_and_options(read: Read, tmp_path: Path) -> None:
    def identity(**options: Any) -> str:
        [part] = read({}, "1000092795\n", **options)[0].parts(100)
        return part.identity

    read()
    first = identity()
    assert identity() == first
    assert identity(boxes="merged") != first
    assert identity(images=Url(tmp_path)) != first
    for place in ("Sentences/1000092795.txt", "Annotations/1000092795.xml"):
        os.utime(tmp_path / place, (1, 1))
        assert identity() != first
        first = identity()


@pytest.mark.parametrize(
    ("files", "reasons"),
    [
        ((None, XML), ["row_malformed"]),
        ((SENTENCES, None), ["row_malformed"]),
        ((SENTENCES, ""), ["row_malformed"]),
        ((SENTENCES, XML[:-40]), ["row_malformed"]),
        ((SENTENCES, "no XML"), ["row_malformed"]),
        ((SENTENCES, XML + " " * MAX_FILE_BYTES), ["row_malformed"]),
        ((SENTENCES * 4000, XML), ["row_malformed"]),
        (("", XML), []),
        (("[/EN#1/people a man\na dog .\n", XML), ["row_malformed", "no_phrases"]),
        (("[/EN#1/people a [/EN#2/other b] c]", XML), ["row_malformed"]),
        (("\n \n[/EN#1/people ]", XML), ["caption_empty"]),
        (("[/EN#1/people ] .", XML), ["span_empty", "span_empty", "no_phrases"]),
    ],
)
def test_a_broken_picture_or_sentence_is_rejected_alone(
    read: Read, read_rows: ReadRows, files: tuple[Any, Any], reasons: list[str]
) -> None:
    rows = read_rows(read({"1": files, "2": ("[/EN#1/people a man] .", XML)})[0])
    assert [row.reason for row in rows[:-1]] == reasons
    assert rows[-1].caption == "a man ."


def test_boxes_without_numbers_are_dropped_and_their_phrases_stay(read: Read, read_rows: ReadRows) -> None:
    xml = annotation(box(1, 1, "wide", 9), box(1, 1, 9), box(1, 1, "inf", 9), box(5, 6, 9, 10), box())
    for boxes in ("separate", "merged"):
        *dropped, row = read_rows(read({"7": ("[/EN#1/people a man] .", xml)}, boxes=boxes)[0])
        assert [item.reason for item in dropped] == ["box_malformed"] * 3
        assert [item.xyxy for item in row.phrases[0].boxes] == [(4, 5, 9, 10)]


def test_a_picture_that_is_listed_twice_is_read_twice(read: Read, read_rows: ReadRows) -> None:
    rows = read_rows(read(listed="1000092795\n1000092795\n")[0])
    assert len(rows) == 10
    assert rows[0].key == rows[5].key


@pytest.mark.parametrize("name", ["../1000092795", "../../etc/passwd", "/etc/passwd", "s3://bucket/1", "a::b"])
def test_ids_stay_inside_their_folders(read: Read, read_rows: ReadRows, name: str) -> None:
    rows = read_rows(read(listed=f"{name}\n1000092795\n")[0])
    assert len(rows) == 6
    assert rows[0].name == name
    assert rows[0].reason in {"image_outside_folder", "row_malformed"}


def test_captions_are_kept_as_they_are(read: Read, read_rows: ReadRows) -> None:
    rows = read_rows(read({"7": ("[/EN#1/people <b>A man</b>] &amp; [sic] caf\u00e9 .", XML)})[0])
    assert rows[0].caption == "<b>A man</b> &amp; [sic] caf\u00e9 ."


@pytest.mark.parametrize("folder", ["Sentences", "Annotations"])
def test_folder_without_files_is_named(read: Read, folder: str) -> None:
    files = (None, XML) if folder == "Sentences" else (SENTENCES, None)
    with pytest.raises(MissingInputError, match=f"no file in {folder} for the first 1 pictures"):
        read({"7": files})


def test_absent_and_empty_lists_are_named(read: Read, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"test\.txt: no such file"):
        read(split="test")
    with pytest.raises(MissingInputError, match=r"train\.txt: no picture ids; expected one a line"):
        read(listed="\n \n")


ENTITIES = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("prefix", [ENTITIES, EXTERNAL, '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">'])
def test_xml_that_defines_entities_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="document type"):
        parse_boxes((prefix + "<annotation><object><name>&b;</name></object></annotation>").encode())


def test_xml_of_any_depth_is_read() -> None:
    depth = 50_000
    assert parse_boxes(b"<annotation>" + b"<a>" * depth + b"</a>" * depth + b"</annotation>").by_chain == {}


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: f"<annotation>{text}</annotation>".encode()))
def test_any_bytes_are_boxes_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_boxes(data)


@given(st.binary(max_size=200))
def test_any_line_is_a_caption_with_spans_inside_or_refused(data: bytes) -> None:
    for line, _ in split_lines(b"[/EN#1/people a man] " + data):
        with contextlib.suppress(ValueError):
            caption, mentions = parse_sentence(line)
            assert caption == " ".join(caption.split()) or mentions
            assert all(0 <= mention.start <= mention.end <= len(caption) for mention in mentions)


def test_encodings_may_change_from_line_to_line() -> None:
    data = b"\xef\xbb\xbfcaf\xc3\xa9\r\ncaf\xe9\n\n \nit\x92s\x81\x85 one\n\xe2\x80\xa8"
    assert split_lines(data) == [
        ("café\r", None),
        ("café", CAPTION_NOT_UTF8),
        ("it’s\ufffd… one", CAPTION_DAMAGED),
        ("\u2028", None),
    ]


WORDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="[]", exclude_categories=["Z", "C"]), min_size=1).filter(
        lambda word: not word.isspace()
    ),
    min_size=1,
    max_size=4,
).map(" ".join)
TYPES = st.lists(st.sampled_from(["people", "bodyparts", "clothing", "notvisual", "scene"]), max_size=3).map(tuple)
PHRASES = st.tuples(st.integers(0, 10**6).map(str), TYPES, WORDS)


@given(st.lists(WORDS | PHRASES, max_size=8), st.sampled_from([" ", "  ", "\t"]))
def test_marked_phrases_are_found_where_they_were_put(pieces: list[Any], gap: str) -> None:
    words = [piece if isinstance(piece, str) else piece[2] for piece in pieces]
    marked = [p if isinstance(p, str) else f"[/EN#{p[0]}{''.join(f'/{t}' for t in p[1])} {p[2]}]" for p in pieces]
    caption, mentions = parse_sentence(gap.join(marked).replace(" ", gap))
    assert caption == " ".join(words)
    assert [(m.chain, m.types, caption[m.start : m.end]) for m in mentions] == [
        p for p in pieces if isinstance(p, tuple)
    ]
    assert all(before.end < after.start for before, after in pairwise(mentions))


@pytest.mark.parametrize(
    ("line", "caption", "mentions"),
    [
        ("a [dog] runs", "a [dog] runs", []),
        ("a ] dog [ runs", "a ] dog [ runs", []),
        ("[/EN#x/people a dog]", "[/EN#x/people a dog]", []),
        ("[/EN#1/people]", "[/EN#1/people]", []),
        ("[/EN#1/people a [big dog]", "a [big dog", [Mention("1", ("people",), 0, 10)]),
        ("[[/EN#1/other x]]", "[x]", [Mention("1", ("other",), 1, 2)]),
        ("[/EN#1/people a dog]'s tail", "a dog's tail", [Mention("1", ("people",), 0, 5)]),
        ("", "", []),
    ],
)
def test_brackets_that_are_no_markup_stay(line: str, caption: str, mentions: list[Mention]) -> None:
    assert parse_sentence(line) == (caption, mentions)


@pytest.mark.parametrize("line", ["[/EN#1/people a dog", "[/EN#1/a b [/EN#2/c d] e]", "[/EN#1/a b [/EN#2/c d]"])
def test_phrases_in_one_another_and_without_end_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match="does not end before the next"):
        parse_sentence(line)


def test_merging_keeps_boxes_without_numbers_apart() -> None:
    assert merge([]) == []
    assert merge([()]) == [()]
    assert merge([(1, 2, 3, 4), (), (0, 3, 2, 9)]) == [(0, 2, 3, 9), ()]
