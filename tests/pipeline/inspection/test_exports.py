"""Labels in formats of others come back through this project's readers, and through the tools that own the formats."""

from __future__ import annotations

import gc
import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import webdataset
from PIL import Image
from pycocotools.coco import COCO

from pipeline.errors import ConfigError, MissingInputError, ShardError, StorageError
from pipeline.inspection.exports import EXPORTS, UNFINISHED, export
from pipeline.inspection.search import Filter, find_rows
from pipeline.prepare.raw import Reject, SourceContext, Url
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.odvg import read_odvg
from pipeline.prepare.readers.webdataset import read_webdataset
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import shard_name, write_shard

CAPTION = "a dog, a cat and a Dog 😀"
Write = Callable[..., Path]


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(out, kind)
    return out.getvalue()


def phrase(text: str, *starts: int, boxes: tuple[ScoredBox, ...] = ()) -> Phrase:
    spans = tuple((start, start + len(text)) for start in starts)
    return Phrase(text=text, char_spans=spans, boxes=boxes, is_plural=len(boxes) > 1)


def row(key: str, *phrases: Phrase, kind: str = "JPEG", **values: Any) -> GroundingRecord:
    image = ImageRef(bytes=picture(kind))
    head = {"image": image, "height": 32, "width": 48, "caption": CAPTION, "source": "web"} | values
    return GroundingRecord(key=key, phrases=phrases, **head)


DOG = phrase("dog", 2, boxes=(ScoredBox(xyxy=(1.5, 2, 20.25, 30), score=0.75),))
CAT = phrase("cat", 9, boxes=(ScoredBox(xyxy=(0, 0, 48, 32), score=0.5), ScoredBox(xyxy=(3, 3, 9, 9), score=0.25)))
SHARDS = [
    [row("../../etc/passwd", DOG, CAT), row("nothing", phrase("cat", 9), reject_reason="no_boxes")],
    [row("png", phrase("Dog", 19, boxes=DOG.boxes), kind="PNG")],
]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    for number, rows in enumerate(SHARDS):
        write_shard(tmp_path / "labels" / shard_name(number), rows, GroundingRecord)
    return tmp_path / "labels"


@pytest.fixture
def write(labels: Path, tmp_path: Path) -> Write:
    def write_export(name: str) -> Path:
        told: list[int] = []
        count = export(name, find_rows(labels, Filter()), tmp_path / "out", told.append)
        assert count == 2  # the pair without boxes is left out
        assert len(told) == 3
        return tmp_path / "out"

    return write_export


def flat(record: GroundingRecord) -> list[tuple[Any, ...]]:
    return sorted((phrase.text.lower(), *box.xyxy) for phrase in record.phrases for box in phrase.boxes)


WANTED = [flat(SHARDS[0][0]), flat(SHARDS[1][0])]


def test_coco_through_our_reader(write: Write, context: SourceContext, read_rows: Any) -> None:
    out = write("coco")
    (table,) = read_coco_detection(context, annotations=Url(out / "annotations.json"), images=Url(out / "images"))
    names = {category.id: category.name for category in table.categories}
    rows = read_rows(table)
    assert [sorted((names[item.category_id], *item.xyxy) for item in row.objects) for row in rows] == WANTED
    assert [row.image.bytes for row in rows] == [SHARDS[0][0].image.bytes, SHARDS[1][0].image.bytes]


