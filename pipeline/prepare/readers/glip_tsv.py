"""GLIP's own TSV data sets: pictures, labels and their line indices, tied together by a YAML file.

A label row is either a list of objects with class names, or a caption with boxes for its spans (pseudo-labels,
of which there are two versions).
"""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, Any

import yaml
from fsspec.core import url_to_fs

from glip_model.images import ImageError
from pipeline.errors import MissingInputError
from pipeline.prepare.raw import (
    Part,
    RawDetection,
    RawGrounding,
    RawImage,
    RawObject,
    RawPhrase,
    RawRow,
    RawTable,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.coco import listed
from pipeline.prepare.readers.json_stream import JsonStream
from pipeline.prepare.readers.lines import PROBED_LINES, decode_line, open_text, parse_json
from pipeline.prepare.readers.spool import temporary_database, text_id
from pipeline.store.filesystem import file_identity, open_file
from pipeline.store.image_roots import join_inside
from pipeline.store.provenance import fingerprint
from pipeline.store.read_errors import describe
from pipeline.store.records import Category, DetectionRecord, GroundingRecord
from pipeline.store.urls import redact

BACKGROUND = "__background__"
NOWHERE = -1
"""In place of the offset of a row that a file does not have."""
_FILES = ("img", "label", "linelist", "labelmap", "jsondict", "imageid2idx")
_NAME_CHARS = 200


def read_glip_tsv(context: SourceContext, *, annotations: Url) -> list[RawTable]:
    """GLIP's TSV data sets, detection or captions with boxes, version 1 and 2.

    A line list chooses rows. Rows that it has several times come once, since records that come again are rejects: how
    often a source is seen is said by ``repeat``. They come in the order of the files, which reads them fastest.

    Options:
        annotations: the data set's YAML file; its ``img``, ``label``, ``linelist``, ``labelmap`` (or ``jsondict``) and
            ``imageid2idx`` lie in its folder or below. Pictures are opened, so ``hw`` is not needed.
    """
    files = _read_yaml(annotations)
    labels, pictures = TsvFile.open(files["label"]), TsvFile.open(files["img"])
    lines = _read_linelist(files["linelist"], len(labels)) if "linelist" in files else range(len(labels))
    is_caption = labels.has_captions()
    label_map = files.get("labelmap") or files.get("jsondict")
    ids: dict[str, int] = {}
    if not is_caption:
        ids = _read_label_map(label_map) if label_map else _names_in(labels)
    index = _PictureIndex(files["imageid2idx"]) if "imageid2idx" in files else None
    identity = fingerprint({name: file_identity(url) for name, url in files.items()} | {"offsets": labels.offsets[-1]})

    def parts(rows_per_part: int) -> Iterator[Part]:
        for start in range(0, len(lines), rows_per_part):
            some = lines[start : start + rows_per_part]
            shown = pictures.places(some if index is None else _pictures_of(labels, some, index))
            rows = partial(_rows, labels.url, pictures.url, labels.places(some), shown, ids, is_caption)
            stop = start + len(some)
            name = f"{redact(annotations)}, rows {start} to {stop}"
            yield Part(name, f"{identity} {start}-{stop}", rows, stop - start)

    kind = GroundingRecord if is_caption else DetectionRecord
    # Where several names have one id, GLIP asks for the last.
    names = {number: name for name, number in ids.items()}
    categories = tuple(Category(id=number, name=name) for number, name in names.items())
    return [RawTable(kind, parts, len(lines), categories)]


@dataclass(frozen=True)
class TsvFile:
    """A TSV with the offset of every line: eight bytes a row."""

    url: str
    offsets: array[int]

    @classmethod
    def open(cls, url: str) -> TsvFile:
        """Read the offsets from the ``.lineidx`` beside the file, or from the file itself where there is none.

        Raises:
            MissingInputError: there is no such file, it is empty, or the index is of another file.
        """
        offsets = array("q")
        try:
            with open_file(url.removesuffix(".tsv") + ".lineidx", "r") as file:
                offsets.extend(int(line) for line in file if line.strip())
        except MissingInputError:
            place = 0
            with open_file(url) as file:
                for line in file:
                    offsets.append(place)
                    place += len(line)
        except (ValueError, OverflowError) as error:
            raise MissingInputError(f"{redact(url)}: its .lineidx is not a list of offsets ({error})") from error
        if not offsets:
            raise MissingInputError(f"{redact(url)}: no rows")
        file_identity(url)  # tells a file that is not there
        filesystem, path = url_to_fs(url)
        size = filesystem.size(path)
        if size is not None and not 0 <= max(offsets) < size:
            raise MissingInputError(
                f"{redact(url)}: {size} bytes, but its .lineidx has a row at byte {max(offsets)}; fetch both again"
            )
        return cls(url, offsets)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.offsets)

    def places(self, lines: Sequence[int]) -> array[int]:
        """Return the offsets of some rows; ``NOWHERE`` for those that it does not have."""
        known = len(self)
        return array("q", (self.offsets[line] if 0 <= line < known else NOWHERE for line in lines))

    def has_captions(self) -> bool:
        """Tell by the first row that can be read whether labels are captions with boxes, not lists of objects.

        Raises:
            MissingInputError: no row at the beginning is either.
        """
        with open_file(self.url) as file:
            for offset in islice(self.offsets, PROBED_LINES):
                is_caption = _is_caption(_columns(file, offset)[1])
                if is_caption is not None:
                    return is_caption
        raise MissingInputError(
            f"{redact(self.url)}: its first rows are neither lists of objects with 'class' and 'rect' nor captions "
            "with 'bboxes'; expected labels as GLIP has them"
        )


