"""Data of one's own as records: one vocabulary, and what is learnt from and judged by, divided by pictures."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any

from glip_model.images import ImageError, check_image
from glip_model.prompts import chunk_categories, clean_name
from pipeline.errors import ConfigError, MissingInputError
from pipeline.prepare.class_names import NOT_RENAMED, rename, warn_of_codes
from pipeline.prepare.held_out import group_alike, perceptual_hash
from pipeline.prepare.layouts import NAME
from pipeline.prepare.sources import Role, Source
from pipeline.prepare.validation import CHECKED_SIDE
from pipeline.store.images import read_encoded
from pipeline.store.records import Category, DetectionRecord, ImageRef
from pipeline.store.resume import SHARDS
from pipeline.store.shards import (
    categories_to_metadata,
    read_categories,
    read_shard,
    read_table,
    shard_name,
    write_shard,
)
from pipeline.store.storage import Place, list_files, remove
from pipeline.store.urls import is_url
from pipeline.store.vocabulary import read_as

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, CHOICE = "human/detection", "dev/detection", "choose/detection"
"""Folders of records: to learn from, to judge by, and to choose by among what was learnt."""
OTHER = "other"
"""What records of other data are called."""
MIN_TO_CHOOSE = 20
"""Pictures with boxes to learn from, at least, where some are set aside to choose by."""
_ROWS_PER_SHARD = 1000
_READ_AT_ONCE = 64
_SHOWN = 3
"""Names in a message."""


def check_names(
    sources: Mapping[Role, Sequence[Source]],
    tokenizer: Any,
    max_tokens: int,
    renamed: Mapping[str, str] = NOT_RENAMED,
) -> None:
    """See that a model can be asked for every category, and warn of names that no people use.

    Args:
        sources: whose categories they are.
        tokenizer: of the model.
        max_tokens: of its prompts.
        renamed: names of categories that shall have other ones, see ``read_renames``.

    Raises:
        ConfigError: names hold nothing to read, or are too long, or there are none of those to rename.
    """
    tables = [table for group in sources.values() for source in group for table in source.tables]
    names = rename(list(dict.fromkeys(category.name for table in tables for category in table.categories)), renamed)
    warn_of_codes(names)
    unreadable = [repr(name) for name in names if not any(map(str.isalnum, clean_name(name)))]
    if unreadable:
        raise ConfigError(
            f"--data: no model can be asked for {', '.join(unreadable)}: nothing is left of these category names but "
            "signs and what stands in parentheses; rename them as people call the things: --rename OLD=NEW"
        )
    for table in tables:
        spellings: dict[str, list[str]] = {}
        for category in table.categories:
            name = renamed.get(category.name.strip(), category.name)
            spellings.setdefault(read_as(name), []).append(repr(name))
        for alike in spellings.values():
            if len(alike) > 1:
                logger.warning("finetune: categories %s read alike and are taken for one", ", ".join(alike))
    try:
        chunk_categories(names, tokenizer, max_tokens)
    except ValueError as error:
        raise ConfigError(f"--data: {error}; rename it as people call the thing: --rename OLD=NEW") from error


def divide(
    read: Place,
    out: Place,
    share: float,
    max_pixels: int,
    roots: Sequence[str],
    renamed: Mapping[str, str] = NOT_RENAMED,
    is_chosen_among: bool = False,
) -> dict[str, int]:
    """Write what was read as one data set: what is learnt from and what is judged by, with the same vocabulary.

    Categories that a model reads alike ("Dog" and "dog") become one. Where nothing was read to judge by, pictures are
    held out, see ``hold_out``.

    Args:
        read: folder of records as ``prepare`` wrote them.
        out: folder for records.
        share: of the pictures with boxes that are held out.
        max_pixels: larger pictures are refused.
        roots: folders and URLs that pictures must lie below, see ``check_inside``.
        renamed: names of categories that get other ones.
        is_chosen_among: of the pictures to learn from, set as large a share aside to choose by, where they are not too
            few: what chooses a model must not judge it as well.

    Returns:
        Pictures in ``train`` and ``validation``, and in ``choose`` where there are any.

    Raises:
        MissingInputError: there are too few pictures with boxes.
    """
    vocabulary: dict[str, Category] = {}
    train, validation = (_read(read / folder, vocabulary, renamed) for folder in (TRAIN, VALIDATION))
    if not list_files(read / VALIDATION, SHARDS):
        held_out = hold_out(train, share, max_pixels, roots)
        validation = [record for i, record in enumerate(train) if i in held_out]
        train = [record for i, record in enumerate(train) if i not in held_out]
    choice: list[DetectionRecord] = []
    if is_chosen_among and sum(map(_has_boxes, train)) >= MIN_TO_CHOOSE:
        aside = hold_out(train, share, max_pixels, roots)
        choice = [record for i, record in enumerate(train) if i in aside]
        train = [record for i, record in enumerate(train) if i not in aside]
    parts = {"learn from": train, "judge by": validation}
    for purpose, records in parts.items():
        if not any(map(_has_boxes, records)):
            raise MissingInputError(
                f"--data: none of {len(records)} pictures to {purpose} has a box that can be used; what was left out, "
                "and why, stands above"
            )
    both = {record.key for record in train} & {record.key for record in validation}
    if both:
        logger.warning("finetune: %d pictures are among those to learn from and those to judge by", len(both))
    shown, judged = ({item.category_id for record in records for item in record.objects} for records in parts.values())
    unseen = [repr(category.name) for category in vocabulary.values() if category.id in judged - shown]
    if unseen:
        logger.warning("finetune: judged by %s as well, which no picture to learn from shows", ", ".join(unseen))
    used = [category for category in vocabulary.values() if category.id in shown | judged]
    for folder, records in zip((TRAIN, VALIDATION, CHOICE), (train, validation, choice), strict=True):
        _write(out / folder, records, used)
    return {"train": len(train), "validation": len(validation), **({"choose": len(choice)} if choice else {})}


def divide_others(read: Place, out: Place, own: Iterable[str], most: int) -> dict[str, int]:
    """Write what was read as two data sets of other names than one's own: to judge by, and to choose by.

    Args:
        read: folder of records as ``prepare`` wrote them.
        out: folder for records.
        own: names whose boxes are left out.
        most: pictures in both together.

    Returns:
        Pictures in ``validation`` and ``choose``, and ``names`` that are in either.

    Raises:
        MissingInputError: there are fewer than two pictures with boxes of other names.
    """
    vocabulary: dict[str, Category] = {}
    found = [
        record for folder in (TRAIN, VALIDATION) for record in _read(read / folder, vocabulary, NOT_RENAMED, OTHER)
    ]
    taken = {read_as(name) for name in own}
    others = {category.id for reading, category in vocabulary.items() if reading not in taken}
    found = [replace(row, objects=tuple(item for item in row.objects if item.category_id in others)) for row in found]
    kept = sorted(filter(_has_boxes, found), key=lambda record: record.key)[:most]
    if len(kept) < 2:
        raise MissingInputError(
            f"--keep: {len(kept)} pictures have boxes of other names than those of --data; expected two at least"
        )
    shown = {item.category_id for record in kept for item in record.objects}
    used = [category for category in vocabulary.values() if category.id in shown]
    for folder, records in ((VALIDATION, kept[::2]), (CHOICE, kept[1::2])):
        _write(out / folder, records, used)
    return {"validation": len(kept[::2]), "choose": len(kept[1::2]), "names": len(used)}


def tell_of_unused(pictures: AbstractSet[str], records: Place) -> None:
    """Warn of pictures on disk that are in no record, as ``divide`` wrote them."""
    shards = [path for folder in (TRAIN, VALIDATION, CHOICE) for path in list_files(records / folder, SHARDS)]
    places = [image["path"] for path in shards for image in read_table(path, ["image"])["image"].to_pylist()]
    unused = sorted(pictures - {place if is_url(place) else os.path.normpath(place) for place in places if place})
    if unused:
        logger.warning(
            "finetune: %d of %d pictures in these folders are not used, for example %s: no annotation that is read "
            "names them, or they were left out for a reason above",
            len(unused),
            len(pictures),
            ", ".join(unused[:_SHOWN]),
        )


def hold_out(records: Sequence[DetectionRecord], share: float, max_pixels: int, roots: Sequence[str]) -> set[int]:
    """Choose pictures to judge by: with boxes, and unlike those that are learnt from.

    The choice goes by the pictures' contents, so that they stay held out when others are added.

    Args:
        records: in the order of their files.
        share: of the pictures with boxes, to come near to.
        max_pixels: larger pictures are refused.
        roots: folders and URLs that pictures must lie below, see ``check_inside``.

    Returns:
        Places of the chosen records.

    Raises:
        MissingInputError: fewer than two pictures have boxes.
    """
    boxed = [i for i, record in enumerate(records) if _has_boxes(record)]
    if len(boxed) < 2:
        raise MissingInputError(
            f"--data: {len(boxed)} pictures with boxes that can be used; expected at least two, to learn from and to "
            "judge by: annotate more, or mend what was left out for the reasons above; crowd regions are no such boxes"
        )
    wanted = min(max(math.ceil(share * len(boxed)), 1), len(boxed) - 1)
    groups = group_alike(_looks([record.image for record in records], max_pixels, roots))
    sizes = Counter(groups[i] for i in boxed)
    if len(sizes) == 1:
        logger.warning(
            "finetune: all pictures with boxes look alike, as those of a fixed camera: the last %d of %d are held out, "
            "which flatters the model; better judge it by pictures of another place or day, in valid/",
            wanted,
            len(boxed),
        )
        return set(range(boxed[-wanted], len(records)))
    chosen: dict[int, int] = {}
    for i in sorted(boxed, key=lambda i: records[i].key):  # hashes of the pictures: any order, but always the same
        if sum(chosen.values()) + sizes[groups[i]] <= wanted:
            chosen[groups[i]] = sizes[groups[i]]
    smallest = min(boxed, key=lambda i: (sizes[groups[i]], records[i].key))
    return {i for i, group in enumerate(groups) if group in (chosen or {groups[smallest]})}


def _has_boxes(record: DetectionRecord) -> bool:
    return not all(item.is_crowd for item in record.objects)


def _looks(images: Sequence[ImageRef], max_pixels: int, roots: Sequence[str]) -> list[int | None]:
    """Return what pictures look like, of those that show too little what their bytes are; None where there are none."""
    looks: list[int | None] = []
    for start in range(0, len(images), _READ_AT_ONCE):
        for data in read_encoded(images[start : start + _READ_AT_ONCE], roots):
            looks.append(None)
            with suppress(ImageError):
                if not isinstance(data, ImageError):
                    looks[-1] = int.from_bytes(sha256(data).digest()[:8])
                    looks[-1] = perceptual_hash(check_image(data, max_pixels, CHECKED_SIDE)[1]) or looks[-1]
    return looks


def _read(
    folder: Place, vocabulary: dict[str, Category], renamed: Mapping[str, str], source: str = NAME
) -> list[DetectionRecord]:
    """Read records with the ids of a vocabulary, by what a model reads of a name; it gets what it lacks."""
    records: dict[str, DetectionRecord] = {}
    again = 0
    for path in list_files(folder, SHARDS):
        ids: dict[int, int] = {}
        for category in read_categories(path):
            [name] = rename([category.name], renamed, must_exist=False)
            new = replace(category, id=len(vocabulary) + 1, name=name)
            ids[category.id] = vocabulary.setdefault(read_as(name), new).id
        for record in read_shard(path, DetectionRecord):
            objects = tuple(replace(item, category_id=ids[item.category_id]) for item in record.objects)
            place = record.image.path or record.key
            if place in records:
                again += 1
                objects = tuple(dict.fromkeys((*records[place].objects, *objects)))
            records[place] = replace(record, source=source, objects=objects)
    if again:
        logger.info("finetune: %d pictures have boxes in several annotation files; they have them all", again)
    return list(records.values())


def _write(folder: Place, records: Sequence[DetectionRecord], vocabulary: Iterable[Category]) -> None:
    """Write shards, and remove those of before."""
    metadata = categories_to_metadata(vocabulary)
    starts = range(0, len(records), _ROWS_PER_SHARD)
    paths = [folder / shard_name(number) for number in range(len(starts))]
    for path in list_files(folder, SHARDS):
        if path not in paths:
            remove(path)
    for path, start in zip(paths, starts, strict=True):
        write_shard(path, records[start : start + _ROWS_PER_SHARD], DetectionRecord, metadata)
