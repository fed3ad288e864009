"""Pictures as they lie about: files, folders, tars, Parquet and lists of URLs, without annotations."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from glip_model.images import ImageError
from glip_model.video import SUFFIXES, frame_name, read_frames
from pipeline.errors import MissingInputError
from pipeline.prepare.raw import Part, RawDetection, RawImage, RawPair, RawRow, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.columns import IMAGE_COLUMNS, URL_COLUMNS
from pipeline.prepare.readers.lines import decode_text
from pipeline.prepare.readers.pair_tables import read_image_parquet
from pipeline.prepare.readers.parquet_rows import open_parquet
from pipeline.prepare.readers.url_lists import read_url_list
from pipeline.prepare.readers.webdataset import IMAGE_SUFFIXES, MAX_TEXT_BYTES, read_webdataset
from pipeline.store.filesystem import file_identity, list_files, open_file
from pipeline.store.records import CaptionRecord, DetectionRecord
from pipeline.store.storage import is_folder, list_below, name_below, side_by_side, to_place
from pipeline.store.urls import is_url, redact

TARS, TABLES, LISTS = (".tar", ".tar.gz", ".tgz"), (".parquet",), (".tsv", ".csv", ".tsv.gz", ".csv.gz")
"""Ends of names of what holds many pictures."""
JPEG_QUALITY = 95
"""Of frames."""
_SUFFIXES = tuple(f".{suffix}" for suffix in (*sorted(IMAGE_SUFFIXES), "jfif", "heic"))


def read_pictures(context: SourceContext, *, images: Url, fps: float = 1.0) -> list[RawTable]:
    """Pictures without annotations, to be labelled: as detection records that have no boxes yet.

    Among web pairs, the caption of a picture ``a.jpg`` is what stands in ``a.txt`` beside it; in tars and tables it is
    where ``webdataset``, ``image_parquet`` and ``url_list`` find it.

    Options:
        images: a picture, a folder (with all pictures below it), a glob, or numbers such as ``{00000..00331}.tar``; of
            pictures, tars, videos, Parquet with pictures or URLs inside, TSV and CSV with URLs and captions.
        fps: frames of a second of video that are taken; they are copied, also where pictures are referred to.
    """
    kind, has_captions = kind_of(images), context.role == "web"
    if kind == "tar":
        tables = read_webdataset(context, shards=images)
    elif kind == "list":
        tables = read_url_list(context, tables=images)
    elif kind == "video":
        tables = [_of_videos(images, fps)]
    elif kind == "table":
        tables = _of_parquet(context, images, has_captions)
    else:
        tables = [_of_files(images, has_captions)]
    return tables if has_captions else [_without_captions(table) for table in tables]


def kind_of(images: str) -> str:
    """Tell what a name stands for by its end: ``tar``, ``table``, ``list``, ``video`` or ``picture``."""
    name = images.lower().rstrip("*")
    kinds = {"tar": TARS, "table": TABLES, "list": LISTS, "video": SUFFIXES}
    return next((kind for kind, ends in kinds.items() if name.endswith(ends)), "picture")


def is_picture(name: str) -> bool:
    """Tell pictures by their names; hidden files are none."""
    return name.lower().endswith(_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def _of_parquet(context: SourceContext, images: Url, has_captions: bool) -> list[RawTable]:
    """Return a table of the pictures in Parquet files, or of those that their URLs name."""
    first = list_files(images)[0]
    with open_parquet(first) as file:
        columns = file.schema_arrow.names
    if set(columns) & set(IMAGE_COLUMNS):
        column = next(name for name in IMAGE_COLUMNS if name in columns)
        return read_image_parquet(context, tables=images, image=column, needs_captions=has_captions)
    if set(columns) & set(URL_COLUMNS):
        return read_url_list(context, tables=images, needs_captions=has_captions)
    raise MissingInputError(
        f"{redact(first)}: no column of pictures ({', '.join(IMAGE_COLUMNS)}) or of URLs ({', '.join(URL_COLUMNS)}); "
        f"found: {', '.join(columns)}"
    )


def _of_files(images: Url, has_captions: bool) -> RawTable:
    """Return a table of pictures that are files of their own."""
    folder, names = _find(images)

    def parts(rows_per_part: int) -> Iterator[Part]:
        for start in range(0, len(names), rows_per_part):
            some = names[start : start + rows_per_part]
            files = [name if folder is None else f"{folder}/{name}" for name in some]
            label = f"{redact(images)}, pictures {start + 1} to {start + len(some)}"
            yield Part(label, _identity(files, has_captions), partial(_rows, folder, some, has_captions), len(some))

    return RawTable(CaptionRecord, parts, num_rows=len(names))


def _of_videos(images: Url, fps: float) -> RawTable:
    """Return a table of the frames of videos, a part each."""
    files = list_files(images)

    def parts(rows_per_part: int) -> Iterator[Part]:
        for url in files:
            yield Part(redact(url), f"{file_identity(url)} {fps} frames a second", partial(_frames, url, fps))

    return RawTable(CaptionRecord, parts)


def _frames(url: str, fps: float) -> Iterator[RawPair | Reject]:
    try:
        for seconds, frame in read_frames(url, fps):
            data = io.BytesIO()
            frame.save(data, "JPEG", quality=JPEG_QUALITY)
            yield RawPair(name=frame_name(url, seconds), image=RawImage(data=data.getvalue()), caption=None)
    except ImageError as error:
        yield Reject(f"{redact(url)}: {error}", error.reason)


def _find(images: Url) -> tuple[str | None, list[str]]:
    """Return the folder that was named and the pictures in and below it; of a pattern None and the files."""
    if images.startswith(("http://", "https://")) and is_picture(images.partition("?")[0]):
        return None, [images]
    place = to_place(images)
    if not is_folder(place):
        return None, [file for file in list_files(images) if is_picture(file)] or list_files(images)
    names = [name_below(place, path) for path in list_below(place)]
    found = [name for name in names if is_picture(name) and not any(part[:1] == "." for part in name.split("/"))]
    if not found:
        raise MissingInputError(f"{redact(images)}: no pictures among its {len(names)} files")
    return images.rstrip("/") or "/", found


def _identity(files: Sequence[str], has_captions: bool) -> str:
    """Return what changes when one of the files does; what the web holds is asked when it is read."""
    asked = [file for file in files if not file.startswith(("http://", "https://"))]
    asked += [text for file in asked if has_captions and not is_url(text := _beside(file)) and Path(text).is_file()]
    found = [*files, *side_by_side(file_identity, asked)]
    return hashlib.sha256("\n".join(found).encode("utf-8", "surrogateescape")).hexdigest()


def _rows(folder: str | None, names: Sequence[str], has_captions: bool) -> Iterator[RawPair]:
    for name in names:
        file = name if folder is None else f"{folder}/{name}"
        if file.startswith(("http://", "https://")):
            image = RawImage(url=file)
        else:
            above, _, own = file.rpartition("/")
            image = RawImage(folder=folder or above or ".", url=name if folder else own)
        yield RawPair(name=file, image=image, caption=_caption(file) if has_captions else None)


def _beside(file: str) -> str:
    return f"{file.rpartition('.')[0]}.txt"


def _caption(file: str) -> str | None:
    """Return the text beside a picture; None where there is none."""
    try:
        with open_file(_beside(file)) as text:
            return decode_text(text.read(MAX_TEXT_BYTES))[0]
    except MissingInputError:
        return None


def _without_captions(table: RawTable) -> RawTable:
    """Return a table of the same pictures, to be labelled."""

    def parts(rows_per_part: int) -> Iterator[Part]:
        for part in table.parts(rows_per_part):
            yield replace(part, identity=f"{part.identity} pictures", rows=partial(_unlabelled, part.rows))

    return RawTable(DetectionRecord, parts, num_rows=table.num_rows)


def _unlabelled(rows: Callable[[], Iterator[RawRow]]) -> Iterator[RawRow]:
    for row in rows():
        if isinstance(row, RawPair):
            yield RawDetection(name=row.name, image=row.image, converted=row.converted, objects=(), key=row.name)
        else:
            yield row
