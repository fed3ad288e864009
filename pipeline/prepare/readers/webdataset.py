"""Tar shards of image-text pairs, as img2dataset and webdataset write them."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import IO, Any

from pipeline.prepare.raw import (
    MEMBERS_UNREAD,
    Part,
    RawGrounding,
    RawImage,
    RawPair,
    RawTable,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.columns import LICENSE_COLUMNS
from pipeline.prepare.readers.lines import decode_text, parse_json
from pipeline.store.filesystem import file_identity, list_files, open_file
from pipeline.store.read_errors import describe
from pipeline.store.records import CaptionRecord
from pipeline.store.urls import byte_range, redact

Finish = Callable[[RawPair, Mapping[str, Any]], RawGrounding | Reject]
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif"})
_WORDS = re.compile(r"(\.[A-Za-z_]+)+")
MAX_IMAGE_BYTES = 200 << 20
MAX_TEXT_BYTES = 1 << 20
"""Larger members are not unpacked."""
_MAX_HEADER_BYTES = 1 << 20
"""Long names are headers of their own."""
_BROKEN = (tarfile.TarError, OSError, EOFError, ValueError)


def read_webdataset(context: SourceContext, *, shards: Url, caption: str = "txt") -> list[RawTable]:
    """Tar shards whose members ``KEY.jpg`` (or png, webp …), ``KEY.txt`` and ``KEY.json`` make a pair.

    Members of one pair follow one another, as img2dataset and webdataset write them. Keys may have periods in them:
    the suffix is what follows the last. Of two pictures of a key the first makes the pair, the other is a reject;
    ``KEY.WORDS.png`` beside it is not read, and counted. Pictures that are links, devices or sparse are rejects.
    Hidden files are passed over. With ``prepare.pictures: reference`` records point into the tars.

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


def read_tar(url: str, caption: str, finish: Finish | None = None) -> Iterator[RawPair | RawGrounding | Reject]:
    """Yield the pairs of a tar in their order; where it breaks off, a reject says so.

    Args:
        url: of the tar, plain or compressed.
        caption: as for ``read_webdataset``.
        finish: makes something else of a pair and the values of its JSON.
    """
    compression = "gzip" if url.endswith((".gz", ".tgz")) else "infer"
    is_plain = url.endswith(".tar")
    with open_file(url, compression=None if is_plain else compression) as file:
        try:
            headers: Any = _ShortReads(file)
            with tarfile.open(fileobj=headers, mode="r:") as archive:
                for made, values in _pairs(archive, file, url if is_plain else None, caption):
                    yield finish(made, values) if finish and isinstance(made, RawPair) else made
                if headers.is_followed():
                    yield Reject(f"{redact(url)}: more behind byte {archive.offset}, unread", "row_malformed")
        except _BROKEN as error:
            yield Reject(f"{redact(url)}: {describe(error, url)}", "row_malformed")


def _pairs(
    archive: tarfile.TarFile, file: IO[bytes], url: str | None, caption: str
) -> Iterator[tuple[RawPair | Reject, Mapping[str, Any]]]:
    """Join neighbours whose keys say that they are one pair; yield it with the values of its JSON."""
    key, members = "", dict[str, Any]()
    try:
        for other, found in _groups(archive, file, caption):
            if not members:
                key, members = other, found
                continue
            joined = _joined(key, members, other, found, caption)
            if joined is None:
                yield from _pair(key, members, url, caption)
                key, members = other, found
            else:
                key, members = joined
    except _BROKEN:  # what is behind it is lost, and not what came before
        yield from _pair(key, members, url, caption) if members else ()
        raise
    if members:
        yield from _pair(key, members, url, caption)


class _ShortReads:
    """The file as tarfile reads headers from it: one that says that it is longer than any is not read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        self._last = b""

    def read(self, size: int) -> bytes:
        """Read so many bytes."""
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self._last = self._read(size)
        return self._last

    def is_followed(self) -> bool:
        """Tell whether anything but zeros stands where tarfile saw the end, or behind it.

        It takes a broken header for the end, and knows nothing of a second archive behind the first.
        """
        block = self._last
        while block and not block.strip(b"\0"):
            block = self._read(_MAX_HEADER_BYTES)
        return bool(block)


def _groups(archive: tarfile.TarFile, file: IO[bytes], caption: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield keys with their members by suffix: what follows one another and differs by what ends the name alone.

    Members that are not read stand as None, pictures of them as the reason for it.
    """
    key, members = "", dict[str, Any]()
    try:
        # Members are dropped as they are passed: the list that tarfile keeps of them grows with the archive.
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]
            folder, _, name = member.name.rpartition("/")
            if member.isdir() or not name or name.startswith("."):
                continue
            stem, suffix = _split_name(name, caption)
            content = _content(member, file, suffix, caption)
            current = f"{folder}/{stem}"
            if current != key or suffix in members:  # the same key may come again: a pair of its own
                if members:
                    yield key, members
                key, members = current, {}
            members[suffix] = content
    except _BROKEN:
        if members:
            yield key, members
        raise
    if members:
        yield key, members


