"""Data of one's own, and data of other names that a tuned model is not to forget, from folders to divided records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.prepare.division import VALIDATION, check_names, divide, divide_others, tell_of_unused
from pipeline.prepare.job import prepare
from pipeline.prepare.layouts import Layout, find_layout, picture_files
from pipeline.prepare.settings import PrepareConfig
from pipeline.store.shards import list_shards, read_categories
from pipeline.store.storage import Place, is_folder

OWN, READ, OTHER, READ_OTHER = "records", "read", "other", "read_other"
"""Folders of the work folder: records of both kinds, divided and as they were read."""
MOST_OTHERS = 200
"""Pictures of other names, half to judge by and half to choose by."""
EMBEDDED = Layout((), ({"reader": "embedded"},), "reads pictures that ship with the project")


def judged_by(layout: Layout, place: Place) -> Layout:
    """Return a layout whose pictures to judge by are those of another folder, all of them."""
    judged = find_layout(place)
    # Named apart, for records of the same name must not be taken for one another's.
    validation = tuple({**entry, "name": f"{entry['name']} val"} for entry in judged.train + judged.validation)
    unread = "; the part of --data to judge by is not read" if layout.validation else ""
    told = f"{layout.description}; judges by --val, which {judged.description}{unread}"
    return replace(layout, validation=validation, description=told)


def records_layout(place: Place) -> Layout:
    """Return the layout of a folder of pictures, of shards, or of records as ``prepare`` writes them."""
    return find_layout(place / "detection" if is_folder(place / "detection") else place)


def read_own(
    base: PrepareConfig,
    layout: Layout,
    seed: int,
    work: Place,
    allowed: Sequence[str],
    *,
    tokenizer: Any,
    max_tokens: int,
    renamed: Mapping[str, str],
    share: float,
    is_chosen_among: bool,
) -> dict[str, int]:
    """Write the records of one's own pictures into ``OWN`` of the work folder; Ray must be running.

    Args:
        base: section ``prepare``.
        layout: what is read.
        seed: of what sources draw.
        work: folder.
        allowed: where pictures may be, see ``allowed_roots``.
        tokenizer: of the model.
        max_tokens: of its prompts.
        renamed: names of categories that get other ones.
        share: see ``divide``, likewise ``is_chosen_among``.
        is_chosen_among: whether pictures are set aside to choose by.

    Returns:
        Part to how many pictures it has.
    """
    check = partial(check_names, tokenizer=tokenizer, max_tokens=max_tokens, renamed=renamed)
    preparing = _preparing(base, layout)
    prepare(preparing, seed, work / READ, check, allowed)
    pixels = preparing.max_image_pixels
    counts = divide(work / READ, work / OWN, share, pixels, allowed, renamed, is_chosen_among)
    tell_of_unused(picture_files(layout), work / OWN)
    return counts


def read_others(
    base: PrepareConfig, layout: Layout | None, seed: int, work: Place, allowed: Sequence[str]
) -> dict[str, int]:
    """Write the records of other names into ``OTHER`` of the work folder, beside one's own; Ray must be running.

    Args:
        base: section ``prepare``.
        layout: what is read; None where ``READ_OTHER`` has been filled already.
        seed: of what sources draw.
        work: folder.
        allowed: where pictures may be, see ``allowed_roots``.

    Returns:
        See ``divide_others``.
    """
    if layout is not None:
        preparing = replace(_preparing(base, layout), embedded=replace(base.embedded, dev=MOST_OTHERS))
        if layout is EMBEDDED:  # whose pictures rest nowhere that could be referred to
            preparing = replace(preparing, pictures="embed")
        prepare(preparing, seed, work / READ_OTHER, None, allowed)
    own = [category.name for category in read_categories(list_shards(work / OWN / VALIDATION)[0])]
    return divide_others(work / READ_OTHER, work / OTHER, own, MOST_OTHERS)


def _preparing(base: PrepareConfig, layout: Layout) -> PrepareConfig:
    """Return settings that prepare a layout and nothing else."""
    return replace(
        base,
        data_root=".",
        human=layout.train,
        web=(),
        dev=layout.validation,
        test=(),
        held_out=(),
        mixtures={},
        pictures="reference",
        max_reject_share=1.0,  # what is left out is told; few pictures are better than none
    )
