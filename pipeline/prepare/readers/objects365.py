"""Objects365, both versions."""

from __future__ import annotations

import re

from pipeline.prepare.raw import RawTable, SourceContext, Url
from pipeline.prepare.readers.coco import CocoFile, Values, detection_table

_PATCH = re.compile(r"patch\d+")
_FOLDERS = ("train/", "val/", "images/", "images/train/", "images/val/")


def read_objects365(context: SourceContext, *, annotations: Url, images: Url) -> list[RawTable]:
    """Objects365 v1 or v2 JSON beside its pictures, unpacked flat or in patch folders.

    The release lists pictures that are broken or not in its archives; they are rejects and counted as such.

    Options:
        annotations: such as ``objects365_train.json`` (v1) or ``zhiyuan_objv2_train.json`` (v2).
        images: the folder above the patches, or of the pictures; one above ``train``, ``val`` or ``images`` works, but
            takes more look-ups a picture.
    """
    return [detection_table(CocoFile(annotations), images, objects365_places, picture_id=_picture_id)]


def objects365_places(values: Values) -> list[str]:
    """Return where a picture may be: by patch, as the file names it (``images/v1/patch8/NAME``), or flat."""
    name = values.get("file_name")
    if not isinstance(name, str):
        return []
    *folders, base = name.split("/")
    patch = next((folder for folder in folders if _PATCH.fullmatch(folder)), None)
    if patch is None:
        return [name, base, *(folder + base for folder in _FOLDERS)]
    by_patch, by_version = f"{patch}/{base}", "/".join([*folders[-2:], base])
    unpacked = [folder + place for folder in _FOLDERS for place in (by_patch, by_version, base)]
    return [by_patch, name, by_version, base, *unpacked]


def _picture_id(values: Values) -> str | None:
    base = str(values.get("file_name") or "").rpartition("/")[2]
    return f"objects365/{base.removesuffix('.jpg')}" if base else None
