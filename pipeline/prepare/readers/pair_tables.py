"""Image-text pairs in tables: Parquet with pictures inside or beside it, JSON lines beside a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from pipeline.prepare.raw import Part, RawImage, RawPair, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.columns import CAPTION_COLUMNS, IMAGE_FIELDS, LICENSE_COLUMNS, first_value
from pipeline.prepare.readers.lines import json_lines, json_parts
from pipeline.prepare.readers.parquet_rows import Values, parquet_table
from pipeline.store.filesystem import file_identity, list_files
from pipeline.store.records import CaptionRecord

MAX_SHARD_DIGITS = 12
"""Longer numbers of img2dataset's shards are not looked for where a table is not called by its own."""


def read_image_parquet(
    context: SourceContext,
    *,
    tables: Url,
    image: str = "image",
    caption: str | None = None,
    several: Literal["pairs", "first"] = "pairs",
    images: Url | None = None,
    needs_captions: bool = True,
    license: str | None = None,
) -> list[RawTable]:
    """Parquet with the pictures inside, as Hugging Face data sets have them.

    Of a list of pictures the first makes the pair, and every other is a reject; where there are several captions as
    well nothing says which belongs to which, and all are rejects.

    Options:
        tables: one file, a glob, or numbers such as ``{00000..00010}.parquet``.
        image: column of the pictures, a struct of ``bytes`` and ``path``, plain bytes, a path as text, or a list of
            these.
        caption: column of the captions; left out, ``caption`` or ``text``, in every row the first of them that has one.
        several: what a list of captions becomes: ``pairs`` of the picture with each, or the ``first`` alone.
        images: folder of the pictures that have a path and no bytes; left out, they are rejects.
        needs_captions: false lets a table be without a column of captions.
        license: column of the pictures' licences; left out, ``license`` where there is one.
    """
    licenses = (license,) if license else LICENSE_COLUMNS

    def row(table: str, number: int, values: Values, text: Any) -> Iterator[RawPair | Reject]:
        pictures = values[image] if isinstance(values[image], list) else [values[image]]
        captions = (text or [None]) if isinstance(text, list) else [text]
        if several == "first":
            captions = captions[:1]
        found = [_picture(picture, number, images) for picture in pictures or [None]]
        if len(found) > 1 and len(captions) > 1:
            yield from (Reject(f"{name}: several pictures and captions", "row_malformed") for name, _ in found)
            return
        (name, first), *others = found
        first = replace(first, license=first_value(values, licenses))
        yield from (RawPair(name=name, image=first, caption=each) for each in captions)
        yield from (Reject(f"{other}: a second picture of {name}", "row_malformed") for other, _ in others)

    captions = (caption,) if caption else CAPTION_COLUMNS
    return [parquet_table(tables, (image,), captions if needs_captions else (), row, optional=licenses)]


def _picture(value: Any, number: int, images: Url | None) -> tuple[str, RawImage]:
    """Return what messages call a picture of a row, and its bytes or its place."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    else:
        data, path = (None, value) if isinstance(value, str) else (value, None)
    name = str(path or f"row {number}")
    if not isinstance(data, bytes) and isinstance(path, str) and images is not None:
        return name, RawImage(folder=images, url=path)
    return name, RawImage(data=data if isinstance(data, bytes) else b"")


def read_img2dataset_files(context: SourceContext, *, tables: Url, images: Url) -> list[RawTable]:
    """img2dataset's output format ``files``: folders of pictures with a Parquet file beside each.

    Rows that were not downloaded are rejects.

    Options:
        tables: the Parquet files, such as ``cc3m/{00000..00331}.parquet``.
        images: where the folders 00000, 00001 … are.
    """

    def row(table: str, number: int, values: Values, text: Any) -> Iterator[RawPair | Reject]:
        key = str(values["key"])
        if values.get("status", "success") != "success":
            yield Reject(key, "image_missing")
            return
        # Keys start with the number of their shard, as which its table is called, of five digits unless the user chose
        # otherwise; pictures are encoded as jpg likewise.
        stem = table.rpartition("/")[2].removesuffix(".parquet")
        others = sorted(range(1, min(len(key), MAX_SHARD_DIGITS)), key=lambda length: abs(length - 5))
        shards = dict.fromkeys([stem, key[:5]] if key.startswith(stem) else [*(key[:n] for n in others), stem])
        names = [f"{shard}/{key}.{suffix}" for shard in shards for suffix in ("jpg", "png", "webp")]
        picture = {"license": first_value(values, LICENSE_COLUMNS), "choices": tuple(names[1:])}
        yield RawPair(name=key, image=RawImage(folder=images, url=names[0], **picture), caption=text)

    return [parquet_table(tables, ("key",), CAPTION_COLUMNS, row, optional=("status", *LICENSE_COLUMNS))]


def read_captions_jsonl(
    context: SourceContext, *, captions: Url, images: Url, image: str | None = None, caption: str | None = None
) -> list[RawTable]:
    """A folder of pictures and a file with one JSON object a line; Hugging Face's ``metadata.jsonl`` is one.

    Options:
        captions: the file, plain or compressed, or a glob.
        images: folder of the pictures.
        image: field with the picture's name; left out, ``file_name``, ``image`` or ``path``.
        caption: field with the caption; left out, ``caption`` or ``text``.
    """
    fields = ((image,) if image else IMAGE_FIELDS, (caption,) if caption else CAPTION_COLUMNS)
    files = list_files(captions)

    def parts(rows_per_part: int) -> Iterator[Part]:
        for url in files:
            identity = f"{file_identity(url)} {images} {fields}"
            yield from json_parts(url, identity, partial(_read_json_lines, images, *fields), rows_per_part)

    return [RawTable(CaptionRecord, parts)]


def _read_json_lines(
    images: str, image_fields: Sequence[str], caption_fields: Sequence[str], url: str, start: int, stop: int
) -> Iterator[RawPair | Reject]:
    for name, values, notes in json_lines(url, start, stop):
        picture = first_value(values, image_fields)
        if not isinstance(picture, str):
            yield Reject(name, "row_malformed")
        else:
            image = RawImage(folder=images, url=picture, license=first_value(values, LICENSE_COLUMNS))
            yield RawPair(name=picture, image=image, caption=first_value(values, caption_fields), converted=notes)
