"""Files behind paths and URLs: local, S3, HTTP; names that must not leave their folder, secrets that must not show."""

from __future__ import annotations

import gzip
import io
import json
import os
import posixpath
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glip_model.images import ImageError
from pipeline.config import load_config
from pipeline.data.filesystem import (
    byte_range,
    expand_braces,
    file_identity,
    join,
    join_inside,
    list_files,
    open_file,
    read_bytes,
    read_many,
    redact,
)
from pipeline.data.raw import RawTable, SourceContext, Url
from pipeline.data.readers.coco import read_coco_detection
from pipeline.data.readers.pair_tables import read_image_parquet
from pipeline.data.readers.webdataset import read_webdataset
from pipeline.data.validation import Rules, to_records
from pipeline.errors import MissingInputError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/a?b#c.jpg", "/data/a?b#c.jpg"),
        ("s3://bucket/key.jpg", "s3://bucket/key.jpg"),
        ("s3://KEY:SECRET@bucket/key", "s3://***@bucket/key"),
        ("https://me:p%40ss@host:8080/a", "https://***@host:8080/a"),
        ("https://host/a?X-Amz-Signature=abc&X-Amz-Credential=def", "https://host/a?***"),
        ("https://host/a#token=abc", "https://host/a"),
        ("s3://b/a.tar#bytes=5-9", "s3://b/a.tar#bytes=5-9"),
    ],
)
def test_secrets_are_cut_from_urls(url: str, expected: str) -> None:
    assert redact(url) == expected


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("data/raw", "a/b.json", "data/raw/a/b.json"),
        ("s3://bucket/raw/", "a.json", "s3://bucket/raw/a.json"),
        ("data", "/abs/a.json", "/abs/a.json"),
        ("s3://bucket", "hf://datasets/x/a.json", "hf://datasets/x/a.json"),
        ("", "a.json", "a.json"),
        ("/", "a.json", "/a.json"),
    ],
)
def test_relative_paths_start_at_the_root(root: str, path: str, expected: str) -> None:
    assert join(root, path) == expected


@pytest.mark.parametrize(
    "name",
    [
        "../a",
        "a/../../b",
        "..",
        ".",
        "/etc/passwd",
        "..\\a",
        "C:\\a",
        "c:a",
        "a::b",
        "zip://a",
        "x/s3://b",
        "a/..",
        "\\a",
    ],
)
def test_names_that_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        join_inside("s3://bucket/images", name)
    assert caught.value.reason == "image_outside_folder"


@pytest.mark.parametrize("name", ["", "a\0b", None, 5])
def test_names_that_no_file_can_have_are_missing(name: Any) -> None:
    with pytest.raises(ImageError) as caught:
        join_inside("/images", name)
    assert caught.value.reason == "image_missing"


@given(st.sampled_from(["/data/x", "s3://bucket/x", "x/"]), st.text(st.sampled_from("ab./\\:#?%[*"), max_size=12))
def test_a_joined_name_stays_below_its_folder(folder: str, name: str) -> None:
    try:
        place = join_inside(folder, name)
    except ImageError:
        return
    below = place.removeprefix(folder.rstrip("/") + "/")
    assert place.startswith(folder.rstrip("/") + "/")
    assert posixpath.normpath(below) == below
    assert below.split("/")[0] not in {"", ".."}


def test_files_and_ranges_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a#b?c[1]*.bin"
    path.write_bytes(bytes(range(100)))
    assert read_bytes(str(path)) == bytes(range(100))
    assert read_bytes(byte_range(str(path), 10, 5)) == bytes(range(10, 15))
    assert read_bytes(f"file://{tmp_path}/a#b?c[1]*.bin") == bytes(range(100))
    with pytest.raises(ImageError, match="the file ends before"):
        read_bytes(byte_range(str(path), 98, 5))


def test_what_is_no_file_is_missing_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nobody", Path("/dev/zero")):
        with pytest.raises(ImageError, match=r"no such file|a folder, a pipe or a device"):
            read_bytes(str(path))
    assert time.monotonic() - start < 5


