"""Which benchmarks records make, and how a model is asked about a shard."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from PIL import Image

from glip_model.images import ImageError
from glip_model.predictor import GLIPPredictor
from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.benchmark import Benchmark, ShardPredictions, list_benchmarks, predict_shard, predictions_of
from pipeline.evaluation.predictions import read_predictions, write_predictions
from pipeline.evaluation.scoring import score
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.prepare.job import prepare
from pipeline.settings import load_all
from pipeline.store.records import (
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    ScoredBox,
)
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard
from pipeline.store.storage import Place, to_place

BOX = (10.0, 10.0, 30.0, 30.0)
DOG = Phrase(text="a dog", char_spans=((0, 5),), boxes=(ScoredBox(xyxy=BOX),), split="base")
YAK = Phrase(text="a yak", char_spans=((10, 15),), boxes=(ScoredBox(xyxy=(60, 60, 80, 80)),), split="novel")
RARE = [Category(id=7, name="dog", frequency="f"), Category(id=3, name="yak", frequency="r")]
CATEGORIES = [Category(id=7, name="dog"), Category(id=3, name="yak", split="novel")]
CONFIG = EvaluateConfig(
    splits=("dev",),
    batch_size=2,
    num_actors=1,
    max_prompt_categories=40,
    max_detections=100,
    max_detections_lvis=300,
    referring_target="expression",
    one_prompt_categories=0,
    max_prompt_categories_by_source={},
    precision="float32",
)


class FakePredictor:
    """Finds ``BOX`` once for every phrase and name it is asked for."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def _answer(self, count: int) -> Detections:
        return Detections(torch.tensor([BOX] * count).reshape(-1, 4), torch.full((count,), 0.5), torch.arange(count))

    def detect(
        self, images: Sequence[Image.Image], names: Sequence[str], most: int, limit_total: bool, max_detections: int
    ) -> list[Detections]:
        self.batches.append((len(images), tuple(names), most, max_detections, limit_total))
        return [self._answer(len(names)) for _ in images]

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt], max_detections: int) -> list[Detections]:
        assert max_detections == CONFIG.max_detections
        self.batches.append([prompt.phrases for prompt in prompts])
        return [self._answer(len(prompt.char_spans)) for prompt in prompts]


def predict(path: Place, task: str, config: EvaluateConfig = CONFIG) -> tuple[ShardPredictions, list[Any]]:
    """Return what the fake model finds in a shard, and what it was asked."""
    model = FakePredictor()
    return predict_shard(cast(GLIPPredictor, model), path, task, config, [str(path.parent)]), model.batches


def write_detection(path: Place, rows: Sequence[DetectionRecord], categories: Sequence[Category] = CATEGORIES) -> Place:
    write_shard(path, rows, DetectionRecord, categories_to_metadata(categories))
    return path


def test_detection_asks_for_the_whole_vocabulary_and_answers_with_its_ids(tmp_path: Path, make_detection: Any) -> None:
    path = write_detection(tmp_path / shard_name(0), [make_detection(0), make_detection(1)])
    found, asked = predict(path, "detection", replace(CONFIG, batch_size=1, max_prompt_categories=13))
    assert asked == [(1, ("dog", "yak"), 13, 100, True)] * 2
    assert found.table["number"].to_pylist() == [0, 0, 1, 1]
    assert found.table["key"].to_pylist() == ["key-0", "key-0", "key-1", "key-1"]
    assert found.table["label"].to_pylist() == [7, 3, 7, 3]
    assert found.missing == {}


def test_a_source_may_have_prompts_of_its_own_length(tmp_path: Path, make_detection: Any) -> None:
    path = write_detection(tmp_path / shard_name(0), [make_detection(0)])
    for source, count in (("test", 80), ("other", 40)):
        _, asked = predict(path, "detection", replace(CONFIG, max_prompt_categories_by_source={source: 80}))
        assert asked[0][2] == count


def test_a_short_vocabulary_is_asked_in_one_prompt_whatever_its_source_is_called(
    tmp_path: Path, make_detection: Any
) -> None:
    path = write_detection(tmp_path / shard_name(0), [make_detection(0)])
    for limit, count in ((2, 2), (80, 2), (1, 40), (0, 40)):
        _, asked = predict(path, "detection", replace(CONFIG, one_prompt_categories=limit))
        assert asked[0][2] == count
    coco = load_all(Path(__file__).parents[3] / "params.yaml").evaluate
    assert [coco.names_a_prompt("my_coco", names) for names in (20, 80, 84, 1203)] == [20, 80, 40, 40]


def test_a_federated_vocabulary_keeps_the_detections_of_every_prompt(tmp_path: Path, make_detection: Any) -> None:
    path = write_detection(tmp_path / shard_name(0), [make_detection(i) for i in range(5)], RARE)
    _, asked = predict(path, "detection")
    assert asked == [(count, ("dog", "yak"), 40, 300, False) for count in (2, 2, 1)]


