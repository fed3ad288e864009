"""Files behind paths and URLs: local, S3, HTTP; whole, in part, by patterns; what is said of one that is missing."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_model.images import ImageError
from pipeline.errors import MissingInputError
from pipeline.prepare.raw import RawTable, SourceContext, Url
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.pair_tables import read_image_parquet
from pipeline.prepare.readers.webdataset import read_webdataset
from pipeline.prepare.validation import Rules, to_records
from pipeline.settings import load_all
from pipeline.store.filesystem import file_identity, list_files, open_file, read_many
from pipeline.store.image_roots import join_inside
from pipeline.store.urls import byte_range

ROOT = Path(__file__).resolve().parents[3]
CONTENT = bytes(range(100))
ODD_NAMES = ["a#b.bin", "a?b.bin", "a%2e.bin", "%2e%2e", "a[1].bin", "a*.bin", "{a,b}.bin", "ä ü+&.bin", "a@b:c.bin"]


def read_one(url: str) -> bytes:
    (found,) = read_many([url], None)
    if isinstance(found, ImageError):
        raise found
    return found


def missing(url: str) -> str:
    """Return the message about a file that cannot be read."""
    with pytest.raises(ImageError) as caught:
        read_one(url)
    assert caught.value.reason == "image_missing"
    return str(caught.value)


# Names


def test_very_long_names_are_missing(tmp_path: Path, s3: Any) -> None:
    for folder in (str(tmp_path), "s3://raw", "memory://x"):
        for name in ("x" * 300, "ü" * 2000, "x/" * 2000 + "x"):
            assert missing(join_inside(folder, name))
        for name in ("x" * 4097, "ü" * 2049, "x/" * 50_000):
            with pytest.raises(ImageError, match="no file can be called") as caught:
                join_inside(folder, name)
            assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_read_as_they_are(name: str, tmp_path: Path, s3: Any, memory: Any, web: Any) -> None:
    decoys = {"a", "a.bin", "b.bin", "a1.bin", "ab.bin", "a%2e%2e", "index.html"}
    files = dict.fromkeys(decoys, b"decoy") | {name: CONTENT}
    (tmp_path / "x").mkdir()
    (web.folder / "x").mkdir()
    for file, data in files.items():
        (tmp_path / "x" / file).write_bytes(data)
        (web.folder / "x" / file).write_bytes(data)
        s3.pipe(f"raw/x/{file}", data)
        memory.pipe(f"/x/{file}", data)
    for folder in (f"{tmp_path}/x", f"file://{tmp_path}/x", "s3://raw/x", "memory://x", f"{web.url}/x"):
        url = join_inside(folder, name)
        assert read_one(url) == CONTENT
        assert read_one(byte_range(url, 10, 5)) == CONTENT[10:15]
        with open_file(url) as file_:
            assert file_.read() == CONTENT
        assert str(len(CONTENT)) in file_identity(url)
    if "{" not in name:
        assert list_files(f"{tmp_path}/x/{name}") == [f"{tmp_path}/x/{name}"]


# Bytes


@settings(deadline=None)
@given(st.binary(max_size=50), st.integers(0, 60), st.integers(0, 60))
def test_ranges_give_the_bytes_that_they_name(data: bytes, first: int, length: int) -> None:
    fsspec.filesystem("memory").pipe("/ranges", data)
    url = byte_range("memory://ranges", first, length)
    if first + length <= len(data) or length == 0:
        assert read_one(url) == data[first : first + length]
    else:
        assert "the file ends before" in missing(url)


@pytest.fixture
def folders(tmp_path: Path, s3: Any, s3_endpoint: str, memory: Any, web: Any) -> list[str]:
    """Names folders of all kinds that hold the same two files: ``a`` of 100 bytes and an empty one."""
    for name, data in (("a", CONTENT), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        (web.folder / name).write_bytes(data)
        s3.pipe(f"raw/{name}", data, ACL="public-read")
        memory.pipe(f"/{name}", data)
    # The S3 server gives ranges over HTTP as well, the other one sends whole files in their place.
    return [str(tmp_path), f"file://{tmp_path}", "memory://", "s3://raw", f"{s3_endpoint}/raw", web.url]


def test_ranges_mean_the_same_on_every_file_system(folders: list[str]) -> None:
    for folder in folders:
        a, empty, nobody = (join_inside(folder, name) for name in ("a", "empty", "nobody"))
        ranges = [(0, 5), (10, 1), (95, 5), (0, 100), (7, 0), (0, 0)]
        urls = [a, empty, nobody, *(byte_range(a, first, length) for first, length in ranges)]
        whole, nothing, error, *cut = read_many(urls, None)
        assert (whole, nothing) == (CONTENT, b"")
        assert isinstance(error, ImageError)
        assert str(error) == f"{nobody}: no such file"
        assert cut == [CONTENT[first : first + length] for first, length in ranges]
        assert [read_one(url) for url in urls[:2]] == [CONTENT, b""]
        for first, length in [(95, 6), (100, 1), (500, 5)]:
            assert missing(byte_range(a, first, length)).startswith(f"{a}#bytes={first}-{first + length - 1}: ")


@pytest.mark.parametrize(
    "ending", ["9-2", "0-999999999999999", f"0-{'9' * 30}", f"0-{'9' * 5000}", f"{'9' * 30}-{'9' * 31}", "1-", "-5"]
)
def test_ranges_that_make_no_sense_are_missing_and_take_no_memory(ending: str, tmp_path: Path, memory: Any) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    memory.pipe("/a", CONTENT)
    assert missing(f"{tmp_path}/a#bytes={ending}")
    (result,) = read_many([f"memory://a#bytes={ending}"], None)
    assert isinstance(result, ImageError)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        odd = [tmp_path / "pipe", tmp_path / "socket", tmp_path, Path("/dev/zero"), Path("/dev/stdin")]
        start = time.monotonic()
        for path in odd:
            for url in (str(path), f"file://{path}"):
                assert "a folder, a pipe or a device" in missing(url)
                assert "a folder, a pipe or a device" in missing(byte_range(url, 0, 5))
                for look in (list_files, lambda place: open_file(place).__enter__()):
                    with pytest.raises(MissingInputError, match="a folder, a pipe or a device"):
                        look(url)
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert missing(str(tmp_path / "loop"))
    assert time.monotonic() - start < 5


def test_many_files_are_read_in_their_order(tmp_path: Path, web: Any, s3: Any, memory: Any) -> None:
    s3.pipe("raw/2", b"xx")
    memory.pipe("/5", b"xxxxx")
    (web.folder / "denied").mkdir()
    for i in range(5):
        (tmp_path / f"{i}").write_bytes(b"x" * i)
        (web.folder / f"{i}").write_bytes(b"x" * i)
    good = [str(tmp_path / "3"), f"{web.url}/1", "s3://raw/2", "memory://5", f"{web.url}/4", "memory://5", "s3://raw/2"]
    bad = [f"{web.url}/nobody", str(tmp_path / "nobody"), "nobody://a/b", f"{web.url}/denied/1", "http://[broken/a"]
    bad += ["s3://raw/nobody", "s3://nobucket/a", "s3://Not A Bucket!/a", "s3://", "http://127.0.0.1:1/a", ""]
    urls = [url for pair in zip(bad, good * 2, strict=False) for url in pair]
    results = read_many(urls, None)
    assert len(results) == len(urls)
    for url, result in zip(urls, results, strict=True):
        if url in good:
            assert result == b"x" * int(url[-1])
        else:
            assert isinstance(result, ImageError)
            assert result.reason == "image_missing"
            assert str(result).startswith(f"{url}: ")
    assert read_many([], None) == []


def test_a_missing_file_is_asked_for_once(web: Any) -> None:
    # Pictures may lie in one of several places: most requests of some data sets find nothing.
    read_many([f"{web.url}/{i}" for i in range(5)], None)
    assert sorted(web.requests) == [f"GET /{i}" for i in range(5)]


def test_archives_of_one_kind_are_not_mixed_up(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("x.txt", name)
            archive.writestr("y.csv", name)
    folders = [f"zip://::{tmp_path}/{name}.zip" for name in ("a", "b", "a")]
    assert read_many([join_inside(folder, "x.txt") for folder in folders], None) == [b"a", b"b", b"a"]
    assert list_files(f"zip://*.txt::{tmp_path}/b.zip") == [f"zip://x.txt::{tmp_path}/b.zip"]


# Files that stand for others


def test_patterns_are_expanded(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i:05d}.tar").touch()
    names = [f"{i:05d}.tar" for i in range(12)]
    assert [Path(path).name for path in list_files(f"{tmp_path}/*.tar")] == names
    assert [Path(path).name for path in list_files(f"{tmp_path}/0000[3-5].tar")] == names[3:6]
    assert [Path(path).name for path in list_files(f"{tmp_path}/{{00009..00011}}.tar")] == names[9:]
    assert [Path(path).name for path in list_files(f"{tmp_path}/0001{{1,0}}.tar")] == [names[11], names[10]]
    assert [Path(path).name for path in list_files(f"{tmp_path}/0000{{1,?}}.tar")] == [
        "00001.tar",
        names[0],
        *names[2:10],
    ]
    assert list_files(f"{tmp_path}/00003.tar") == [f"{tmp_path}/00003.tar"]
    assert list_files(f"file://{tmp_path}/0001?.tar") == [f"file://{tmp_path}/{name}" for name in names[10:]]
    for pattern in ("*.zip", "{00011..00012}.tar", "nobody.tar", "nobody/*.tar", ""):
        with pytest.raises(MissingInputError, match=r"mend the pa"):
            list_files(f"{tmp_path}/{pattern}")


def test_a_pattern_matches_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    (tmp_path / "b.tar").symlink_to(tmp_path / "a.tar")
    (tmp_path / "c.tar").symlink_to(tmp_path / "nobody")
    (tmp_path / "d.tar").mkdir()
    os.mkfifo(tmp_path / "e.tar")
    assert [Path(path).name for path in list_files(f"{tmp_path}/*.tar")] == ["a.tar", "b.tar"]


def test_a_file_called_like_a_pattern_is_itself(tmp_path: Path) -> None:
    for name in ("a[1].tar", "a1.tar"):
        (tmp_path / name).touch()
    assert list_files(f"{tmp_path}/a[1].tar") == [f"{tmp_path}/a[1].tar"]


def test_patterns_work_on_every_file_system(s3: Any, memory: Any, web: Any) -> None:
    for name in ("a.tar", "b.tar", "c.txt", "d.tar/e"):
        s3.pipe(f"raw/x/{name}", b"x")
        memory.pipe(f"/x/{name}", b"x")
        (web.folder / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (web.folder / "x" / name).write_bytes(b"x")
    for folder in ("s3://raw/x", "memory://x", f"{web.url}/x"):
        assert list_files(f"{folder}/*.tar") == [f"{folder}/a.tar", f"{folder}/b.tar"]
        assert list_files(f"{folder}/{{a,c}}.*") == [f"{folder}/a.tar", f"{folder}/c.txt"]
        assert list_files(f"{folder}/a.tar") == [f"{folder}/a.tar"]
        with pytest.raises(MissingInputError, match="no such file"):
            list_files(f"{folder}/nobody.tar")
        with pytest.raises(MissingInputError, match="no file matches"):
            list_files(f"{folder}/*.zip")
    for folder in ("s3://raw/x", "memory://x"):
        with pytest.raises(MissingInputError, match="a folder; name the files in it"):
            list_files(folder)
    assert list_files(f"{web.url}/x/a.tar?sig=abc") == [f"{web.url}/x/a.tar?sig=abc"]


def test_a_pattern_sees_what_was_added_since_it_was_asked_last(s3: Any, s3_endpoint: str) -> None:
    s3.pipe("raw/x/a.tar", b"x")
    assert len(list_files("s3://raw/x/*.tar")) == 1
    request = urllib.request.Request(f"{s3_endpoint}/raw/x/b.tar", data=b"x", method="PUT")  # by somebody else
    urllib.request.urlopen(request).close()
    assert len(list_files("s3://raw/x/*.tar")) == 2


# What changes with a file


def test_the_identity_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    before = file_identity(str(path))
    assert file_identity(str(path)) == before
    path.write_text("three")
    assert file_identity(str(path)) != before
    path.write_text("one")
    os.utime(path, (5, 5))
    assert file_identity(str(path)) != before
    with pytest.raises(MissingInputError, match="no such file; mend the path"):
        file_identity(str(tmp_path / "b"))


def test_the_identity_changes_with_files_elsewhere(s3: Any, memory: Any, web: Any) -> None:
    def write(data: bytes, when: int) -> None:
        s3.pipe("raw/a", data)
        memory.pipe("/a", data)
        (web.folder / "a").write_bytes(data)
        os.utime(web.folder / "a", (when, when))

    urls = ["s3://raw/a", "memory://a", f"{web.url}/a"]
    write(b"one", 1_000_000)
    before = [file_identity(url) for url in urls]
    assert [file_identity(url) for url in urls] == before
    write(b"two", 2_000_000)
    for url, identity in zip(urls, before, strict=True):
        assert file_identity(url) != identity


def test_the_identity_tells_queries_apart_and_does_not_show_them(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (web.folder / "a").write_bytes(CONTENT)
    one, two = (f"{web.url}/a?shard={i}&token=SECRET" for i in (1, 2))
    assert file_identity(one) == file_identity(two)  # the version of the file says that they are the same
    monkeypatch.setattr("pipeline.store.filesystem._VERSIONS", ())
    assert file_identity(one) != file_identity(two)
    assert "SECRET" not in file_identity(one)


# Open files


def test_files_are_opened_plain_and_compressed(tmp_path: Path, s3: Any, memory: Any, web: Any) -> None:
    texts = {"a.txt": "ein Hund ü\n".encode(), "a.gz": gzip.compress(b"a dog")}
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
        (web.folder / name).write_bytes(data)
        s3.pipe(f"raw/{name}", data)
        memory.pipe(f"/x/{name}", data)
    for folder in (str(tmp_path), f"file://{tmp_path}", "s3://raw", "memory://x", web.url):
        with open_file(f"{folder}/a.txt", "r") as file:
            assert file.read() == "ein Hund ü\n"
        with open_file(f"{folder}/a.txt") as file:
            assert file.read() == texts["a.txt"]
        with open_file(f"{folder}/a.gz", compression="infer") as file:
            assert file.read() == b"a dog"
        assert file.closed
        with open_file(f"{folder}/a.gz", "r", compression="infer") as file:
            assert list(file) == ["a dog"]
        with open_file(f"{folder}/a.gz") as file:
            assert file.read() == texts["a.gz"]
        with pytest.raises(MissingInputError, match="b: no such file; mend the path"), open_file(f"{folder}/b"):
            pass


def test_a_path_is_no_url_because_of_two_colons(tmp_path: Path) -> None:
    (tmp_path / "a::b").write_bytes(CONTENT)
    with open_file(f"{tmp_path}/a::b") as file:
        assert file.read() == CONTENT
    assert read_one(f"{tmp_path}/a::b") == CONTENT
    assert list_files(f"{tmp_path}/a::b") == [f"{tmp_path}/a::b"]
    assert "100" in file_identity(f"{tmp_path}/a::b")


def test_a_read_that_fails_is_told_with_its_place(tmp_path: Path) -> None:
    broken = gzip.compress(bytes(range(256)) * 100)
    (tmp_path / "cut.gz").write_bytes(broken[:200])
    (tmp_path / "changed.gz").write_bytes(broken[:50] + b"\0\1\2\3" + broken[54:])
    (tmp_path / "text.gz").write_bytes(b"no gzip")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\xff")
    (tmp_path / "cut.xz").write_bytes(b"\xfd7zXZ\0\0\1")
    for name in ("cut.gz", "changed.gz", "text.gz", "latin.txt", "cut.xz"):
        with (
            pytest.raises(MissingInputError, match=f"{name}: .+; fetch the file again"),
            open_file(f"{tmp_path}/{name}", "r", compression="infer") as file,
        ):
            file.read()


def test_what_goes_wrong_besides_reading_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    for error in (ValueError("mine"), ImageError("image_missing", "mine"), MissingInputError("mine"), KeyError("mine")):
        with pytest.raises(type(error), match=r"^'?mine'?$"), open_file(str(tmp_path / "a")):
            raise error


# Whole data sets


def picture(width: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, 30), (width, 9, 9)).save(out, "PNG")
    return out.getvalue()


def records(table: RawTable, **rules: Any) -> list[Any]:
    checks = Rules(source="x", pictures="embed", max_pixels=10**6, categories=frozenset({1}), roots=("s3://raw",))
    rows = (row for part in table.parts(4) for row in part.rows())
    return list(to_records(rows, Rules(**{**vars(checks), **rules})))


@pytest.fixture
def context() -> SourceContext:
    return SourceContext(role="human", name="x", config=load_all(ROOT / "params.yaml").prepare, seed=0)


def test_a_data_set_reads_alike_from_s3_and_from_disk(s3: Any, tmp_path: Path, context: SourceContext) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(11)],
        "annotations": [{"image_id": i, "bbox": [1, 1, 9, 9], "category_id": 1} for i in range(11)],
        "categories": [{"id": 1, "name": "dog"}],
    }
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(picture(40 + i))
    (tmp_path / "a.json").write_text(json.dumps(content))
    s3.put(str(tmp_path) + "/", "raw/coco/", recursive=True)
    options = [{"annotations": Url(f"{root}/a.json"), "images": Url(root)} for root in (tmp_path, "s3://raw/coco")]
    local, remote = [records(read_coco_detection(context, **paths)[0]) for paths in options]  # type: ignore[arg-type]
    assert local == remote
    assert [getattr(row, "width", row.__class__.__name__) for row in remote] == [*range(40, 50), "Reject"]
    (table,) = read_coco_detection(context, **options[1])  # type: ignore[arg-type]
    by_reference = records(table, pictures="reference")
    assert by_reference[3].image.path == "s3://raw/coco/3.png"


def test_tars_and_tables_are_read_from_s3(s3: Any, tmp_path: Path, context: SourceContext) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for i in range(5):
            for suffix, data in (("png", picture(40 + i)), ("txt", b"a dog")):
                info = tarfile.TarInfo(f"{i}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    rows = [{"image": {"bytes": picture(40 + i), "path": ""}, "caption": "a dog"} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    s3.put(str(tmp_path) + "/", "raw/web/", recursive=True)
    (table,) = read_webdataset(context, shards=Url("s3://raw/web/{00000..00000}.tar"))
    found = records(table, pictures="reference")
    assert [row.width for row in found] == [40, 41, 42, 43, 44]
    assert read_many([row.image.path for row in found], None) == [picture(40 + i) for i in range(5)]
    (table,) = read_image_parquet(context, tables=Url("s3://raw/web/*.parquet"))
    assert [row.width for row in records(table)] == [40, 41, 42, 43, 44]


def test_the_environment_of_these_tests_holds_for_arrow_too(s3: Any) -> None:
    s3.pipe("raw/a", CONTENT)
    filesystem, path = pyarrow.fs.FileSystem.from_uri("s3://raw/a")
    with filesystem.open_input_file(path) as file:
        assert file.read() == CONTENT


def refusals(url: str, match: str) -> list[str]:
    """Return the messages of everything that reads, asked for what it cannot have."""
    messages = [missing(url), missing(byte_range(url, 0, 5))]
    for look in (lambda place: open_file(place).__enter__(), list_files, file_identity):
        with pytest.raises(MissingInputError, match=match) as caught:
            look(url)
        messages.append(str(caught.value))
    return messages


def test_what_s3_does_not_have_or_give_is_told_without_secrets(
    s3: Any, s3_denied: Callable[[], AbstractContextManager[None]]
) -> None:
    s3.pipe("raw/a", b"x")
    for url, lacking in (("s3://raw/nobody", "file"), ("s3://nobucket/a", "bucket")):
        for message in refusals(url, f"{url}: no such {lacking}; mend the path"):
            assert "THE" not in message
    with s3_denied():
        for message in refusals("s3://raw/a", "s3://raw/a: Forbidden; mend the path"):
            assert "s3://raw/a" in message
            assert "THE" not in message
        with pytest.raises(MissingInputError, match=r"s3://raw/\*: .+; mend the path") as caught:
            list_files("s3://raw/*")
        assert "THE" not in str(caught.value)
    for message in refusals("s3://THEKEYID:THE/SECRET@raw/a", r"s3://\*\*\*@raw/a: "):
        assert "THE" not in message
        assert "SECRET" not in message
    assert read_one("s3://raw/a") == b"x"


def test_what_the_web_does_not_give_is_told_without_secrets(web: Any) -> None:
    for place in ("denied/a", "nobody"):
        for message in refusals(f"{web.url}/{place}?X-Amz-Signature=SE%2FCRET", r"\?\*\*\*: .+; mend the path"):
            assert place in message
            assert "SE" not in message
            assert "CRET" not in message


@pytest.mark.parametrize("held", ["", "opening = open_file(urls[1]); opening.__enter__().read(1)\n"])
def test_a_process_that_read_from_s3_and_the_web_ends_quietly(held: str, s3: Any, web: Any) -> None:
    s3.pipe({f"raw/{i}": b"x" * i for i in range(20)})
    for i in range(20):
        (web.folder / f"{i}").write_bytes(b"x" * i)
    code = (
        "from pipeline.store.filesystem import list_files, open_file, read_many\n"
        f"urls = [f'{{root}}/{{i}}' for root in ('s3://raw', '{web.url}') for i in range(20)]\n"
        "assert [len(data) for data in read_many(urls, None)] == [*range(20), *range(20)]\n"
        "assert len(list_files('s3://raw/*')) == 20\n"
    )
    command = [sys.executable, "-W", "default", "-c", code + held]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
