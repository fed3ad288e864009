"""Boxes in XML: Pascal VOC and ImageNet's localisation data."""

from __future__ import annotations

import glob
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import (
    BOXES_FROM_POLYGONS,
    CAPTION_DAMAGED,
    NAMES_NOT_UTF8,
    Part,
    RawDetection,
    RawImage,
    RawObject,
    RawTable,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.lines import decode_line, open_text, split_mark
from pipeline.store.filesystem import file_identity, list_files, read_many
from pipeline.store.provenance import fingerprint
from pipeline.store.read_errors import describe
from pipeline.store.records import Category, DetectionRecord
from pipeline.store.urls import redact

logger = logging.getLogger(__name__)

MAX_XML_BYTES = 16 << 20
_ANY_XML = "*.[xX][mM][lL]"
_DECLARED = re.compile(rb"""\s*<\?xml\b[^>]*?\bencoding\s*=\s*["']([A-Za-z][\w.:-]*)["'][^>]*\?>""")
_BESIDE = re.compile(r"[A-Za-z][^\x00-\x7f]|[^\x00-\x7f][A-Za-z]")
"""Chinese characters stand beside no Latin letters, accented ones do."""
_USUAL = re.compile(r"[\u0080-\u017f\u0300-\U0010ffff]")
"""Characters but ASCII and those with which pairs of GB2312 are confused: hardly anyone writes these alone."""
_POINT = re.compile(r"[xy]\d*")
_LONG = re.compile(r"[\u0800-\U0010ffff]")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "JPEG")


def read_pascal_voc(
    context: SourceContext,
    *,
    annotations: Url,
    images: Url,
    split: Url | None = None,
    names: tuple[str, ...] | None = None,
    one_based: bool = True,
    search: bool = False,
) -> list[RawTable]:
    """Pascal VOC's XML files beside a folder of pictures; ``difficult`` objects are kept like others.

    Options:
        annotations: folder of the XML files, or a glob.
        images: folder of the pictures.
        split: list of file names, such as ``ImageSets/Main/train.txt``; left out, all files.
        names: the vocabulary; left out, the names that occur, for which every file is read once before.
        one_based: corners count pixels from 1 and include the last one, as VOC defines them, so a box from 1 to 10 is
            10 pixels wide and begins at the edge. False takes them as they are: some labelling tools write edges.
        search: a picture that is not where its file says is looked for below ``images`` by its name.
    """
    files = _files(annotations, split)
    vocabulary = _vocabulary(names if names is not None else _names_in(files))
    return [_table(files, images, vocabulary, {}, one_based, f"{split} {one_based} {search}", search)]


def read_imagenet_boxes(
    context: SourceContext, *, annotations: Url, images: Url, synsets: Url, one_based: bool = False
) -> list[RawTable]:
    """ImageNet's boxes: one XML file a picture, in a folder for every synset; classes are WordNet ids.

    Options:
        annotations: glob of the XML files, such as ``Annotation/n*/*.xml``, or the folder above the synsets.
        images: folder of the pictures, in folders for synsets or not.
        synsets: list of WordNet ids with their words, such as ``LOC_synset_mapping.txt``; the first word is the name.
        one_based: as for ``pascal_voc``.
    """
    words = _read_synsets(synsets)
    files = _files(annotations, None)
    identity = f"{file_identity(synsets)} {one_based}"
    return [_table(files, images, _vocabulary(sorted(set(words.values()))), words, one_based, identity)]


class _PlainTree(ElementTree.TreeBuilder):
    """Builds documents that define no entities, which could grow to any size."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse a document type."""
        raise ValueError("it declares a document type, which annotations have no use for")


def parse_voc(data: bytes, notes: set[str] | None = None) -> ElementTree.Element:
    """Parse an XML file; ValueError when it is broken, too large, no annotation, or declares a document type.

    Args:
        data: its bytes, in the encoding that it declares, UTF-8 without one; else in GBK, as tools on Chinese Windows
            write it, or in Windows-1252.
        notes: gets ``NAMES_NOT_UTF8`` where the encoding had to be guessed.
    """
    if len(data) > MAX_XML_BYTES:
        raise ValueError(f"{len(data)} bytes of XML; at most {MAX_XML_BYTES} are read")
    try:
        text, is_guess = _decode_xml(data)
        root = ElementTree.fromstring(text, ElementTree.XMLParser(target=_PlainTree()))
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"not readable as XML: {error}") from error
    if is_guess and notes is not None:
        notes.add(NAMES_NOT_UTF8)
    if root.tag.startswith("{"):  # of a namespace
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    if root.tag != "annotation":
        raise ValueError(f"no annotation: it begins with <{root.tag[:80]}>; expected <annotation>")
    return root


