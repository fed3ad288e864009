"""Tar shards of image-text pairs, as img2dataset and webdataset write them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

from pipeline.prepare.raw import Part, RawImage, RawPair, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.lines import parse_json
from pipeline.store.filesystem import byte_range, describe, file_identity, list_files, open_file, redact
from pipeline.store.records import CaptionRecord

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif"})
MAX_IMAGE_BYTES = 200 << 20
MAX_TEXT_BYTES = 1 << 20
"""Larger members are not unpacked."""


def read_webdataset(context: SourceContext, *, shards: Url, caption: str = "txt") -> list[RawTable]:
    """Tar shards whose members ``KEY.jpg`` (or png, webp …), ``KEY.txt`` and ``KEY.json`` make a pair.

    Members of one pair follow one another, as img2dataset and webdataset write them. With ``prepare.pictures:
    reference`` records point into the tars.

    Options:
        shards: one tar, a glob, or numbers such as ``{00000..00331}.tar``.
        caption: suffix of the member that holds the caption, or ``json:FIELD`` for a field of ``KEY.json``. A pair
            without that member takes the field ``caption`` of its JSON.
    """
    urls = list_files(shards)

    def parts(rows_per_part: int) -> Iterator[Part]:
        for url in urls:
            identity = f"{file_identity(url)} caption {caption}"
            yield Part(redact(url), identity, partial(read_tar, url, caption))

    return [RawTable(CaptionRecord, parts)]


def read_tar(url: str, caption: str) -> Iterator[RawPair | Reject]:
    """Yield the pairs of a tar in their order; where it breaks off, a reject says so.

    Args:
        url: of the tar, plain or compressed.
        caption: as for ``read_webdataset``.
    """
    compression = "gzip" if url.endswith((".gz", ".tgz")) else "infer"
    is_plain = url.endswith(".tar")
    with open_file(url, compression=None if is_plain else compression) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                yield from _pairs(archive, file, url if is_plain else None, caption)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            yield Reject(f"{redact(url)}: {describe(error, url)}", "row_malformed")


def _pairs(archive: tarfile.TarFile, file: IO[bytes], url: str | None, caption: str) -> Iterator[RawPair | Reject]:
    """Group members by what stands before the first period of their names."""
    key, members = "", dict[str, Any]()
    # Members are dropped as they are passed: the list that tarfile keeps of them grows with the archive.
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        current = f"{folder}/{stem}"
        if not member.isreg() or not stem:  # folders, links, devices
            continue
        if current != key:
            if members:
                yield _pair(key, members, url, caption)
            key, members = current, {}
        suffix = suffix.lower()
        if suffix in members:  # the same key again: a pair of its own
            yield _pair(key, members, url, caption)
            members = {}
        is_picture = suffix in IMAGE_SUFFIXES
        if member.size > (MAX_IMAGE_BYTES if is_picture else MAX_TEXT_BYTES):
            members[suffix] = None
        elif is_picture or suffix in ("json", caption):
            file.seek(member.offset_data)  # the archive's own way there makes three objects for each member
            data = file.read(member.size)
            if len(data) != member.size:
                raise tarfile.ReadError(f"it ends inside of {member.name!r}")
            members[suffix] = (data, member.offset_data)
    if members:
        yield _pair(key, members, url, caption)


def _pair(key: str, members: dict[str, Any], url: str | None, caption: str) -> RawPair | Reject:
    name = key.lstrip("/")
    pictures = [suffix for suffix in members if suffix in IMAGE_SUFFIXES]
    if not pictures:
        return Reject(name, "image_missing")
    picture = members[pictures[0]]
    if picture is None:
        return Reject(name, "image_too_large")
    data, offset = picture
    image = RawImage(data=data, url=None if url is None else byte_range(url, offset, len(data)))
    return RawPair(name=name, image=image, caption=_caption(members, caption))


def _caption(members: dict[str, Any], caption: str) -> Any:
    text = members.get(caption)
    if text is not None:
        try:
            return text[0].decode("utf-8")
        except UnicodeDecodeError:
            return None
    field = caption.partition(":")[2] or "caption"
    # A member that is too large stands without its bytes.
    values = parse_json(members["json"][0]) if members.get("json") else None
    return values.get(field) if isinstance(values, dict) else None