class _PictureIndex:
    """The picture line of every ``img_id``, on disk: there are as many as pictures."""

    def __init__(self, url: str) -> None:
        self._base = temporary_database(self)
        self._base.execute("CREATE TABLE pictures (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        self._base.execute("BEGIN")
        pairs = ((text_id(key), line) for key, line in JsonStream(url).pairs() if _is_line(line))
        self._base.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?)", pairs)
        self._base.execute("COMMIT")

    def line(self, picture: Any) -> int:
        """Return the line of a picture, ``NOWHERE`` when it has none."""
        found = self._base.execute("SELECT line FROM pictures WHERE id = ?", (text_id(picture),)).fetchone()
        return NOWHERE if found is None else int(found[0])


def _is_line(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _pictures_of(labels: TsvFile, lines: Sequence[int], index: _PictureIndex) -> list[int]:
    """Return the line of every label row's picture, where it is not the same."""
    found = []
    with open_file(labels.url) as file:
        for offset in labels.places(lines):
            values = None if offset == NOWHERE else _columns(file, offset)[1]
            found.append(index.line(values.get("img_id") if isinstance(values, dict) else None))
    return found


def _rows(
    labels_url: str,
    pictures_url: str,
    places: array[int],
    shown: array[int],
    ids: Mapping[str, int],
    is_caption: bool,
) -> Iterator[RawRow]:
    """Read the label rows and the picture rows at some offsets."""
    with open_file(labels_url) as labels, open_file(pictures_url) as pictures:
        for place, picture in zip(places, shown, strict=True):
            if NOWHERE in (place, picture):
                of = "its line" if place == NOWHERE else "the picture of its row"
                yield Reject(f"{redact(labels_url)}, {of} is not there", "row_malformed")
                continue
            key, values, notes = _columns(labels, place)
            image = RawImage(data=_picture(pictures, picture))
            name = key[:_NAME_CHARS] or f"{redact(labels_url)}, byte {place}"
            if is_caption and isinstance(values, dict):
                caption, phrases = values.get("caption"), _phrases(values)
                yield RawGrounding(name=name, image=image, caption=caption, phrases=phrases, converted=notes)
            elif not is_caption and (objects := _objects(values)) is not None:
                found = [_object(item, ids) for item in objects]
                yield RawDetection(name=name, image=image, objects=found)
            else:
                yield Reject(name, "row_malformed")


def _columns(file: IO[Any], offset: int) -> tuple[str, Any, tuple[str, ...]]:
    """Return key and parsed label of the row at an offset, its first two columns, and what was done to their text."""
    file.seek(offset)
    line: bytes = file.readline()
    key, label, *_ = [*line.rstrip(b"\r\n").split(b"\t"), b"", b""]
    text, note = decode_line(label)
    return key.decode("utf-8", "replace"), parse_json(text), (note,) if note else ()


def _picture(file: IO[Any], offset: int) -> bytes:
    """Return the picture in the last column of a row; nothing when it is not base64."""
    file.seek(offset)
    try:
        return base64.b64decode(file.readline().strip().rpartition(b"\t")[2], validate=True)
    except binascii.Error:
        return b""


def _is_caption(values: Any) -> bool | None:
    """Tell captions from lists of objects; None for what is neither."""
    if isinstance(values, dict) and "caption" in values:
        return True
    objects = _objects(values)
    is_readable = objects is not None and all(isinstance(item, dict) and "class" in item for item in objects[:1])
    return False if is_readable else None


def _objects(values: Any) -> list[Any] | None:
    """Return the objects of a detection row: a list, or one under ``objects``."""
    found = values.get("objects") if isinstance(values, dict) else values
    return found if isinstance(found, list) else None


def _object(item: Any, ids: Mapping[str, int]) -> RawObject:
    if not isinstance(item, dict):
        return RawObject(xyxy=(), category_id=None)
    rect, name = item.get("rect"), item.get("class")
    return RawObject(
        xyxy=listed(rect),
        category_id=ids.get(name) if isinstance(name, str) else None,
        is_crowd=item.get("IsGroupOf") in (1, "1"),  # as the data sets made of OpenImages say it
    )


def _phrases(values: Mapping[str, Any]) -> list[RawPhrase]:
    """Return the phrases of a caption row; boxes of the same spans make one.

    Version 1 has a box, a score and spans side by side, version 2 a list of boxes and of scores for each entity, which
    may be empty. A box whose score is missing is dropped, unless the row has no scores at all.
    """
    boxes, scores, tokens = (listed(values.get(name)) for name in ("bboxes", "scores", "tokens_positive"))
    has_scores = "scores" in values
    is_by_entity = any(isinstance(entry, list) for box in boxes[:PROBED_LINES] for entry in listed(box)[:1])
    is_by_entity = is_by_entity or any(isinstance(score, list) for score in scores[:PROBED_LINES])
    by_spans: dict[str, tuple[Any, list[Any], list[Any]]] = {}
    for i, entry in enumerate(boxes):
        spans, score = tokens[i] if i < len(tokens) else (), scores[i] if i < len(scores) else None
        found, found_scores = (listed(entry), listed(score)) if is_by_entity else ([entry], [score])
        for k, box in enumerate(found):
            _, known, known_scores = by_spans.setdefault(repr(spans), (spans, [], []))
            known.append(listed(box))
            known_scores.append(found_scores[k] if k < len(found_scores) else None)
    return [
        RawPhrase(char_spans=listed(spans), boxes=found, scores=found_scores if has_scores else None)
        for spans, found, found_scores in by_spans.values()
    ]


def _read_yaml(url: Url) -> dict[str, str]:
    """Return the places of the files that a data set has."""
    with open_file(url) as file:
        try:
            content = yaml.safe_load(file)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise MissingInputError(
                f"{redact(url)}: not readable as YAML: {describe(error, url)}; fetch the file again"
            ) from error
    if not isinstance(content, dict) or content.get("img") is None or content.get("label") is None:
        raise MissingInputError(f"{redact(url)}: expected a mapping with img and label, the data set's TSV files")
    above, slash, _ = url.rpartition("/")
    files = {}
    for name in _FILES:
        if content.get(name) is None:
            continue
        try:
            files[name] = join_inside(above if slash else ".", content[name])
        except ImageError as error:
            raise MissingInputError(
                f"{redact(url)}: {name} is {content[name]!r}; expected a file in the YAML file's folder or below, put "
                "or link it there"
            ) from error
    return files


def _read_linelist(url: str, num_rows: int) -> array[int]:
    """Return the line numbers of a list, each once and in order; those that no row has come last, to be told."""
    is_chosen, others = bytearray(num_rows), array("q")
    with open_text(url) as file:
        try:
            for number in (int(line) for line in file if line.strip()):
                if 0 <= number < num_rows:
                    is_chosen[number] = 1
                else:
                    others.append(number)
        except (ValueError, OverflowError) as error:
            raise MissingInputError(f"{redact(url)}: expected a line number a row ({error})") from error
    lines = array("q", (number for number, chosen in enumerate(is_chosen) if chosen)) + others
    if not lines:
        raise MissingInputError(f"{redact(url)}: no line numbers; expected one a row")
    return lines


def _read_label_map(url: str) -> dict[str, int]:
    """Return the id of every class: of a TSV, which has a name a line, the number of the line from 1."""
    if url.endswith(".tsv"):
        with open_text(url) as lines:
            ids = {name: number for number, name in enumerate(map(str.strip, lines), start=1) if name}
    else:
        content = dict(JsonStream(url).pairs())
        found = content.get("label_to_idx", content)
        ids = {name: number for name, number in found.items() if _is_line(number)} if isinstance(found, dict) else {}
    ids.pop(BACKGROUND, None)
    if not ids:
        raise MissingInputError(f"{redact(url)}: expected a JSON object from class name to number, or a TSV of names")
    return ids


def _names_in(labels: TsvFile) -> dict[str, int]:
    """Number the class names that occur, in alphabetical order, from 1."""
    names: set[str] = set()
    with open_file(labels.url) as file:
        for offset in labels.offsets:
            items = _objects(_columns(file, offset)[1]) or []
            names |= {item["class"] for item in items if isinstance(item, dict) and isinstance(item.get("class"), str)}
    return {name: number for number, name in enumerate(sorted(names), start=1)}