def test_coco_through_pycocotools(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    out = write("coco")
    coco = COCO(out / "annotations.json")
    assert [coco.imgs[number]["file_name"] for number in sorted(coco.imgs)] == ["000000000001.jpg", "000000000002.png"]
    assert coco.imgs[1]["key"] == "../../etc/passwd"  # as data, not as a path
    assert {path.name for path in (out / "images").iterdir()} == {"000000000001.jpg", "000000000002.png"}
    (cat,) = coco.getCatIds(catNms=["cat"])
    found = coco.loadAnns(coco.getAnnIds(catIds=[cat]))
    assert [item["bbox"] for item in found] == [[0, 0, 48, 32], [3, 3, 6, 6]]
    assert [item["score"] for item in found] == [0.5, 0.25]
    assert [item["area"] for item in found] == [48 * 32, 36]


def test_odvg_keeps_captions_spans_and_boxes(write: Write, context: SourceContext, read_rows: Any) -> None:
    out = write("odvg")
    (table,) = read_odvg(context, annotations=Url(out / "labels.jsonl"), images=Url(out / "images"))
    rows = read_rows(table)
    assert [flat(row) for row in rows] == WANTED
    assert [row.caption for row in rows] == [CAPTION, CAPTION]
    assert [[each.char_spans for each in row.phrases] for row in rows] == [[((2, 5),), ((9, 12),)], [((19, 22),)]]
    lines = [json.loads(line) for line in (out / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [region["score"] for region in lines[0]["grounding"]["regions"]] == [0.75, 0.5, 0.25]
    assert [(row.key, row.source) for row in rows] == [(line["key"], line["source"]) for line in lines]
    assert [(row.key, row.source) for row in rows] == [(shard[0].key, "web") for shard in SHARDS]
    scores = [[box.score for phrase in row.phrases for box in phrase.boxes] for row in rows]
    assert scores[0] == [0.75, 0.5, 0.25]
    assert read_rows(table, is_judged_by=True) == [
        Reject(name, "pseudo_label") for name in ("000000000001.jpg", "000000000002.png")
    ]


def test_boxes_of_people_have_no_score_in_odvg(tmp_path: Path, context: SourceContext, read_rows: Any) -> None:
    drawn = phrase("dog", 2, boxes=(ScoredBox(xyxy=(1, 2, 10, 20)),))
    write_shard(tmp_path / "labels" / shard_name(0), [row("one", drawn)], GroundingRecord)
    export("odvg", find_rows(tmp_path / "labels", Filter()), tmp_path / "out", lambda rows: None)
    assert '"score"' not in (tmp_path / "out" / "labels.jsonl").read_text()
    (table,) = read_odvg(context, annotations=Url(tmp_path / "out/labels.jsonl"), images=Url(tmp_path / "out/images"))
    for is_judged_by in (False, True):
        (record,) = read_rows(table, is_judged_by=is_judged_by)
        assert record.phrases[0].boxes == (ScoredBox(xyxy=(1, 2, 10, 20), score=1.0),)


def test_webdataset_through_our_reader(write: Write, context: SourceContext, read_rows: Any) -> None:
    out = write("webdataset")
    (table,) = read_webdataset(context, shards=Url(out / "part-*.tar"))
    rows = read_rows(table)
    assert [(row.caption, row.image.bytes) for row in rows] == [
        (CAPTION, SHARDS[0][0].image.bytes),
        (CAPTION, SHARDS[1][0].image.bytes),
    ]
    assert not (out / "images").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_through_its_own_library(write: Write) -> None:
    out = write("webdataset")
    tars = sorted(str(path) for path in out.iterdir())
    found = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
    gc.collect()  # it leaves the last tar open
    assert [sample.get("jpg", sample.get("png")).size for sample in found] == [(48, 32)] * 2
    assert found[0]["json"]["key"] == "../../etc/passwd"
    assert found[0]["json"]["phrases"][1] == {
        "phrase": "cat",
        "char_spans": [[9, 12]],
        "boxes": [{"xyxy": [0, 0, 48, 32], "score": 0.5}, {"xyxy": [3, 3, 9, 9], "score": 0.25}],
    }


def test_fiftyone_gets_shares_of_the_picture(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[Any] = []

    class Sample(dict[str, Any]):
        def __init__(self, **values: Any) -> None:
            super().__init__(values)

    library = SimpleNamespace(
        Dataset=lambda name, persistent: SimpleNamespace(add_sample=samples.append),
        Sample=Sample,
        Detection=lambda **values: values,
        Detections=lambda detections: detections,
    )
    monkeypatch.setitem(sys.modules, "fiftyone", library)
    out = write("fiftyone")
    assert [Path(sample["filepath"]) for sample in samples] == sorted((out / "images").resolve().iterdir())
    assert samples[0]["pseudo_labels"][0] == {
        "label": "dog",
        "confidence": 0.75,
        "bounding_box": pytest.approx([1.5 / 48, 2 / 32, 18.75 / 48, 28 / 32]),
    }


def test_without_fiftyone_it_is_told_how_to_get_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(MissingInputError, match="pip install fiftyone"):
        write("fiftyone")


@pytest.mark.parametrize("name", sorted(set(EXPORTS) - {"fiftyone"}))
def test_pictures_by_path_are_fetched(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture("JPEG"))
    rows = [row("k", DOG, image=ImageRef(path=str(tmp_path / "a.jpg")))]
    write_shard(tmp_path / "labels" / shard_name(0), rows, GroundingRecord)
    roots = [str(tmp_path)]
    assert export(name, find_rows(tmp_path / "labels", Filter()), tmp_path / "out", lambda _: None, roots) == 1
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ShardError, match="row k: image_missing"):
        export(name, find_rows(tmp_path / "labels", Filter()), tmp_path / "again", lambda _: None, roots)


@pytest.mark.parametrize("name", sorted(set(EXPORTS) - {"fiftyone"}))
@pytest.mark.parametrize("data", [b"no picture", b"", picture("JPEG")[:-20]])
def test_bytes_that_are_no_picture_are_counted_and_the_rest_is_exported(name: str, data: bytes, tmp_path: Path) -> None:
    images = {"bad": data, "good": picture("PNG")}
    rows = [row(key, DOG, image=ImageRef(bytes=image)) for key, image in images.items()]
    write_shard(tmp_path / "labels" / shard_name(0), rows, GroundingRecord)
    defects: Counter[str] = Counter()
    found = find_rows(tmp_path / "labels", Filter())
    assert export(name, found, tmp_path / "out", lambda _: None, defects=defects) == 1
    assert defects == {"picture_unreadable": 1}


def test_nothing_is_written_over(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="something already; name a new folder"):
        export("coco", find_rows(labels, Filter()), tmp_path / "out", lambda _: None)
    with pytest.raises(ConfigError, match=r"mine\.txt: there is something"):
        export("coco", find_rows(labels, Filter()), tmp_path / "out" / "mine.txt", lambda _: None)


def test_no_room_is_told(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match=r"out: cannot be written .*No space left"):
        export("coco", find_rows(labels, Filter()), tmp_path / "out", lambda _: None)


@pytest.mark.parametrize("name", ["coco", "odvg", "webdataset"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_failed_leaves_nothing_and_may_be_run_again(
    name: str, error: BaseException, labels: Path, tmp_path: Path
) -> None:
    def fail(_: int) -> None:
        raise error

    with pytest.raises((StorageError, KeyboardInterrupt)):
        export(name, find_rows(labels, Filter()), tmp_path / "out", fail)
    assert list((tmp_path / "out").iterdir()) == []
    assert export(name, find_rows(labels, Filter()), tmp_path / "out", lambda _: None) == 2
    assert not (tmp_path / "out" / UNFINISHED).exists()


def test_what_a_killed_export_left_goes_and_links_are_not_followed(labels: Path, tmp_path: Path) -> None:
    """The folder is known by the mark in it."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for path in (out / UNFINISHED, out / "images" / "9.png", elsewhere / "mine.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (out / "more").symlink_to(elsewhere)
    assert export("coco", find_rows(labels, Filter()), out, lambda _: None) == 2
    assert {path.name for path in out.rglob("*")} == {
        "annotations.json",
        "keys.csv",
        "images",
        "000000000001.jpg",
        "000000000002.png",
    }
    assert (elsewhere / "mine.txt").is_file()


@pytest.mark.parametrize("name", ["coco", "odvg", "webdataset"])
def test_pictures_are_copied_from_allowed_places_alone(tmp_path: Path, name: str) -> None:
    beside = tmp_path / "labels" / "a.jpg"
    secret, text = tmp_path / "secret.jpg", tmp_path / "labels" / "key.txt"
    for number, path in enumerate((beside, secret, text)):
        shard = tmp_path / "labels" / f"{number}" / shard_name(0)
        shard.parent.mkdir(parents=True)
        path.write_bytes(b"a secret" if path is text else picture("JPEG"))
        write_shard(shard, [row("one", DOG, image=ImageRef(path=str(path)))], GroundingRecord)
    roots = [str(tmp_path / "labels")]
    places = [tmp_path / "labels" / f"{number}" for number in range(3)]
    assert export(name, find_rows(places[0], Filter()), tmp_path / "0", lambda rows: None, roots) == 1
    with pytest.raises(ShardError, match=r"row one: image_outside_folder: .*--image-root"):
        export(name, find_rows(places[1], Filter()), tmp_path / "1", lambda rows: None, roots)
    with pytest.raises(ShardError, match="row one: image_unreadable"):
        export(name, find_rows(places[2], Filter()), tmp_path / "2", lambda rows: None, roots)
    assert not any(path.is_file() for number in "12" for path in (tmp_path / number).rglob("*"))
