"""LVIS v0.5 and v1: COCO's pictures with more than a thousand categories."""

from __future__ import annotations

from pipeline.prepare.raw import RawTable, SourceContext, Url
from pipeline.prepare.readers.coco import CocoFile, Values, detection_table, picture_places, places_of_2017


def read_lvis(context: SourceContext, *, annotations: Url, images: Url) -> list[RawTable]:
    """LVIS JSON, v0.5 or v1, beside COCO's pictures.

    LVIS draws its splits anew over COCO's, so its validation shows pictures of COCO's training: pictures are looked for
    in ``train2017`` and ``val2017`` below the folder, and known by their COCO ids when they are held out. Which
    categories were looked for in vain, or not to the end, and how frequent each is goes into the records.

    Options:
        annotations: such as ``lvis_v1_train.json``.
        images: the folder above train2017 and val2017, or one of them.
    """
    return [detection_table(CocoFile(annotations), images, lvis_places)]


def lvis_places(values: Values) -> list[str]:
    """Return where a picture may be: as its URL ends, then by name; v0.5 has names of 2014."""
    by_url = picture_places({"coco_url": values.get("coco_url")})
    by_name = picture_places({"file_name": values.get("file_name")})
    if by_name and not by_url:
        by_url = places_of_2017(by_name[0].rpartition("/")[2])
    return by_url + by_name