def _decode_xml(data: bytes) -> tuple[str | bytes, bool]:
    """Return a file as text, or as it is where the parser knows its encoding, and whether the encoding is a guess."""
    if data.isascii() or split_mark(data)[0] != "utf-8" or b"\0" in data:
        return data, False
    plain = split_mark(data)[1]
    matched = _DECLARED.match(plain)
    body, declared = (plain[matched.end() :], matched[1].decode().lower()) if matched else (plain, "utf-8")
    by_utf8 = _decoded(body, "utf-8")
    if declared not in ("utf-8", "utf8"):
        # GBK and GB18030 hold all of GB2312, and tools say one for the other. By chance GBK is no longer UTF-8.
        is_chinese = declared.startswith("gb")
        told = (
            None
            if is_chinese and _LONG.search(by_utf8 or "")
            else _decoded(body, "gb18030" if is_chinese else declared)
        )
        if told is not None:
            return told, False
    by_gb2312, by_gbk = _decoded(body, "gb2312"), _decoded(body, "gbk")
    is_marked = len(plain) < len(data)
    is_odd = (
        not is_marked and by_gb2312 is not None and not _BESIDE.search(by_gb2312) and not _USUAL.search(by_utf8 or "")
    )
    if by_utf8 is not None and not is_odd:
        return by_utf8, declared not in ("utf-8", "utf8")
    if by_gb2312 is None and by_gbk is not None and not _BESIDE.search(by_gbk):
        by_gb2312 = by_gbk
    text, note = (by_gb2312, None) if by_gb2312 is not None else decode_line(body)
    if note == CAPTION_DAMAGED:
        raise ValueError(f"not readable as XML: neither {declared} nor GBK nor Windows-1252")
    return text, True


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _table(
    files: Sequence[str],
    images: str,
    vocabulary: tuple[Category, ...],
    words: Mapping[str, str],
    one_based: bool,
    settings: str,
    search: bool = False,
) -> RawTable:
    ids = {category.name: category.id for category in vocabulary}
    ids |= {wnid: ids[name] for wnid, name in words.items()}

    def parts(rows_per_part: int) -> Iterator[Part]:
        for start in range(0, len(files), rows_per_part):
            some = files[start : start + rows_per_part]
            identity = fingerprint({"files": [_identity(file) for file in some], "settings": [images, settings, ids]})
            name = f"{redact(some[0])} and {len(some) - 1} more"
            yield Part(name, identity, partial(_rows, some, images, ids, one_based, search), len(some))

    return RawTable(DetectionRecord, parts, len(files), vocabulary)


def _rows(
    files: Sequence[str], images: str, ids: Mapping[str, int], one_based: bool, search: bool
) -> Iterator[RawDetection | Reject]:
    for file, data in zip(files, read_many(files, None), strict=True):
        notes: set[str] = set()
        try:
            if not isinstance(data, bytes):
                raise data
            root = parse_voc(data, notes)
        except ValueError as error:
            yield Reject(f"{redact(file)}: {describe(error, file)}", "row_malformed")
            continue
        base = _stem(file)
        folder = file.rpartition("/")[0].rpartition("/")[2]
        named = (root.findtext("filename") or "").strip()
        # What the file calls its picture may be a path of another machine, lack the suffix, be a name of before, or not
        # be there at all.
        places = [named, *named.split("\\")[1:][-1:]] if "." in named else []
        places += [f"{stem}.{suffix}" for stem in (base, f"{folder}/{base}") for suffix in IMAGE_SUFFIXES]
        image = RawImage(
            folder=images,
            url=places[0],
            choices=tuple(dict.fromkeys(places[1:])),
            is_searched=search,
            height=read_side(root, "height"),
            width=read_side(root, "width"),
        )
        objects = []
        for item in root.iter("object"):
            box = read_corners(item, one_based)
            if not box and (box := _polygon_corners(item, one_based)):
                notes.add(BOXES_FROM_POLYGONS)
            objects.append(RawObject(xyxy=box, category_id=ids.get((item.findtext("name") or "").strip())))
        yield RawDetection(name=base, image=image, objects=objects, converted=tuple(sorted(notes)))