def test_grounding_asks_for_each_captions_own_phrases(tmp_path: Path, make_grounding: Any) -> None:
    rows = [make_grounding(0, "a dog and a yak", DOG, YAK), make_grounding(1, "a dog", DOG), make_grounding(2, "none")]
    write_shard(tmp_path / shard_name(0), rows, GroundingRecord)
    found, asked = predict(tmp_path / shard_name(0), "grounding")
    assert asked == [[("a dog", "a yak"), ("a dog",)], [()]]
    assert found.table["label"].to_pylist() == [0, 1, 0]
    assert found.table["number"].to_pylist() == [0, 0, 1]


@pytest.mark.parametrize(("target", "words"), [("expression", "a dog there"), ("phrase", "dog")])
def test_a_referring_expression_is_asked_for_by_either_convention(
    tmp_path: Path, make_grounding: Any, target: Literal["expression", "phrase"], words: str
) -> None:
    head = replace(DOG, text="dog", char_spans=((2, 5),))
    write_shard(tmp_path / shard_name(0), [make_grounding(0, "a dog there", head)], GroundingRecord)
    _, asked = predict(tmp_path / shard_name(0), "referring", replace(CONFIG, referring_target=target))
    assert asked == [[(words,)]]


@pytest.mark.parametrize(
    ("picture", "reason"),
    [(ImageRef(path="dog.jpg"), "image_missing"), (ImageRef(bytes=b"no picture"), "image_unreadable")],
)
def test_a_picture_that_cannot_be_read_is_told_and_found_empty(
    tmp_path: Path, picture: ImageRef, reason: str, make_detection: Any
) -> None:
    if picture.path:
        picture = ImageRef(path=f"{tmp_path}/{picture.path}")
    rows = [make_detection(0), replace(make_detection(1), image=picture), make_detection(2)]
    found, asked = predict(write_detection(tmp_path / shard_name(0), rows), "detection")
    assert found.missing == {"key-1": reason}
    assert [count for count, *_ in asked] == [1, 1]
    assert found.table["number"].to_pylist() == [0, 0, 2, 2]


def test_pictures_outside_of_what_is_allowed_are_found_empty(
    tmp_path: Path, lures: Callable[[Path], list[str]], make_detection: Any, web: Any
) -> None:
    folder = tmp_path / "records/dev/detection"
    places = lures(folder)
    rows = [replace(make_detection(i), image=ImageRef(path=place)) for i, place in enumerate(places)]
    found, asked = predict(write_detection(folder / shard_name(0), rows), "detection")
    assert found.missing == {f"key-{i}": "image_outside_folder" for i in range(len(places))}
    assert (asked, web.requests) == ([], [])
    for allowed, reason in (((), "image_outside_folder"), ((str(tmp_path / "elsewhere"),), None)):
        (benchmark,), _ = list_benchmarks(tmp_path / "records", ["dev"], allowed)
        (picture,) = benchmark.pictures([0])
        assert getattr(picture, "reason", None) == reason


def test_pictures_that_are_all_missing_ask_the_model_for_nothing(tmp_path: Path, make_detection: Any) -> None:
    rows = [replace(make_detection(i), image=ImageRef(path="/nowhere")) for i in range(3)]
    found, _ = predict(write_detection(tmp_path / shard_name(0), rows), "detection")
    assert len(found.table) == 0
    assert len(found.missing) == 3


def test_the_rows_of_one_source_make_a_benchmark(tmp_path: Path, make_detection: Any, make_grounding: Any) -> None:
    folder = tmp_path / "dev" / "detection"
    first = [make_detection(i, DetectedObject(category_id=7, xyxy=BOX)) for i in range(3)]
    write_detection(folder / shard_name(0), first[:2])
    write_detection(folder / shard_name(1), [replace(make_detection(5), source="lvis")], RARE)
    write_detection(folder / shard_name(2), first[2:])
    write_shard(tmp_path / "dev" / "grounding" / shard_name(0), [make_grounding(0, "a dog", DOG)], GroundingRecord)
    found, absent = list_benchmarks(tmp_path, ["dev"])
    assert [(each.name, each.rows) for each in found] == [
        ("dev/detection/test", (2, 1)),
        ("dev/detection/lvis", (1,)),
        ("dev/grounding/test", (1,)),
    ]
    assert absent == ["dev/referring"]
    assert [record.key for record in found[0].read()] == ["key-0", "key-1", "key-2"]
    assert [record.objects for record in found[0].read()] == [record.objects for record in first]
    assert [category.id for category in found[1].categories()] == [7, 3]
    assert [path.name for path in predictions_of(found[0], Path("out"))] == [shard_name(0), shard_name(2)]


