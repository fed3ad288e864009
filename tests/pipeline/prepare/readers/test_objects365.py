"""Objects365: pictures however they were unpacked, and the faults that its releases are known for."""

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
from pipeline.prepare.raw import DroppedBox, RawDetection, Reject, SourceContext, Url
from pipeline.prepare.readers.objects365 import objects365_places, read_objects365
from pipeline.store.image_roots import join_inside

V1 = "obj365_train_000000123456.jpg"
V2 = "images/v1/patch8/objects365_v1_00420917.jpg"
BASE = "objects365_v1_00420917.jpg"
CATEGORIES = [{"id": 58, "name": "Wild Bird"}, {"id": 13, "name": "Cabinet/shelf"}, {"id": 4, "name": "Other Shoes"}]
Read = Callable[..., list[Any]]
Encode = Callable[..., bytes]


def write(folder: Path, images: list[Any], annotations: list[Any]) -> dict[str, Url]:
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "zhiyuan_objv2_train.json").write_text(json.dumps(content), encoding="utf-8")
    return {"annotations": Url(folder / "zhiyuan_objv2_train.json"), "images": Url(folder)}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (V2, f"patch8/{BASE}"),
        (V2, V2),
        (V2, BASE),
        (V2, f"v1/patch8/{BASE}"),
        (V2, f"train/patch8/{BASE}"),
        (V2, f"train/v1/patch8/{BASE}"),
        (V2, f"val/patch8/{BASE}"),
        (V2, f"images/patch8/{BASE}"),
        (V2, f"images/train/{BASE}"),
        (V2, f"images/train/patch8/{BASE}"),
        (f"patch8/{BASE}", f"train/patch8/{BASE}"),
        (V1, V1),
        (V1, f"train/{V1}"),
        (V1, f"images/train/{V1}"),
    ],
)
def test_a_picture_is_found_in_every_layout(
    name: str, place: str, tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(picture())
    (table,) = read_objects365(context, **write(tmp_path, [{"id": 420917, "file_name": name}], []))
    (record,) = read_rows(table, pictures="reference")
    assert record.image.path == str(tmp_path / place)
    (raw,) = [row for part in table.parts(9) for row in part.rows()]
    assert isinstance(raw, RawDetection)
    assert raw.image.picture_id == f"objects365/{name.rpartition('/')[2].removesuffix('.jpg')}"


def test_known_faults_are_counted_and_the_rest_is_read(
    tmp_path: Path, picture: Encode, context: SourceContext, read_rows: Read
) -> None:
    (tmp_path / "patch8").mkdir()
    (tmp_path / "patch8" / BASE).write_bytes(picture())
    (tmp_path / "patch8/broken.jpg").write_bytes(picture()[:-50])
    names = [V2, "images/v1/patch8/absent.jpg", "images/v1/patch8/broken.jpg", "images/v1/patch8/../../../../secret"]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    images.append({"id": 0, "file_name": V2})
    fine = {"image_id": 0, "bbox": [1.0, 1.0, 9.5, 9.5], "category_id": 58, "iscrowd": 1, "isfake": 0}
    boxes = [fine, {**fine, "bbox": [100, 100, 5, 5]}, {**fine, "bbox": [-5, 20, 100, 100], "iscrowd": 0}, fine]
    (table,) = read_objects365(context, **write(tmp_path, images, [*boxes, {**fine, "image_id": 99}]))
    rows = read_rows(table)
    assert rows[0].reason == "picture_unknown"
    assert rows[1] == DroppedBox(V2, "box_degenerate")
    assert [(item.xyxy, item.is_crowd) for item in rows[2].objects] == [
        ((1.0, 1.0, 10.5, 10.5), True),
        ((0.0, 20.0, 40.0, 30.0), False),
        ((1.0, 1.0, 10.5, 10.5), True),
    ]
    rejects = [row for row in rows if isinstance(row, Reject)]
    # The last is the picture that is listed again: which boxes are its own, nobody knows.
    assert [row.reason for row in rejects] == [
        "image_missing",
        "image_unreadable",
        "image_outside_folder",
        "row_malformed",
    ]


def test_names_stay_raw_and_come_by_id_whatever_the_order_of_the_file(tmp_path: Path, context: SourceContext) -> None:
    (table,) = read_objects365(context, **write(tmp_path, [{"id": 1, "file_name": V1}], []))
    assert [category.name for category in table.categories] == ["Other Shoes", "Cabinet/shelf", "Wild Bird"]


def test_truncated_and_empty_files_are_told(tmp_path: Path, context: SourceContext) -> None:
    paths = write(tmp_path, [{"id": 1, "file_name": V1}], [])
    whole = Path(paths["annotations"]).read_bytes()
    for content, message in (
        (whole[:-9], "not readable as JSON"),
        (b"", "not readable as JSON"),
        (b"{}", "no pictures"),
    ):
        Path(paths["annotations"]).write_bytes(content)
        with pytest.raises(MissingInputError, match=message):
            read_objects365(context, **paths)


@given(st.text() | st.lists(st.sampled_from(["patch1", "..", "v1", "", "a.jpg"])).map("/".join) | st.none())
def test_places_stay_below_the_folder_or_are_refused(name: Any) -> None:
    places = objects365_places({"file_name": name})
    assert bool(places) == isinstance(name, str)
    for place in places:
        with suppress(ImageError):
            assert join_inside("/pictures", place).startswith("/pictures/")