def read_corners(item: ElementTree.Element, one_based: bool) -> tuple[float, ...]:
    """Return the box of an object as edges in pixels, see ``read_pascal_voc``; nothing where it has no numbers."""
    return _edges([item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")], one_based)


def _polygon_corners(item: ElementTree.Element, one_based: bool) -> tuple[float, ...]:
    """Return the box around an object's polygon, whose points are tags x1, y1, x2 … or pairs of x and y."""
    points = [(tag.tag[:1], tag.text) for tag in item.iterfind("polygon//*") if _POINT.fullmatch(tag.tag)]
    try:
        xs, ys = ([float(text or "") for name, text in points if name == axis] for axis in "xy")
    except ValueError:
        return ()
    return _edges([min(xs), min(ys), max(xs), max(ys)], one_based) if xs and len(xs) == len(ys) else ()


def _edges(corners: Sequence[str | float | None], one_based: bool) -> tuple[float, ...]:
    try:
        x1, y1, x2, y2 = (float(side or "") if isinstance(side, str | None) else side for side in corners)
    except ValueError:
        return ()
    first = 1 if one_based else 0
    return (x1 - first, y1 - first, x2, y2) if math.isfinite(x1 + y1 + x2 + y2) else ()


def read_side(root: ElementTree.Element, name: str) -> int | None:
    """Return ``height`` or ``width`` of the picture; None where the file does not say it."""
    try:
        return int(float(root.findtext(f"size/{name}") or "")) or None
    except (ValueError, OverflowError):
        return None


def _files(annotations: Url, split: Url | None) -> list[str]:
    """Return the XML files that are asked for, in order."""
    files = _all_files(annotations)
    if split is None:
        return files
    by_stem = {_stem(file): file for file in files}
    with open_text(split) as file:
        names = [name for line in file if (name := _listed_name(line.strip(), by_stem))]
    unknown = [name for name in names if name not in by_stem]
    bad = next((name for name in unknown if len(unknown) == len(names) or "/" in name), None)
    if bad is not None:
        raise MissingInputError(
            f"{redact(split)}: expected a list of file names without suffix, found {bad!r}; there is no {bad}.xml in "
            f"{redact(annotations)}"
        )
    logger.info("%s: %d of %d XML files are listed", redact(split), len(by_stem.keys() & set(names)), len(by_stem))
    return [by_stem.get(name, f"{annotations.rstrip('/')}/{name}.xml") for name in names]


def _identity(file: str) -> str:
    """Return what changes when a file does, or comes: lists name files that are not there."""
    try:
        return file_identity(file)
    except MissingInputError:
        return f"{redact(file)} missing"


def _all_files(annotations: Url) -> list[str]:
    if annotations.endswith(".xml"):
        return list_files(annotations)
    # The folder itself may be called like a pattern.
    folder = glob.escape(annotations.rstrip("/")) if Path(annotations).is_dir() else annotations.rstrip("/")
    try:
        return list_files(f"{folder}/{_ANY_XML}")
    except MissingInputError:
        return list_files(f"{folder}/*/{_ANY_XML}")


def _stem(file: str) -> str:
    name = file.rpartition("/")[2]
    return name[:-4] if name.lower().endswith(".xml") else name


def _listed_name(line: str, known: Mapping[str, str]) -> str | None:
    """Return the name in a line of a list; None where the line lists nothing.

    Names may have blanks in them, or the picture's suffix. Lists for one class have a second column: 1 shows it, 0 only
    where that is difficult to see, -1 does not.
    """
    if line not in known and line.endswith((" 1", " 0", " -1", "\t1", "\t0", "\t-1")):
        name, shown = line.rsplit(None, 1)
        line = name if shown != "-1" else ""
    without, _, suffix = line.rpartition(".")
    return (without if line not in known and without in known and suffix.isalnum() else line) or None


def _names_in(files: Sequence[str]) -> list[str]:
    """Return the names of objects in all files, sorted; broken files are left to the rows."""
    names: set[str] = set()
    for start in range(0, len(files), 256):
        for data in read_many(files[start : start + 256], None):
            with suppress(ValueError):
                root = parse_voc(data) if isinstance(data, bytes) else ElementTree.Element("none")
                names |= {(item.findtext("name") or "").strip() for item in root.iter("object")}
    return sorted(names - {""})


def _vocabulary(names: Sequence[str]) -> tuple[Category, ...]:
    return tuple(Category(id=i, name=name) for i, name in enumerate(names, start=1))


def _read_synsets(url: Url) -> dict[str, str]:
    words = {}
    with open_text(url) as file:
        for line in file:
            wnid, _, rest = line.strip().partition(" ")
            if wnid and rest:
                words[wnid] = rest.partition(",")[0].strip()
    if not words:
        raise MissingInputError(f"{redact(url)}: expected lines such as 'n01440764 tench, Tinca tinca', found none")
    return words
