"""Labels in formats of others: COCO JSON, ODVG lines, webdataset tars, FiftyOne."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from glip_model.images import ImageError, check_image, decode_image
from pipeline.errors import ConfigError, MissingInputError, ShardError, StorageError
from pipeline.inspection.reading import read_records
from pipeline.inspection.search import Found
from pipeline.store.atomic import replacing
from pipeline.store.images import read_encoded
from pipeline.store.records import Box, GroundingRecord, ImageRef
from pipeline.store.storage import Place

PICTURES = "images"
UNFINISHED = ".unfinished-export"
"""File in a folder that an export is being written to, or was when it was killed."""
MAX_PIXELS = 1_000_000_000
"""Larger pictures are not copied from beside the shards."""
_SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp"}
"""By the first two bytes."""


@dataclass(frozen=True)
class Pairs:
    """What is exported: the pairs that have a picture and boxes, each with its number from 1.

    Attributes:
        found: rows and where they stand.
        on_row: is told of every row that was read.
        roots: where pictures may be that do not lie in the shards.
        defects: counts what is left out as broken, by kind.
    """

    found: Iterable[Found]
    on_row: Callable[[int], Any]
    roots: Sequence[str]
    defects: Counter[str]

    def __iter__(self) -> Iterator[tuple[int, GroundingRecord]]:
        """Yield number and pair."""
        count = 0
        for record in read_records(self.found, self.defects):
            if record.image != ImageRef() and any(phrase.boxes for phrase in record.phrases):
                if _is_readable(record.image):
                    count += 1
                    yield count, record
                else:
                    self.defects["picture_unreadable"] += 1
            self.on_row(1)

    def by_shard(self) -> Iterator[tuple[Place, Pairs]]:
        """Yield shards with their pairs, to be read one after the other."""
        for shard, rows in groupby(self.found, key=lambda each: each[0]):
            yield shard, replace(self, found=rows)

    def picture(self, record: GroundingRecord) -> bytes:
        """Return the encoded picture of a pair; ShardError where it cannot be read."""
        path = record.image.path if record.image.bytes is None else None
        try:
            (data,) = read_encoded([record.image], self.roots)
            if isinstance(data, ImageError):
                raise data
            if path is not None:  # a file of any kind may be named
                decode_image(data, MAX_PIXELS)
        except ImageError as error:
            raise ShardError(f"row {record.key}: {error.reason}: {error}") from error
        return data


def _is_readable(image: ImageRef) -> bool:
    """Say whether the bytes in a record are a picture; what a path leads to is seen when it is read."""
    if image.bytes is None:
        return True
    try:
        check_image(image.bytes, MAX_PIXELS, 1)
    except ImageError:
        return False
    return True


def export_coco(pairs: Pairs, out: Path) -> int:
    """Write ``OUT/annotations.json`` in COCO's layout and ``OUT/images/``; every phrase is a category.

    Returns:
        Pictures written. Pairs without boxes are left out, here and in the other exports.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for image_id, record in pairs:
        name = _write_picture(pairs.picture(record), out, image_id)
        head = {"id": image_id, "file_name": name, "width": record.width, "height": record.height}
        images.append(head | {"caption": record.caption, "key": record.key})
        for phrase in record.phrases:
            category = categories.setdefault(phrase.text.lower(), len(categories) + 1)
            for box in phrase.boxes:
                bbox = _xywh(box.xyxy)
                entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
                annotations.append(entry | {"bbox": bbox, "area": bbox[2] * bbox[3], "score": box.score})
    names = [{"id": number, "name": name} for name, number in categories.items()]
    with replacing(out / "annotations.json") as aside, aside.open("w", encoding="utf-8") as file:
        json.dump(
            {"images": images, "annotations": annotations, "categories": names},
            file,
            ensure_ascii=False,
            allow_nan=False,
        )
    return len(images)


def export_odvg(pairs: Pairs, out: Path) -> int:
    """Write ``OUT/labels.jsonl``, a grounding line a picture, and ``OUT/images/``; returns the pictures written.

    Only the boxes of pseudo-labels have a score: by it our reader tells them from those of people.
    """
    count = 0
    with replacing(out / "labels.jsonl") as aside, aside.open("w", encoding="utf-8") as file:
        for count, record in pairs:
            regions = [
                {"bbox": list(box.xyxy), "phrase": phrase.text, "tokens_positive": phrase.char_spans}
                | ({"score": box.score} if box.score < 1 else {})
                for phrase in record.phrases
                for box in phrase.boxes
            ]
            line = {
                "filename": _write_picture(pairs.picture(record), out, count),
                "height": record.height,
                "width": record.width,
                "key": record.key,
                "source": record.source,
                "grounding": {"caption": record.caption, "regions": regions},
            }
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    return count


