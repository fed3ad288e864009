"""Tar shards of image-text pairs: good ones, and what comes of bad ones."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import CAPTION_NOT_UTF8, MEMBERS_UNREAD, Converted, RawPair, Reject, SourceContext, Url
from pipeline.prepare.readers import webdataset
from pipeline.prepare.readers.webdataset import read_tar, read_webdataset
from pipeline.store.images import load_image
from pipeline.store.records import CaptionRecord

Members = list[tuple[str, bytes]]
Encode = Callable[..., bytes]
KINDS = ("jpg", "txt", "json")


def write_tar(path: Path, members: Members, **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def pairs(picture: Encode) -> Members:
    """Three pairs as img2dataset writes them."""
    members: Members = []
    for i, caption in enumerate(["a dog", "eine Katze & mehr", "चित्र"]):
        key = f"{i:09d}"
        status = {"key": key, "caption": caption, "status": "success", "url": "https://example.org/a.jpg"}
        members += [
            (f"{key}.jpg", picture((40 + i, 30))),
            (f"{key}.json", json.dumps(status).encode()),
            (f"{key}.txt", caption.encode()),
        ]
    return members


def test_members_of_one_key_are_a_pair(
    pairs: Members, tmp_path: Path, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number:05d}.tar", pairs)
    (table,) = read_webdataset(context, shards=Url(tmp_path / "{00000..00001}.tar"))
    rows = read_rows(table)
    assert all(isinstance(row, CaptionRecord) for row in rows)
    assert [(row.width, row.caption) for row in rows[:3]] == [(40, "a dog"), (41, "eine Katze & mehr"), (42, "चित्र")]
    assert [row.key for row in rows[3:]] == [row.key for row in rows[:3]]
    assert len(list(table.parts(5))) == 2


def test_records_can_point_into_the_tar(
    pairs: Members, tmp_path: Path, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    write_tar(tmp_path / "a.tar", pairs)
    (table,) = read_webdataset(context, shards=Url(tmp_path / "a.tar"))
    rows = read_rows(table, pictures="reference")
    assert all(row.image.bytes is None for row in rows)
    assert [load_image(row.image, 10_000, ["/"]).width for row in rows] == [40, 41, 42]
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    (table,) = read_webdataset(context, shards=Url(tmp_path / "b.tar.gz"))
    assert [row.image.bytes for row in read_rows(table, pictures="reference")] == [data for _, data in pairs[::3]]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [("txt", "text"), ("json:alt", "alternative"), ("json:caption", "field"), ("cls", "field"), ("json:none", None)],
)
def test_the_caption_is_where_the_option_says(
    caption: str, expected: str | None, tmp_path: Path, picture: Encode
) -> None:
    fields = json.dumps({"caption": "field", "alt": "alternative"}).encode()
    path = write_tar(tmp_path / "a.tar", [("a.png", picture(kind="PNG")), ("a.txt", b"text"), ("a.json", fields)])
    (row,) = read_tar(str(path), caption)
    assert isinstance(row, RawPair)
    assert row.caption == expected


def test_pairs_lie_in_folders_and_have_suffixes_in_any_case(tmp_path: Path, picture: Encode) -> None:
    data = picture()
    members = [("x/a.JPG", data), ("x/a.txt", b"one"), ("y/a.jpeg", data), ("y/a.seg.png", b""), ("y/a.txt", b"two")]
    rows = list(read_tar(str(write_tar(tmp_path / "a.tar", members)), "txt"))
    assert [(row.name, row.caption) for row in rows if isinstance(row, RawPair)] == [("x/a", "one"), ("y/a", "two")]


def test_a_key_that_comes_again_is_a_pair_of_its_own(tmp_path: Path, picture: Encode) -> None:
    members = [("a.jpg", picture()), ("a.txt", b"one"), ("a.jpg", picture()), ("a.txt", b"two")]
    rows = list(read_tar(str(write_tar(tmp_path / "a.tar", members)), "txt"))
    assert [row.caption for row in rows if isinstance(row, RawPair)] == ["one", "two"]


def test_keys_may_have_periods(tmp_path: Path, picture: Encode) -> None:
    keys = ["IMG_2021.03.00", "IMG_2021.03.01", "x/i.1", "x/i.2", "mr.smith", "mr.jones"]
    members = [(f"{key}.{suffix}", picture() if suffix == "jpg" else key.encode()) for key in keys for suffix in KINDS]
    rows = list(read_tar(str(write_tar(tmp_path / "a.tar", members)), "txt"))
    assert [(row.name, row.caption) for row in rows if isinstance(row, RawPair)] == [(key, key) for key in keys]
    assert len(rows) == len(keys)


def test_words_behind_the_key_are_members_of_its_pair(tmp_path: Path, picture: Encode) -> None:
    data, mask = picture(), picture(kind="PNG")
    members = [
        *(("f.img.jpg", data), ("f.txt", b"f")),
        *(("a.depth.png", mask), ("a.jpg", data), ("a.seg.png", mask), ("a.txt", b"a")),
        *(("b.jpg", data), ("b.boxes.json", b"{}"), ("b.txt", b"b")),
        *(("c.txt", b"c"), ("c.left.jpg", data), ("c.right.jpg", data)),
    ]
    *rows, left, right = read_tar(str(write_tar(tmp_path / "a.tar", members)), "txt")
    assert [(row.name, row.caption, row.image.data) for row in rows if isinstance(row, RawPair)] == [
        (key, key, data) for key in "fab"
    ]
    assert [row.converted for row in rows if isinstance(row, RawPair)] == [(), (MEMBERS_UNREAD,) * 2, ()]
    assert [left, right] == [Reject("c.left.jpg", "row_malformed"), Reject("c.right.jpg", "row_malformed")]


def test_a_picture_that_may_be_of_a_pair_is_counted(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    members = [("mr.jpg", picture()), ("mr.txt", b"one"), ("mr.smith.jpg", picture((50, 50))), ("n.jpg", picture())]
    write_tar(tmp_path / "a.tar", [*members, ("n.txt", b"two")])
    (table,) = read_webdataset(context, shards=Url(tmp_path / "a.tar"))
    first, told, second = read_rows(table)
    assert (first.caption, first.width, second.caption) == ("one", 40, "two")
    assert told == Converted("mr", MEMBERS_UNREAD)


def test_what_is_not_understood_is_a_reject(tmp_path: Path, picture: Encode) -> None:
    members = [
        *(("2021.03.heic", b"x"), ("2021.03.txt", b"a dog"), ("README", b"x"), ("only.npy", b"x")),
        *(("h.jpg", picture()), ("h.png", picture(kind="PNG")), ("h.txt", b"two pictures"), ("i.1.jpg", picture())),
        ("._i.jpg", b"left by a Mac"),
    ]
    rows = list(read_tar(str(write_tar(tmp_path / "a.tar", members)), "txt"))
    assert rows[:3] == [Reject(name, "image_missing") for name in ("2021.03", "README", "only")]
    assert rows[4] == Reject("h.png: a second picture of h", "row_malformed")
    assert [(row.name, row.caption) for row in rows if isinstance(row, RawPair)] == [
        ("h", "two pictures"),
        ("i.1", None),
    ]
    assert len(rows) == 6


def test_captions_in_another_encoding_are_decoded_and_counted(tmp_path: Path, picture: Encode) -> None:
    members = [("a.jpg", picture()), ("a.txt", "café".encode("latin-1")), ("b.jpg", picture()), ("b.txt", b"b")]
    first, second = read_tar(str(write_tar(tmp_path / "a.tar", members)), "txt")
    assert isinstance(first, RawPair)
    assert isinstance(second, RawPair)
    assert (first.caption, second.caption) == ("café", "b")
    assert (first.converted, second.converted) == ((CAPTION_NOT_UTF8,), ())
    members = [("a.jpg", picture()), ("a.json", b'{"caption": "caf\xe9"}')]
    (third,) = read_tar(str(write_tar(tmp_path / "b.tar", members)), "txt")
    assert isinstance(third, RawPair)
    assert (third.caption, third.converted) == ("café", (CAPTION_NOT_UTF8,))


def test_incomplete_and_broken_pairs_are_rejects(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    members = [
        ("a.txt", b"no picture"),
        ("b.jpg", picture()),
        ("c.jpg", picture()),
        ("c.txt", b"\xff\xfe"),
        ("d.jpg", b"no picture"),
        ("d.txt", b"a dog"),
        ("e.jpg", picture()),
        ("e.json", b"{"),
        ("f.jpg", picture()),
        ("f.json", b'"a dog"'),
        ("g.jpg", picture()),
        ("g.txt", b"<b>a cat</b>"),
    ]
    (table,) = read_webdataset(context, shards=Url(write_tar(tmp_path / "a.tar", members)))
    *rejects, good = read_rows(table)
    assert rejects == [
        Reject("a", "image_missing"),
        Reject("b", "caption_empty"),
        Reject("c", "caption_empty"),
        Reject("d", "image_unreadable"),
        Reject("e", "caption_empty"),
        Reject("f", "caption_empty"),
    ]
    assert good.caption == "<b>a cat</b>"


def test_a_tar_that_breaks_off_keeps_what_came_before(pairs: Members, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", pairs).read_bytes()
    for length in (len(whole) // 3, 700, 300):
        (tmp_path / "b.tar").write_bytes(whole[:length])
        *rows, last = read_tar(str(tmp_path / "b.tar"), "txt")
        assert isinstance(last, Reject)
        assert last.reason == "row_malformed"
        assert "b.tar" in last.name
        assert len(rows) < 3
    (tmp_path / "b.tar").write_bytes(b"not a tar at all" * 100)
    (last,) = read_tar(str(tmp_path / "b.tar"), "txt")
    assert isinstance(last, Reject)


def test_what_tarfile_takes_for_the_end_is_told_where_more_follows(pairs: Members, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", pairs).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        places = [member.offset for member in archive]
    broken = bytearray(whole)
    broken[places[3] + 150] ^= 1  # in the header's checksum
    for name, content, begins in (
        ("twice.tar", whole + whole, len(pairs) // 3),  # a second archive behind the first
        ("broken.tar", bytes(broken), 1),
    ):
        (tmp_path / name).write_bytes(content)
        *rows, last = read_tar(str(tmp_path / name), "txt")
        assert len(rows) == begins
        assert isinstance(last, Reject)
        assert (last.reason, name in last.name, "more behind byte" in last.name) == ("row_malformed", True, True)


def test_an_empty_tar_has_no_pairs(tmp_path: Path) -> None:
    assert list(read_tar(str(write_tar(tmp_path / "a.tar", [])), "txt")) == []


def test_pictures_that_are_no_plain_files_are_rejects(tmp_path: Path, picture: Encode) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.CHRTYPE), ("c.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name, data in (("../../d.jpg", picture()), ("../../d.txt", b"a dog")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    *links, row = read_tar(str(path), "txt")
    assert [(each.name, each.reason) for each in links] == [(name, "row_malformed") for name in "abc"]
    assert isinstance(row, RawPair)
    assert row.name == "../../d"  # only a name: the picture is taken from the tar, and nothing is written anywhere
    assert row.image.data == picture()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, sparse: bool = False) -> bytes:
    """Return a header that says what it likes."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    block[156:157] = kind
    if sparse:  # one piece of 512 bytes in a file that says that it has a gigabyte
        block[386:410] = b"%011o\0%011o\0" % (0, 512)
        block[483:495] = b"%011o\0" % (1 << 30)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("hostile", "told"),
    [
        (header("a.jpg", -512), "'a.jpg' has -512 bytes"),
        (header("a.bin", -1024), "'a.bin' has -1024 bytes"),  # which leads back to the header before
        (header("a.jpg", 1 << 20) + bytes(512), "it ends inside of 'a.jpg'"),
        (header("././@LongLink", 1 << 30, tarfile.GNUTYPE_LONGNAME) + bytes(1024), "a header of 1073741824 bytes"),
        (header("./PaxHeaders/a", 1 << 30, tarfile.XHDTYPE) + bytes(1024), "a header of 1073741824 bytes"),
    ],
)
def test_sizes_that_lie_cost_what_is_behind_them_alone(
    hostile: bytes, told: str, tmp_path: Path, picture: Encode
) -> None:
    path = write_tar(tmp_path / "a.tar", [("ok.jpg", picture()), ("ok.txt", b"a dog")])
    with tarfile.open(path) as archive:
        end = [member.offset_data + 512 * -(-member.size // 512) for member in archive][-1]
    path.write_bytes(path.read_bytes()[:end] + hostile + bytes(1024))
    pair, reject = read_tar(str(path), "txt")
    assert (pair.name, pair.caption) == ("ok", "a dog")
    assert reject.reason == "row_malformed"
    assert told in reject.name


def test_a_sparse_member_takes_nothing_of_its_neighbours(tmp_path: Path, picture: Encode) -> None:
    path = write_tar(tmp_path / "a.tar", [("z.jpg", picture()), ("z.txt", b"a dog")])
    piece = header("s.jpg", 512, tarfile.GNUTYPE_SPARSE, sparse=True) + bytes(512)
    path.write_bytes(piece + path.read_bytes())
    reject, pair = read_tar(str(path), "txt")
    assert reject == Reject("s", "row_malformed")
    assert (pair.name, pair.image.data) == ("z", picture())


def test_members_beyond_the_limit_are_not_unpacked(
    tmp_path: Path, picture: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "MAX_IMAGE_BYTES", 2000)
    monkeypatch.setattr(webdataset, "MAX_TEXT_BYTES", 10)
    members = [("a.jpg", bytes(2001)), ("a.txt", b"a dog"), ("b.jpg", picture()), ("b.txt", b"x" * 11)]
    first, second = read_tar(str(write_tar(tmp_path / "a.tar", members)), "txt")
    assert first == Reject("a", "image_too_large")
    assert isinstance(second, RawPair)
    assert second.caption is None


def test_shards_that_are_not_there_are_named(tmp_path: Path, context: SourceContext) -> None:
    write_tar(tmp_path / "00000.tar", [])
    with pytest.raises(MissingInputError, match=r"00001\.tar: no such file"):
        read_webdataset(context, shards=Url(tmp_path / "{00000..00001}.tar"))


@given(st.lists(st.tuples(st.text("ab./", min_size=1, max_size=4), st.sampled_from(["jpg", "txt", "json", "seg"]))))
def test_whatever_the_names_every_picture_comes_once(names: list[tuple[str, str]]) -> None:
    members = [(f"{stem}.{suffix}", f"{i}".encode()) for i, (stem, suffix) in enumerate(names)]
    with TemporaryDirectory() as folder:
        rows = list(read_tar(str(write_tar(Path(folder) / "a.tar", members)), "txt"))
    found = [row.image.data for row in rows if isinstance(row, RawPair)]
    expected = {data for name, data in members if name.endswith(".jpg") and name.rpartition("/")[2].partition(".")[0]}
    assert len(found) == len(set(found))
    assert {data for data in found if data is not None} <= expected
