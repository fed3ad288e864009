"""Labels in formats of others: detection data sets, ODVG lines, webdataset tars, FiftyOne."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, MissingInputError, StorageError
from pipeline.inspection.detection_sets import export_coco, export_voc, export_yolo
from pipeline.inspection.editors import export_cvat, export_label_studio
from pipeline.inspection.exporting import Pairs, keys_table, suffix_of, write_picture, xywh
from pipeline.inspection.search import Found
from pipeline.store.atomic import replacing
from pipeline.store.ontology import Ontology
from pipeline.store.records import GroundingRecord

logger = logging.getLogger(__name__)

PICTURES = "images"
MOST_TOLD = 10
"""Phrases that are named when they are left out."""
UNFINISHED = ".unfinished-export"
"""File in a folder that an export is being written to, or was when it was killed."""


def export_odvg(pairs: Pairs, out: Path) -> int:
    """Write ``OUT/labels.jsonl``, a grounding line a picture, and ``OUT/images/``; returns the pictures written.

    Only the boxes of pseudo-labels have a score: by it our reader tells them from those of people.
    """
    count = 0
    with (
        keys_table(out) as write_key,
        replacing(out / "labels.jsonl") as aside,
        aside.open("w", encoding="utf-8") as file,
    ):
        for count, record in pairs:
            regions = [
                {"bbox": list(box.xyxy), "phrase": phrase.text, "tokens_positive": phrase.char_spans}
                | ({"score": box.score} if box.score < 1 else {})
                for phrase in record.phrases
                for box in phrase.boxes
            ]
            line: dict[str, Any] = {
                "filename": write_picture(pairs.picture(record), out / PICTURES, count),
                "height": record.height,
                "width": record.width,
                "key": record.key,
                "source": record.source,
                "grounding": {"caption": record.caption, "regions": regions},
            }
            write_key(line["filename"], record.key)
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
                    suffix_of(data): data,
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
                    label=phrase.category or phrase.text,
                    confidence=box.score,
                    bounding_box=[value / side for value, side in zip(xywh(box.xyxy), sides, strict=True)],
                )
                for phrase in record.phrases
                for box in phrase.boxes
            ]
            path = out / PICTURES / write_picture(pairs.picture(record), out / PICTURES, count)
            sample = fiftyone.Sample(filepath=str(path.resolve()), tags=[record.source])
            sample["caption"], sample["key"] = record.caption, record.key
            sample["width"], sample["height"] = record.width, record.height
            sample["pseudo_labels"] = fiftyone.Detections(detections=detections)
            dataset.add_sample(sample)
    except BaseException:
        dataset.delete()
        raise
    return count


EXPORTS: dict[str, Callable[[Pairs, Path], int]] = {
    "coco": export_coco,
    "voc": export_voc,
    "yolo": export_yolo,
    "odvg": export_odvg,
    "webdataset": export_webdataset,
    "fiftyone": export_fiftyone,
    "label_studio": export_label_studio,
    "cvat": export_cvat,
}


def export(
    name: str,
    found: Iterable[Found],
    out: Path,
    on_row: Callable[[int], Any],
    roots: Sequence[str] = (),
    defects: Counter[str] | None = None,
    val_share: float = 0.0,
    classes: Sequence[str] | None = None,
    ontology: Ontology | None = None,
) -> int:
    """Write labels in another format; see the functions above.

    What is broken is left out, and counted in ``defects``, by kind: rows without a picture, or with bytes that are
    none, phrases and boxes. Pictures that do not lie in the shards are copied from below ``roots`` alone. An export
    that fails leaves OUT empty.

    Args:
        name: of the format.
        found: rows and where they stand.
        out: a new folder.
        on_row: is told of every row.
        roots: where pictures may be that do not lie in the shards.
        defects: counts what is broken.
        val_share: of the pairs that are written apart; of COCO, VOC and YOLO alone.
        classes: of pictures that were labelled with names: all of them, and pictures where nothing was found are
            written, too.
        ontology: one's own classes, by which categories are called; of COCO, VOC, YOLO and FiftyOne alone. Boxes of
            other phrases are left out, and said so.

    Returns:
        Pictures written.

    Raises:
        ConfigError: there is something at OUT already.
        ShardError: a picture beside the shards cannot be read.
        StorageError: OUT cannot be written.
    """
    try:
        with _filled(out):
            counted = Counter() if defects is None else defects
            first = tuple(classes or ()) if ontology is None else ontology.classes
            pairs = Pairs(found, on_row, roots, counted, val_share, first, classes is not None, ontology)
            written = EXPORTS[name](pairs, out)
            _tell_of_others(pairs.other_phrases)
            return written
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error}); make room, or name another folder") from error


def _tell_of_others(phrases: Counter[str]) -> None:
    """Say which phrases with boxes mean none of the classes."""
    if phrases:
        most = ", ".join(f"{text!r} {count}" for text, count in phrases.most_common(MOST_TOLD))
        logger.warning(
            "export: %d phrases with boxes, %d different ones, mean none of the names and are left out: %s%s",
            phrases.total(),
            len(phrases),
            most,
            ", …" if len(phrases) > MOST_TOLD else "",
        )


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