def export_webdataset(pairs: Pairs, out: Path) -> int:
    """Write a tar a shard into OUT: picture, caption and phrases as ``.jpg``, ``.txt``, ``.json``; returns pairs."""
    total = 0
    for shard, of_shard in pairs.by_shard():
        count = 0
        with replacing(out / f"{Path(shard.name).stem}.tar") as aside, tarfile.open(aside, "w") as tar:
            for count, record in of_shard:
                data = pairs.picture(record)
                members = {
                    _suffix(data): data,
                    "txt": record.caption.encode(),
                    "json": json.dumps(_labels(record), ensure_ascii=False, allow_nan=False).encode(),
                }
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{count - 1:09d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        total += count
    return total


def export_fiftyone(pairs: Pairs, out: Path) -> int:
    """Make a persistent FiftyOne dataset named like OUT, its pictures in ``OUT/images/``; returns its samples.

    Raises:
        MissingInputError: FiftyOne is not installed.
        ConfigError: it has a data set of this name.
    """
    try:
        import fiftyone
    except ImportError as error:
        raise MissingInputError("--export fiftyone needs FiftyOne; run: pip install fiftyone") from error
    try:
        dataset = fiftyone.Dataset(out.name, persistent=True)
    except ValueError as error:
        raise ConfigError(f"--out {out}: FiftyOne takes no data set of this name ({error})") from error
    count = 0
    try:
        for count, record in pairs:
            sides = (record.width, record.height) * 2
            detections = [
                fiftyone.Detection(
                    label=phrase.text,
                    confidence=box.score,
                    bounding_box=[value / side for value, side in zip(_xywh(box.xyxy), sides, strict=True)],
                )
                for phrase in record.phrases
                for box in phrase.boxes
            ]
            path = out / PICTURES / _write_picture(pairs.picture(record), out, count)
            sample = fiftyone.Sample(filepath=str(path.resolve()), tags=[record.source])
            sample["caption"], sample["key"] = record.caption, record.key
            sample["pseudo_labels"] = fiftyone.Detections(detections=detections)
            dataset.add_sample(sample)
    except BaseException:
        dataset.delete()
        raise
    return count


EXPORTS: dict[str, Callable[[Pairs, Path], int]] = {
    "coco": export_coco,
    "odvg": export_odvg,
    "webdataset": export_webdataset,
    "fiftyone": export_fiftyone,
}


def export(
    name: str,
    found: Iterable[Found],
    out: Path,
    on_row: Callable[[int], Any],
    roots: Sequence[str] = (),
    defects: Counter[str] | None = None,
) -> int:
    """Write labels in another format; see the functions above.

    What is broken is left out, and counted in ``defects``, by kind: rows without a picture, or with bytes that are
    none, phrases and boxes. Pictures that do not lie in the shards are copied from below ``roots`` alone. An export
    that fails leaves OUT empty.

    Raises:
        ConfigError: there is something at OUT already.
        ShardError: a picture beside the shards cannot be read.
        StorageError: OUT cannot be written.
    """
    try:
        with _filled(out):
            return EXPORTS[name](Pairs(found, on_row, roots, Counter() if defects is None else defects), out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error}); make room, or name another folder") from error


@contextmanager
def _filled(out: Path) -> Iterator[None]:
    """Make a new or empty folder, or one of an export that was killed, for a block to fill; else empty it again."""
    mark = out / UNFINISHED
    if out.exists() and not mark.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: there is something already; name a new folder")
    _empty(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch()
        yield
    except BaseException:
        with suppress(OSError):
            _empty(out)
        raise
    mark.unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _labels(record: GroundingRecord) -> dict[str, Any]:
    phrases = [
        {
            "phrase": phrase.text,
            "char_spans": phrase.char_spans,
            "boxes": [{"xyxy": box.xyxy, "score": box.score} for box in phrase.boxes],
        }
        for phrase in record.phrases
    ]
    head = {name: getattr(record, name) for name in ("key", "width", "height", "source")}
    return head | {"phrases": phrases}


def _xywh(xyxy: Box) -> list[float]:
    x1, y1, x2, y2 = xyxy
    return [x1, y1, x2 - x1, y2 - y1]


def _write_picture(data: bytes, out: Path, number: int) -> str:
    """Write a picture under a number, because keys are untrusted; return its name."""
    name = f"{number:012d}.{_suffix(data)}"
    (out / PICTURES).mkdir(exist_ok=True)
    (out / PICTURES / name).write_bytes(data)
    return name


def _suffix(data: bytes) -> str:
    return _SUFFIXES.get(data[:2], "img")