def _content(member: tarfile.TarInfo, file: IO[bytes], suffix: str, caption: str) -> tuple[bytes, int] | str | None:
    """Return a member's bytes and their place, or what stands for them; ReadError where the file ends before."""
    is_picture = suffix in IMAGE_SUFFIXES
    if member.size < 0:
        raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes")
    if not member.isreg() or member.issparse():  # what a link names may be outside, what is sparse unpacks to anything
        return "row_malformed" if is_picture else None
    if member.size > (MAX_IMAGE_BYTES if is_picture else MAX_TEXT_BYTES):
        return "image_too_large" if is_picture else None
    if not is_picture and suffix not in ("json", caption):
        return None
    file.seek(member.offset_data)  # the archive's own way there makes three objects for each member
    data = file.read(member.size)
    if len(data) != member.size:
        raise tarfile.ReadError(f"it ends inside of {member.name!r}")
    return data, member.offset_data


def _split_name(name: str, caption: str) -> tuple[str, str]:
    """Split a member's name into key and suffix at its last period, so that keys may have periods in them."""
    if name.lower().endswith(f".{caption}") and len(name) > len(caption) + 1:
        return name[: -len(caption) - 1], caption
    stem, _, suffix = name.rpartition(".")
    return (stem, suffix.lower()) if stem else (name, "")


def _joined(
    key: str, members: dict[str, Any], other: str, found: dict[str, Any], caption: str
) -> tuple[str, dict[str, Any]] | None:
    """Return two neighbours as one pair; None where they are two.

    webdataset itself ends keys at the first period: ``a.seg.png`` is a member ``seg.png`` of the pair ``a``. It is
    taken so where it is no pair of its own and the words between are letters, which dates and numbers are not.
    """
    if key == other:
        return None if members.keys() & found.keys() else (key, members | found)
    short, long = sorted((key, other), key=len)
    between = long[len(short) :]
    if not long.startswith(short) or not _WORDS.fullmatch(between):
        return None
    inner, whole = (members, found) if long == key else (found, members)
    named = {f"{between[1:]}.{suffix}": content for suffix, content in inner.items()}
    if whole.keys() & named.keys() or (_pictures(inner) and _has_caption(inner, caption)):
        return None
    return short, whole | named


def _pictures(members: dict[str, Any]) -> list[str]:
    """Return the suffixes of pictures: ``jpg`` and its like, else such as ``img.jpg``."""
    plain = [suffix for suffix in members if suffix in IMAGE_SUFFIXES]
    return plain or [suffix for suffix in members if _is_picture(suffix)]


def _is_picture(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in IMAGE_SUFFIXES


def _pair(
    key: str, members: dict[str, Any], url: str | None, caption: str
) -> Iterator[tuple[RawPair | Reject, Mapping[str, Any]]]:
    """Yield a pair; a reject for every picture beyond the first, or for members that make none."""
    name = key.lstrip("/")
    pictures = _pictures(members)
    if not pictures:
        yield Reject(name, "image_missing"), {}
        return
    first, *others = pictures
    if others and first not in IMAGE_SUFFIXES:  # nothing says which of them the caption describes
        yield from ((Reject(f"{name}.{suffix}", "row_malformed"), {}) for suffix in pictures)
        return
    if not isinstance(members[first], tuple):
        yield Reject(name, members[first] or "row_malformed"), {}
    else:
        data, offset = members[first]
        values, note = _values(members)
        license_ = next((values[name] for name in LICENSE_COLUMNS if values.get(name)), None)
        place = None if url is None else byte_range(url, offset, len(data))
        image = RawImage(data=data, url=place, license=license_)
        if (text := members.get(caption)) is None:
            text = values.get(caption.partition(":")[2] or "caption")
        else:
            text, note = decode_text(text[0])
        notes = [note] if note else []
        notes += [MEMBERS_UNREAD for suffix in members.keys() - set(pictures) if _is_picture(suffix)]
        yield RawPair(name=name, image=image, caption=text, converted=tuple(notes)), values
    yield from ((Reject(f"{name}.{suffix}: a second picture of {name}", "row_malformed"), {}) for suffix in others)


def _has_caption(members: dict[str, Any], caption: str) -> bool:
    return (
        members.get(caption) is not None or _values(members)[0].get(caption.partition(":")[2] or "caption") is not None
    )


def _values(members: dict[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """Return what the JSON of a pair says, and what was done to its text."""
    if not members.get("json"):  # a member that is too large stands without its bytes
        return {}, None
    text, note = decode_text(members["json"][0])
    values = parse_json(text)
    return (values, note) if isinstance(values, dict) else ({}, None)
