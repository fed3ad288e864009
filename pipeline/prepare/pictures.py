"""Pictures that somebody names on the command line, as sources of ``prepare``."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from glip_model.video import SUFFIXES
from pipeline.errors import MissingInputError
from pipeline.prepare.readers.pictures import is_picture, kind_of
from pipeline.prepare.settings import SourceEntry
from pipeline.store.storage import is_folder, list_below, to_place

logger = logging.getLogger(__name__)

NAME = "pictures"
"""What records of such pictures are called."""


def picture_sources(named: Sequence[str], fps: float = 1.0) -> tuple[SourceEntry, ...]:
    """Return the sources that paths, URLs and patterns stand for.

    A folder stands for the tars in it, where there are any, else for the pictures in and below it, else for the Parquet
    files in it, else for the videos; what is left out is told.

    Args:
        named: paths, URLs and patterns.
        fps: frames of a second of video.

    Raises:
        MissingInputError: nothing is named.
    """
    if not named:
        raise MissingInputError("no pictures; name files, folders, patterns or URLs")
    found = [each for text in named for each in _of_one(text)]
    return tuple(
        {"reader": "pictures", "name": f"{NAME} {i}" if i > 1 else NAME, "images": images, "fps": fps}
        for i, images in enumerate(dict.fromkeys(found), 1)
    )


def _of_one(text: str) -> list[str]:
    if text.startswith(("http://", "https://")) or kind_of(text) != "picture":
        return [text]
    place = to_place(text)
    if not is_folder(place):
        return [text]
    folder, below = text.rstrip("/") or "/", list_below(place)
    found = {
        f"{folder}/*.tar*": [path for path in below if path.parent == place and kind_of(path.name) == "tar"],
        text: [path for path in below if is_picture(path.name)],
        f"{folder}/*.parquet": [path for path in below if path.parent == place and kind_of(path.name) == "table"],
        **{
            f"{folder}/*{end}": [path for path in below if path.parent == place and path.name.endswith(end)]
            for end in SUFFIXES
        },
    }
    # img2dataset has Parquet with captions and URLs beside its tars and folders: the same pictures again.
    found = {pattern: paths for pattern, paths in found.items() if paths} or {text: []}
    first, *others = found
    if kind_of(first) == "video":
        return list(found)
    for pattern in others:
        logger.warning("%s: %d files are left out; name them if they are other pictures", pattern, len(found[pattern]))
    return [first]
