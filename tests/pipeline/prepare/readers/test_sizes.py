"""Every format that states sizes: boxes of stored pixels are turned with the picture, those of a larger one scaled."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.prepare.frames import BOXES_SCALED, BOXES_TURNED
from pipeline.prepare.raw import Converted, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.coco import read_coco_detection
from pipeline.prepare.readers.flickr30k import read_flickr30k_entities
from pipeline.prepare.readers.lvis import read_lvis
from pipeline.prepare.readers.mdetr import read_mdetr
from pipeline.prepare.readers.objects365 import read_objects365
from pipeline.prepare.readers.odinw import read_odinw
from pipeline.prepare.readers.odvg import read_odvg
from pipeline.prepare.readers.openimages import read_open_images
from pipeline.prepare.readers.refcoco import read_refcoco
from pipeline.prepare.readers.visual_genome import read_visual_genome_objects, read_visual_genome_regions
from pipeline.prepare.readers.voc import read_imagenet_boxes, read_pascal_voc
from pipeline.store.records import DetectionRecord, GroundingRecord

HEIGHT, WIDTH, BOX = 60, 80, (10, 4, 30, 24)
"""What every annotation below says: the size of the picture, and the corners of its one box."""
SIZE = {"height": HEIGHT, "width": WIDTH}
X1, Y1, X2, Y2 = BOX
XYWH = [X1, Y1, X2 - X1, Y2 - Y1]
COCO = {
    "images": [{"id": 1, "file_name": "1.jpg", **SIZE}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": XYWH}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "pets", "supercategory": "none"}],
}
VOC = (
    f"<annotation><filename>1.jpg</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size><object>"
    f"<name>NAME</name><bndbox><xmin>{X1 + 1}</xmin><ymin>{Y1 + 1}</ymin><xmax>{X2}</xmax><ymax>{Y2}</ymax></bndbox>"
    "</object></annotation>"
)


def write(path: Path, content: Any) -> Url:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Url(path)


def of_coco(read: Any) -> Callable[[SourceContext, Path], list[RawTable]]:
    return lambda context, folder: read(context, annotations=write(folder / "a.json", COCO), images=Url(folder))


def of_odinw(context: SourceContext, folder: Path) -> list[RawTable]:
    write(folder / "train/_annotations.coco.json", COCO)
    (folder / "train/1.jpg").write_bytes((folder / "1.jpg").read_bytes())
    return read_odinw(context, folder=Url(folder), split="train")


def of_voc(context: SourceContext, folder: Path) -> list[RawTable]:
    write(folder / "xml/1.xml", VOC.replace("NAME", "dog"))
    return read_pascal_voc(context, annotations=Url(folder / "xml"), images=Url(folder))


def of_imagenet(context: SourceContext, folder: Path) -> list[RawTable]:
    write(folder / "xml/n1/1.xml", VOC.replace("NAME", "n1"))
    synsets = write(folder / "synsets.txt", "n1 dog\n")
    return read_imagenet_boxes(
        context, annotations=Url(folder / "xml"), images=Url(folder), synsets=synsets, one_based=True
    )


def of_open_images(context: SourceContext, folder: Path) -> list[RawTable]:
    shares = f"{X1 / WIDTH},{X2 / WIDTH},{Y1 / HEIGHT},{Y2 / HEIGHT}"
    boxes = write(folder / "boxes.csv", f"ImageID,LabelName,XMin,XMax,YMin,YMax\n1,dog,{shares}\n")
    sizes = write(folder / "sizes.csv", f"ImageID,Width,Height\n1,{WIDTH},{HEIGHT}\n")
    return read_open_images(context, annotations=boxes, images=Url(folder), sizes=sizes)


def of_odvg(context: SourceContext, folder: Path) -> list[RawTable]:
    regions = [{"bbox": BOX, "phrase": "dog"}]
    row = {"filename": "1.jpg", "grounding": {"caption": "a dog", "regions": regions}}
    lines = write(folder / "a.jsonl", row | {name: str(side) for name, side in SIZE.items()})
    return read_odvg(context, annotations=lines, images=Url(folder))


def of_mdetr(context: SourceContext, folder: Path) -> list[RawTable]:
    content = {
        "images": [COCO["images"][0] | {"caption": "a dog", "data_source": "flickr"}],
        "annotations": [{"image_id": 1, "bbox": XYWH, "tokens_positive": [[2, 5]]}],
    }
    return read_mdetr(context, annotations=write(folder / "a.json", content), images={"flickr": Url(folder)})


def of_refcoco(context: SourceContext, folder: Path) -> list[RawTable]:
    refs = [{"image_id": 1, "ann_id": 1, "split": "train", "sentences": [{"sent": "dog"}]}]
    (folder / "refs.p").write_bytes(pickle.dumps(refs))
    instances = write(folder / "instances.json", COCO)
    return read_refcoco(context, refs=Url(folder / "refs.p"), instances=instances, images=Url(folder), split="train")


def of_visual_genome(items: str) -> Callable[[SourceContext, Path], list[RawTable]]:
    def read(context: SourceContext, folder: Path) -> list[RawTable]:
        box = dict(zip(("x", "y", "width", "height"), XYWH, strict=True))
        found = write(folder / "a.json", [{"image_id": 1, items: [box | {"names": ["dog"], "phrase": "dog"}]}])
        data = write(folder / "image_data.json", [{"image_id": 1, "url": "http://a/VG_100K/1.jpg", **SIZE}])
        if items == "objects":
            return read_visual_genome_objects(context, objects=found, image_data=data, images=Url(folder))
        return read_visual_genome_regions(context, regions=found, image_data=data, images=Url(folder))

    return read


def of_flickr30k(context: SourceContext, folder: Path) -> list[RawTable]:
    write(folder / "Sentences/1.txt", "[/EN#7/animals a dog] .\n")
    write(folder / "Annotations/1.xml", VOC.replace("NAME", "7"))
    write(folder / "train.txt", "1\n")
    return read_flickr30k_entities(context, annotations=Url(folder), images=Url(folder), split="train")


FORMATS = {
    "coco_detection": of_coco(read_coco_detection),
    "lvis": of_coco(read_lvis),
    "objects365": of_coco(read_objects365),
    "odinw": of_odinw,
    "pascal_voc": of_voc,
    "imagenet_boxes": of_imagenet,
    "open_images": of_open_images,
    "odvg": of_odvg,
    "mdetr": of_mdetr,
    "refcoco": of_refcoco,
    "visual_genome_objects": of_visual_genome("objects"),
    "visual_genome_regions": of_visual_genome("regions"),
    "flickr30k_entities": of_flickr30k,
}


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_of_annotations_are_compared_with_the_picture(
    name: str, tmp_path: Path, context: SourceContext, read_rows: Callable[..., list[Any]]
) -> None:
    def read(size: tuple[int, int], orientation: int = 1) -> list[Any]:
        exif, out = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        Image.new("RGB", size).save(out, "JPEG", exif=exif)
        (tmp_path / "1.jpg").write_bytes(out.getvalue())
        (table,) = FORMATS[name](context, tmp_path)
        return read_rows(table)

    def corners(record: Any) -> Any:
        if isinstance(record, DetectionRecord):
            return pytest.approx(record.objects[0].xyxy)
        assert isinstance(record, GroundingRecord)
        return pytest.approx(record.phrases[0].boxes[0].xyxy)

    (plain,) = read((WIDTH, HEIGHT))
    assert corners(plain) == BOX
    turned, told = read((WIDTH, HEIGHT), 6)
    assert corners(turned) == (HEIGHT - Y2, X1, HEIGHT - Y1, X2)
    assert told.what == BOXES_TURNED
    half, told = read((WIDTH // 2, HEIGHT // 2))
    assert corners(half) == tuple(side / 2 for side in BOX)
    assert (type(told), told.what) == (Converted, BOXES_SCALED)
    (reject,) = read((HEIGHT, WIDTH))
    assert (type(reject), reject.reason) == (Reject, "size_mismatch")
