"""ODinW: small detection sets of many domains, as Roboflow exports them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Set
from contextlib import suppress
from typing import Literal

from pipeline.errors import ConfigError, MissingInputError
from pipeline.prepare.raw import RawTable, SourceContext, Url
from pipeline.prepare.readers.coco import CocoFile, detection_table, whole_number
from pipeline.prepare.readers.spool import text_id
from pipeline.store.urls import join, redact

_LISTED = "annotations_without_background.json"
"""The benchmark's own copy of Roboflow's file, without the category above the others."""
_FLAT = {"train": "train_", "valid": "val_", "test": "test_"}
"""How the names of the benchmark's files begin where the pictures of all splits lie in one folder, as in pistols."""
_FEW = {"train": "train", "valid": "val", "mini_val": "minival"}
"""What the benchmark's few-shot files call a split."""
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
    shots: int = 0,
    shot_seed: int = 3,
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
        shots: 0 reads all pictures; K, in the benchmark 1, 3, 5 or 10, a subset with at least K pictures of every
            category that has as many. It is the benchmark's own ``fewshot_train_shotK_seedS.json`` (``val``,
            ``minival``) where that lies beside the pictures or the split's folder, and else drawn, see
            ``draw_pictures``.
        shot_seed: S, in the benchmark 3, 30 or 300; each draws another subset.
    """
    if shots < 0:
        raise ConfigError(f"shots is {shots}; expected 0 for all pictures, or how many of every category")
    file, images = _open(folder, split)
    without = _umbrella(file)
    if shots:
        file = _few_shots(file, without, (images, folder), split, shots, shot_seed)
    names = {}
    if prompts == "manual":
        names = {category.id: MANUAL_PROMPTS.get(category.name, category.name) for category in file.categories()}
    return [detection_table(file, images, names=names, without=without)]


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


def _few_shots(
    file: CocoFile, without: Set[int], places: tuple[Url, ...], split: str, shots: int, seed: int
) -> CocoFile:
    """Return the benchmark's own few-shot file where one of the places has it, or the subset that is drawn."""
    for place in places if split in _FEW else ():
        with suppress(MissingInputError):
            return CocoFile(Url(join(place, f"fewshot_{_FEW[split]}_shot{shots}_seed{seed}.json")))
    shown: dict[str, set[int]] = {picture: set() for row in file.rows("images") if (picture := text_id(row.get("id")))}
    asked = {category.id for category in file.categories()} - without
    for row in file.rows("annotations"):
        picture, category = text_id(row.get("image_id")), whole_number(row.get("category_id"))
        if picture in shown and category in asked:
            shown[picture].add(category)
    return CocoFile(file.url, draw_pictures(shown, shots, seed))


def draw_pictures(shown: Mapping[str, Set[int]], shots: int, seed: int) -> frozenset[str]:
    """Draw a few-shot subset as the benchmark does: by pictures, and not by boxes.

    The pictures that show anything, by ascending ids, are shuffled by ``random.Random(seed)``. In that order a picture
    is kept when at least one of its categories still has fewer than ``shots`` kept pictures; a kept one counts once for
    each of its categories, however many boxes it has of them. So a category gets at least ``shots`` pictures, or all of
    its own where it has fewer, and a frequent one gets more.

    Args:
        shown: picture to the categories that have a box in it.
        shots: pictures to have of every category.
        seed: of the order.

    Returns:
        The pictures that are kept.
    """
    order = sorted((picture for picture in shown if shown[picture]), key=lambda picture: (len(picture), picture))
    random.Random(seed).shuffle(order)
    counts: Counter[int] = Counter()
    kept = set()
    for picture in order:
        if any(counts[category] < shots for category in shown[picture]):
            kept.add(picture)
            counts.update(shown[picture])
    return frozenset(kept)
