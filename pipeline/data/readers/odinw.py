"""ODinW: small detection sets of many domains, as Roboflow exports them."""

from __future__ import annotations

from typing import Literal

from pipeline.data.filesystem import join, redact
from pipeline.data.raw import RawTable, SourceContext, Url
from pipeline.data.readers.coco import CocoFile, detection_table, whole_number
from pipeline.errors import MissingInputError

_LISTED = "annotations_without_background.json"
"""The benchmark's own copy of Roboflow's file, without the category above the others."""
_FLAT = {"train": "train_", "valid": "val_", "test": "test_"}
"""How the names of the benchmark's files begin where the pictures of all splits lie in one folder, as in pistols."""
MANUAL_PROMPTS = {
    "penguin": "[penguin], which is black and white",
    "puffin": "[puffin] with orange beaks",
    "stingray": "[stingray] which is flat and round",
    "Cottontail-Rabbit": "rabbit",
    "hand": "[hand] of a person",
    "CoW": "flat mushroom",
    "chanterelle": "yellow mushroom",
    "package": "there is a [package] on the porch",
    "pothole": "there are some [holes] on the road",
}
"""Class name to the words of the paper's table 10, see ``category_prompt``; sentences are for models trained on
grounding data."""


def read_odinw(
    context: SourceContext,
    *,
    folder: Url,
    split: Literal["train", "valid", "mini_val", "test"],
    prompts: Literal["original", "manual"] = "original",
) -> list[RawTable]:
    """One data set of ODinW: folders train, valid and test, each with pictures and ``_annotations.coco.json``.

    The benchmark's ``annotations_without_background.json`` goes first where it is there, and may stand beside all
    pictures as ``val_annotations_without_background.json``. Roboflow lists the data set itself as a category above the
    others; where nothing is labelled with it, it is left out.

    Options:
        folder: of the data set, above its splits.
        split: ``train``, ``valid``, ``test``, or ``mini_val``, on which GLIP's configs judge EgoHands and
            VehiclesOpenImages.
        prompts: ``original`` asks for class names, ``manual`` for the paper's words where it has some.
    """
    file, images = _open(folder, split)
    names = {}
    if prompts == "manual":
        names = {category.id: MANUAL_PROMPTS.get(category.name, category.name) for category in file.categories()}
    return [detection_table(file, images, names=names, without=_umbrella(file))]


def _open(folder: Url, split: str) -> tuple[CocoFile, Url]:
    """Return the annotations of a split and the folder of its pictures."""
    below = Url(join(folder, split))
    found = [(below, _LISTED), (below, "_annotations.coco.json")]
    if split in _FLAT:
        found.append((folder, f"{_FLAT[split]}{_LISTED}"))
    for images, name in found:
        try:
            return CocoFile(Url(join(images, name))), images
        except MissingInputError as error:
            reason = error
    raise MissingInputError(
        f"{redact(below)}: no {found[1][1]}; expected a COCO export of Roboflow in folders train, valid and test, or "
        f"all pictures in one folder beside val_{_LISTED} and its like"
    ) from reason


def _umbrella(file: CocoFile) -> frozenset[int]:
    """Return the ids of categories that others name as what they belong to and that no box has."""
    rows = [(whole_number(row.get("id")), row.get("name"), row.get("supercategory")) for row in file.rows("categories")]
    above = [supercategory for _, _, supercategory in rows]
    listed = {number for number, name, supercategory in rows if supercategory in ("none", None) and name in above}
    used = {whole_number(row.get("category_id")) for row in file.rows("annotations")} if listed - {None} else set()
    return frozenset(number for number in listed - used if number is not None)