def test_pictures_of_rows_are_counted_over_all_shards(tmp_path: Path, make_detection: Any) -> None:
    rows = [make_detection(i, width=20 + i) for i in range(4)]
    rows[1] = replace(rows[1], image=ImageRef(path=str(tmp_path / "nowhere.png")))
    paths = [write_detection(tmp_path / shard_name(i), rows[2 * i : 2 * i + 2]) for i in range(2)]
    benchmark = Benchmark("dev", "detection", "test", tuple(paths), (2, 2), (str(tmp_path),))
    third, missing, first, again = benchmark.pictures([3, 1, 0, 3])
    assert isinstance(missing, ImageError)
    assert [each.width for each in (third, first, again) if isinstance(each, Image.Image)] == [23, 20, 23]
    with pytest.raises(IndexError, match="dev/detection/test has 4 rows, none of them number 4"):
        benchmark.pictures([0, 4])


def test_rows_of_the_same_bytes_or_place_are_about_one_picture(tmp_path: Path, make_detection: Any) -> None:
    here, there, *_ = (replace(make_detection(i), image=ImageRef(path=f"/pictures/{i}.jpg")) for i in range(2))
    small, large = make_detection(2, width=20), make_detection(3, width=30)
    parts = [[small, here, small], [there, large, here], [small]]
    paths = [write_detection(tmp_path / shard_name(i), part) for i, part in enumerate(parts)]
    benchmark = Benchmark("dev", "detection", "test", tuple(paths), (3, 3, 1), ())
    assert benchmark.picture_numbers().tolist() == [0, 1, 0, 2, 3, 1, 0]


def test_what_is_not_there_empty_or_mixed_is_an_error(tmp_path: Path, make_detection: Any) -> None:
    with pytest.raises(MissingInputError, match="dev: no detection, grounding, referring records"):
        list_benchmarks(tmp_path, ["dev"])
    path = write_detection(tmp_path / "dev" / "detection" / shard_name(0), [])
    with pytest.raises(BenchmarkError, match="no rows to judge"):
        list_benchmarks(tmp_path, ["dev"])
    write_detection(path, [make_detection(0), replace(make_detection(1), source="lvis")])
    with pytest.raises(BenchmarkError, match=r"part-00000\.parquet: rows of test, lvis in one shard"):
        list_benchmarks(tmp_path, ["dev"])


def test_records_and_predictions_may_rest_in_a_store(s3: Any, make_detection: Any) -> None:
    place = to_place("s3://raw/records")
    rows = [make_detection(i, DetectedObject(category_id=7, xyxy=BOX)) for i in range(3)]
    path = write_detection(place / "dev" / "detection" / shard_name(0), rows)
    (benchmark,), _ = list_benchmarks(place, ["dev"])
    found, _ = predict(path, "detection")
    (target,) = predictions_of(benchmark, to_place("s3://raw/out"))
    write_predictions(target, found.table, {})
    assert read_predictions([target], benchmark.rows).numbers.tolist() == [0, 0, 1, 1, 2, 2]
    assert [record.key for record in benchmark.read()] == ["key-0", "key-1", "key-2"]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_refcocos_own_files_are_judged_by_its_protocol(
    tmp_path: Path, png: Any, ray_running: None, make_predictions: Any
) -> None:
    (tmp_path / "COCO_train2014_000000000007.jpg").write_bytes(png(40, 30).bytes)
    image = {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 30, "width": 40}
    boxes = [{"id": 1, "image_id": 7, "bbox": [10, 10, 20, 20], "category_id": 1}]
    instances = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    said = [{"sent": text, "raw": text} for text in ("the dog", "left dog")]
    refs = [{"image_id": 7, "ann_id": 1, "split": "testA", "sentences": said}]
    (tmp_path / "refs.p").write_bytes(pickle.dumps(refs, 2))
    source = {"reader": "refcoco", "name": "refcoco_testA", "split": "testA", "images": str(tmp_path)}
    source |= {"refs": str(tmp_path / "refs.p"), "instances": str(tmp_path / "instances.json")}
    config = load_all(Path(__file__).parents[3] / "params.yaml").prepare
    prepare(replace(config, human=(), web=(), dev=(), test=(source,)), 0, tmp_path / "records")
    (benchmark,), _ = list_benchmarks(tmp_path / "records", ["test"])
    assert benchmark.name == "test/referring/refcoco_testA"
    keys = [record.key for record in benchmark.read()]
    found = replace(make_predictions([(0, 0, BOX, 0.9)]), keys=(keys[0],))
    assert score(benchmark, found).metrics["all"] == {"P@1": 50.0, "P@5": 50.0, "P@10": 50.0, "P@1 GIoU": 50.0}
