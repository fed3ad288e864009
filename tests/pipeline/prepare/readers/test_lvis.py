"""LVIS: where its pictures are found, in both versions, and what its files lose nothing of."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glip_model.images import ImageError
from pipeline.errors import MissingInputError
from pipeline.prepare.raw import Reject, SourceContext, Url
from pipeline.prepare.readers.lvis import lvis_places, read_lvis
from pipeline.store.image_roots import join_inside
from pipeline.store.records import Category

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
URL = "http://images.cocodataset.org/train2017/000000391895.jpg"
Read = Callable[..., list[Any]]
Encode = Callable[..., bytes]


def write(folder: Path, images: list[Any], annotations: list[Any], **more: Any) -> dict[str, Url]:
    categories = [{"id": 1, "name": "aerosol_can", "frequency": "c", "synonyms": ["aerosol_can", "spray_can"]}]
    content = {"images": images, "annotations": annotations, "categories": categories, **more}
    (folder / "lvis.json").write_text(json.dumps(content), encoding="utf-8")
    return {"annotations": Url(folder / "lvis.json"), "images": Url(folder)}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"coco_url": URL}, "train2017/000000391895.jpg"),
        ({"coco_url": URL}, "000000391895.jpg"),
        ({"coco_url": URL, "file_name": "COCO_train2014_000000391895.jpg"}, "train2017/000000391895.jpg"),
        ({"file_name": "COCO_val2014_000000391895.jpg"}, "train2017/000000391895.jpg"),
        ({"file_name": "COCO_val2014_000000391895.jpg"}, "val2017/000000391895.jpg"),
        ({"file_name": "COCO_val2014_000000391895.jpg"}, "000000391895.jpg"),
        ({"file_name": "COCO_val2014_000000391895.jpg"}, "COCO_val2014_000000391895.jpg"),
        ({"file_name": "train2017/000000391895.jpg"}, "train2017/000000391895.jpg"),
    ],
)
def test_a_picture_is_found_in_every_layout(
    values: dict[str, Any], place: str, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(picture())
    boxes = [{"image_id": 391895, "bbox": [1.5, 1, 9, 9], "category_id": 1}]
    (table,) = read_lvis(context, **write(tmp_path, [{"id": 391895, **values}], boxes))
    (record,) = read_rows(table, pictures="reference")
    assert record.image.path == str(tmp_path / place)
    assert [item.xyxy for item in record.objects] == [(1.5, 1.0, 10.5, 10.0)]


def test_unread_pictures_are_referred_to_where_coco_2017_has_them(
    tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    images = [
        {
            "id": 391895,
            "file_name": "COCO_val2014_000000391895.jpg",
            "coco_url": URL,
            "height": 30,
            "width": 40,
            "neg_category_ids": [1, 2],
            "not_exhaustive_category_ids": [],
        }
    ]
    (table,) = read_lvis(context, **write(tmp_path, images, []))
    (record,) = read_rows(table, pictures="unread")
    assert record.image.path == f"{tmp_path}/train2017/000000391895.jpg"
    assert (record.negative_category_ids, record.not_exhaustive_category_ids) == ((1,), ())
    assert table.categories == (Category(id=1, name="aerosol_can", frequency="c"),)  # cleaned where prompts are made


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"file_name": "../secret.jpg"}, "image_outside_folder"),
        ({"coco_url": "http://images.cocodataset.org/../secret.jpg"}, "row_malformed"),
        ({"coco_url": "file:///etc/hostname"}, "row_malformed"),
        ({"coco_url": 5, "file_name": None}, "row_malformed"),
        ({}, "row_malformed"),
    ],
)
def test_a_hostile_or_missing_name_is_a_reject(
    values: dict[str, Any], reason: str, tmp_path: Path, context: SourceContext, read_rows: Read
) -> None:
    (table,) = read_lvis(context, **write(tmp_path, [{"id": 1, **values}], []))
    (reject,) = read_rows(table)
    assert isinstance(reject, Reject)
    assert reject.reason == reason


def test_truncated_and_empty_files_are_told(tmp_path: Path, context: SourceContext) -> None:
    paths = write(tmp_path, [{"id": 1, "coco_url": URL}], [])
    whole = (tmp_path / "lvis.json").read_bytes()
    for content, message in (
        (whole[:-20], "not readable as JSON"),
        (b"", "not readable as JSON"),
        (b"{}", "no pictures"),
    ):
        (tmp_path / "lvis.json").write_bytes(content)
        with pytest.raises(MissingInputError, match=message):
            read_lvis(context, **paths)


@given(
    st.dictionaries(st.sampled_from(["file_name", "coco_url"]), st.text() | st.none() | st.integers() | st.just(URL))
)
def test_places_stay_below_the_folder_or_are_refused(values: dict[str, Any]) -> None:
    for place in lvis_places(values):
        with suppress(ImageError):
            assert join_inside("/pictures", place).startswith("/pictures/")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real samples are not here: {SHARED}")
def test_the_real_v05_sample_is_found_below_coco_2017(context: SourceContext, read_rows: Read) -> None:
    path = SHARED / "lvis_100/lvis_val_100.json"
    truth = json.loads(path.read_text(encoding="utf-8"))
    (table,) = read_lvis(context, annotations=Url(path), images=Url("/coco"))
    records = [row for row in read_rows(table, 30, pictures="unread") if not hasattr(row, "reason")]
    places = ["/coco/" + "/".join(image["coco_url"].split("/")[-2:]) for image in truth["images"]]
    assert [record.image.path for record in records] == places
    assert len(table.categories) == 1230
    frequencies = {category.id: category.frequency for category in table.categories}
    assert frequencies == {row["id"]: row["frequency"] for row in truth["categories"]}
    for record, image in zip(records, truth["images"], strict=True):
        assert list(record.negative_category_ids) == image["neg_category_ids"]
        assert list(record.not_exhaustive_category_ids) == image["not_exhaustive_category_ids"]
        areas = [row["area"] for row in truth["annotations"] if row["image_id"] == image["id"]]
        assert [item.area for item in record.objects] == areas


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real samples are not here: {SHARED}")
def test_the_real_v1_vocabulary_keeps_its_names(tmp_path: Path, context: SourceContext) -> None:
    real = json.loads((SHARED / "lvis_v1_categories/lvis_v1_categories.json").read_text(encoding="utf-8"))
    (table,) = read_lvis(context, **write(tmp_path, [{"id": 1, "coco_url": URL}], [], categories=real))
    assert [(category.id, category.name) for category in table.categories] == [(row["id"], row["name"]) for row in real]
    assert len(real) == 1203