def test_many_files_are_read_in_their_order(tmp_path: Path, web: str) -> None:
    for i in range(5):
        (tmp_path / f"{i}").write_bytes(b"x" * i)
    urls = [str(tmp_path / "3"), f"{web}/1", f"{web}/nobody", str(tmp_path / "nobody"), f"{web}/4", "nobody://a/b"]
    first, second, *missing, last, unknown = read_many(urls)
    assert (first, second, last) == (b"xxx", b"x", b"xxxx")
    for error in (*missing, unknown):
        assert isinstance(error, ImageError)
        assert error.reason == "image_missing"
    assert read_many([]) == []


def test_patterns_are_expanded(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i:05d}.tar").touch()
    names = [f"{i:05d}.tar" for i in range(12)]
    assert [Path(path).name for path in list_files(f"{tmp_path}/*.tar")] == names
    assert [Path(path).name for path in list_files(f"{tmp_path}/{{00009..00011}}.tar")] == names[9:]
    assert list_files(f"{tmp_path}/00003.tar") == [f"{tmp_path}/00003.tar"]
    for pattern in ("*.zip", "{00011..00012}.tar", "nobody.tar"):
        with pytest.raises(MissingInputError, match=r"mend the pa"):
            list_files(f"{tmp_path}/{pattern}")


@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 6))
def test_braces_count_from_one_number_to_another(first: int, length: int, width: int) -> None:
    start = str(first).zfill(width)
    expanded = expand_braces(f"a-{{{start}..{first + length}}}.tar")
    assert expanded == [f"a-{str(i).zfill(len(start))}.tar" for i in range(first, first + length + 1)]
    assert expand_braces("a{b,c}{d,}") == ["abd", "ab", "acd", "ac"]
    assert expand_braces("plain") == ["plain"]


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
    with pytest.raises(MissingInputError, match="no such file"):
        file_identity(str(tmp_path / "b"))


def test_files_are_opened_plain_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ein Hund\n", encoding="utf-8")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a dog"))
    with open_file(str(tmp_path / "a.txt"), "r") as file:
        assert file.read() == "ein Hund\n"
    with open_file(str(tmp_path / "a.gz"), compression="infer") as file:
        assert file.read() == b"a dog"
    with pytest.raises(MissingInputError, match="no such file; mend the path"), open_file(str(tmp_path / "b")):
        pass


def picture(width: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, 30), (width, 9, 9)).save(out, "PNG")
    return out.getvalue()


def records(table: RawTable, **rules: Any) -> list[Any]:
    checks = Rules(source="x", pictures="embed", max_pixels=10**6, categories=frozenset({1}))
    rows = (row for part in table.parts(4) for row in part.rows())
    return list(to_records(rows, Rules(**{**vars(checks), **rules})))


@pytest.fixture
def context() -> SourceContext:
    return SourceContext(role="human", name="x", config=load_config(ROOT / "params.yaml").prepare, seed=0)


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
    assert read_many([row.image.path for row in found]) == [picture(40 + i) for i in range(5)]
    assert list_files("s3://raw/web/*.tar") == ["s3://raw/web/00000.tar"]
    (table,) = read_image_parquet(context, tables=Url("s3://raw/web/*.parquet"))
    assert [row.width for row in records(table)] == [40, 41, 42, 43, 44]


def test_what_s3_does_not_have_is_told_without_secrets(s3: Any) -> None:
    s3.pipe("raw/a", b"x")
    first, second, third = read_many(["s3://raw/nobody", "s3://raw/a", "s3://nobucket/a"])
    assert second == b"x"
    for error in (first, third):
        assert isinstance(error, ImageError)
        assert "THESECRET" not in str(error)
    with pytest.raises(MissingInputError, match="s3://raw/nobody") as caught, open_file("s3://raw/nobody"):
        pass
    assert "THE" not in str(caught.value)
    with pytest.raises(MissingInputError, match="no file matches"):
        list_files("s3://raw/*.tar")
    with pytest.raises(ImageError) as refused:
        read_bytes("s3://THEKEYID:THESECRET@raw/nobody")
    assert "THE" not in str(refused.value)


def test_a_process_that_read_from_s3_ends_quietly(s3: Any) -> None:
    s3.pipe({f"raw/{i}": b"x" * i for i in range(20)})
    code = (
        "from pipeline.data.filesystem import read_many\n"
        "found = read_many([f's3://raw/{i}' for i in range(20)])\n"
        "assert [len(data) for data in found] == list(range(20))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
