"""Pictures without annotations, in whatever they come, and labelled ones that are read again."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import MissingInputError
from pipeline.prepare.layouts import find_layout, picture_files
from pipeline.prepare.pictures import picture_sources
from pipeline.prepare.raw import SourceContext, Url
from pipeline.prepare.readers.own_records import read_detection_records
from pipeline.prepare.readers.pictures import kind_of, read_pictures
from pipeline.store.records import (
    CaptionRecord,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
)
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard

ReadRows = Callable[..., list[Any]]
Picture = Callable[..., bytes]


def read(context: SourceContext, read_rows: ReadRows, images: object, **rules: Any) -> list[Any]:
    (table,) = read_pictures(context, images=Url(str(images)))
    return read_rows(table, 2, **rules)


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    for name, colour in (("b.jpg", "red"), ("a/c.PNG", "blue"), ("a/d e.webp", "green"), (".hidden/x.jpg", "black")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(colour=colour, kind={"g": "JPEG", "G": "PNG", "p": "WEBP"}[name[-1]]))
    (tmp_path / "photos/notes.md").write_text("no picture")
    (tmp_path / "photos/broken.jpg").write_bytes(b"no picture either")
    return tmp_path / "photos"


def test_a_folder_is_all_pictures_below_it_and_keys_say_which(
    folder: Path, context: SourceContext, read_rows: ReadRows
) -> None:
    rows = read(context, read_rows, folder)
    assert [row.key.partition("@")[0] for row in rows if isinstance(row, DetectionRecord)] == [
        f"{folder}/a/c.PNG",
        f"{folder}/a/d e.webp",
        f"{folder}/b.jpg",
    ]
    assert all(row.objects == () and row.image.bytes for row in rows if isinstance(row, DetectionRecord))
    assert [row.reason for row in rows if not isinstance(row, DetectionRecord)] == ["image_unreadable"]
    referred = [row for row in read(context, read_rows, folder, pictures="reference") if hasattr(row, "image")]
    assert [row.image.path for row in referred][-1] == f"{folder}/b.jpg"


def test_keys_change_with_the_picture_in_its_place(
    folder: Path, context: SourceContext, read_rows: ReadRows, picture: Picture
) -> None:
    (before,) = read(context, read_rows, folder / "b.jpg", pictures="reference")
    (folder / "b.jpg").write_bytes(picture(colour="white"))
    (after,) = read(context, read_rows, folder / "b.jpg", pictures="reference")
    assert before.image == after.image
    assert before.key != after.key


def test_globs_single_pictures_and_captions_beside_them(
    folder: Path, context: SourceContext, read_rows: ReadRows
) -> None:
    assert len(read(context, read_rows, f"{folder}/a/*")) == 2
    (folder / "b.txt").write_text("\ufeffa red wall ", encoding="utf-8")
    web = replace(context, role="web")
    found = read(web, read_rows, folder)
    assert [row.caption for row in found if isinstance(row, CaptionRecord)] == ["a red wall"]
    assert [row.reason for row in found if not isinstance(row, CaptionRecord)] == ["caption_empty"] * 3


def test_pictures_of_tars_and_tables_need_no_captions(
    tmp_path: Path, context: SourceContext, read_rows: ReadRows, picture: Picture
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("x.jpg", picture()), ("y.jpg", picture(colour="blue")), ("y.txt", b"a wall")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    rows = read(context, read_rows, tmp_path / "0.tar")
    assert [row.key.partition("@")[0] for row in rows] == ["x", "y"]
    pq.write_table(pa.table({"img": [picture(), b"broken"]}), tmp_path / "t.parquet")
    first, second = read(context, read_rows, tmp_path / "t.parquet")
    assert isinstance(first, DetectionRecord)
    assert second.reason == "image_unreadable"
    pq.write_table(pa.table({"pixels": [picture()]}), tmp_path / "u.parquet")
    with pytest.raises(MissingInputError, match="no column of pictures"):
        read(context, read_rows, tmp_path / "u.parquet")


def test_urls_of_a_list_are_asked_for(
    tmp_path: Path, context: SourceContext, read_rows: ReadRows, picture: Picture, web: Any
) -> None:
    (web.folder / "a.jpg").write_bytes(picture())
    pq.write_table(pa.table({"url": [f"{web.url}/a.jpg", f"{web.url}/gone.jpg"]}), tmp_path / "u.parquet")
    first, second = read(context, read_rows, tmp_path / "u.parquet", roots=(web.url,))
    assert isinstance(first, DetectionRecord)
    assert second.reason == "image_missing"
    (only,) = read(context, read_rows, f"{web.url}/a.jpg", roots=(web.url,))
    assert isinstance(only, DetectionRecord)


def test_what_a_folder_stands_for(
    folder: Path, tmp_path: Path, picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    def named(*words: object) -> list[str]:
        return [str(entry["images"]) for entry in picture_sources([str(word) for word in words])]

    assert named(folder, f"{folder}/*.jpg", folder) == [str(folder), f"{folder}/*.jpg"]
    (folder / "t.parquet").touch()
    assert named(folder) == [str(folder)]
    assert "t.parquet" not in caplog.text
    assert "1 files are left out" in caplog.text
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/a.parquet").touch()
    assert named(f"{tmp_path}/tables/") == [f"{tmp_path}/tables/*.parquet"]
    (tmp_path / "tables/a.tar").touch()
    assert named(tmp_path / "tables") == [f"{tmp_path}/tables/*.tar*"]
    assert [kind_of(f"a/*.{end}") for end in ("tar*", "parquet", "JPG", "csv", "mp4")] == [
        "tar",
        "table",
        "picture",
        "list",
        "video",
    ]
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mov"):
        (tmp_path / "clips" / name).touch()
    assert named(tmp_path / "clips") == [f"{tmp_path}/clips/*.mp4", f"{tmp_path}/clips/*.mov"]
    assert [entry["name"] for entry in picture_sources(["a.jpg", "b.jpg"])] == ["pictures", "pictures 2"]
    with pytest.raises(MissingInputError):
        picture_sources([])


def test_videos_give_frames(tmp_path: Path, context: SourceContext, read_rows: ReadRows) -> None:
    av = pytest.importorskip("av", reason="the extra video is not installed")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    broken, *frames = read(context, read_rows, tmp_path / "*.mp4", pictures="reference")
    assert broken.reason == "image_unreadable"
    assert [row.key.partition("@")[0] for row in frames] == [f"{tmp_path}/clip.mp4#t={t}.000" for t in (0, 1)]
    assert all(row.image.bytes and (row.height, row.width) == (48, 64) for row in frames)


def test_a_folder_without_pictures_is_told(tmp_path: Path, context: SourceContext) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(MissingInputError, match="no pictures among its 1 files"):
        read_pictures(context, images=Url(str(tmp_path)))


@pytest.fixture
def labels(tmp_path: Path, png: Callable[..., ImageRef]) -> Path:
    """Two labelled pictures, one without boxes and one that nobody could look at."""

    def record(number: int, *objects: DetectedObject, reason: str | None = None) -> DetectionRecord:
        head = {"key": f"k{number}", "image": png(colour=(number, 0, 0)), "height": 30, "width": 40, "source": "s"}
        return DetectionRecord(**head, objects=objects, reject_reason=reason)

    rows = [
        record(
            1,
            DetectedObject(category_id=1, xyxy=(1, 2, 20, 21), score=0.75),
            DetectedObject(category_id=2, xyxy=(3, 2, 20, 21), score=0.25),
        ),
        record(2, reason="no_boxes"),
        record(3, reason="image_unreadable"),
    ]
    metadata = categories_to_metadata([Category(id=1, name="cat"), Category(id=2, name="dog")])
    write_shard(tmp_path / "labels" / shard_name(0), rows, DetectionRecord, metadata)
    return tmp_path / "labels"


def test_labels_are_read_again_with_their_scores(labels: Path, context: SourceContext, read_rows: ReadRows) -> None:
    (table,) = read_detection_records(context, shards=Url(str(labels)))
    assert [category.name for category in table.categories] == ["cat", "dog"]
    first, second, third = read_rows(table)
    assert [(item.category_id, item.xyxy, item.score) for item in first.objects] == [
        (1, (1, 2, 20, 21), 0.75),
        (2, (3, 2, 20, 21), 0.25),
    ]
    assert second.objects == ()
    assert third.reason == "image_unreadable"
    (table,) = read_detection_records(context, shards=Url(str(labels)), min_score=0.5)
    assert [item.category_id for item in read_rows(table)[0].objects] == [1]


def test_labels_are_a_layout_to_tune_on(labels: Path, tmp_path: Path) -> None:
    layout = find_layout(labels)
    assert [entry["reader"] for entry in layout.train] == ["detection_records"]
    assert layout.validation == ()
    assert picture_files(layout) == set()


def test_other_records_and_mixed_vocabularies_are_told(
    labels: Path, tmp_path: Path, context: SourceContext, make_grounding: Callable[..., GroundingRecord]
) -> None:
    write_shard(tmp_path / "other" / shard_name(0), [make_grounding(1, "a cat")], GroundingRecord)
    with pytest.raises(MissingInputError, match="no detection records"):
        read_detection_records(context, shards=Url(str(tmp_path / "other")))
    write_shard(labels / shard_name(1), [], DetectionRecord, categories_to_metadata([Category(id=1, name="cow")]))
    (table,) = read_detection_records(context, shards=Url(str(labels)))
    with pytest.raises(MissingInputError, match="another vocabulary"):
        list(table.parts(1000))
