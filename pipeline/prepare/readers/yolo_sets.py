"""Where a YOLO data set has its pictures and the names of its classes: by data.yaml, or by darknet's files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from glip_model.images import ImageError
from pipeline.errors import MissingInputError
from pipeline.prepare.readers.lines import decode_text, open_text
from pipeline.prepare.readers.pictures import is_picture
from pipeline.store.filesystem import open_file
from pipeline.store.image_roots import join_inside
from pipeline.store.read_errors import describe
from pipeline.store.storage import exists, is_folder, list_below, name_below, to_place
from pipeline.store.urls import redact

MAX_SET_BYTES = 1 << 20
"""Of the file that describes a data set."""
DATA_FILE = ".data"
"""How darknet's description of a data set ends; its names are in another file."""
NAME_FILES = ("obj.names", "classes.txt", "_darknet.labels")
"""Lists of classes, a line each, as darknet and CVAT, labelImg and Label Studio, and Roboflow call them."""
_SPLITS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
"""What the parts of a data set are called, here and by darknet and its tools."""


@dataclass(frozen=True)
class YoloSet:
    """Names by class, and the folders or lists of pictures of each split, below ``folder``."""

    url: str
    folder: str
    names: dict[int, str]
    splits: dict[str, tuple[str, ...]]
    has_keypoints: bool = False
    is_darknet: bool = False
    """A picture without a text file was not annotated; one that shows nothing has an empty one."""

    @classmethod
    def read(cls, url: str, folder: str | None = None) -> YoloSet:
        """Read what describes a data set: a data.yaml, an obj.data, or a list of classes.

        Args:
            url: of that file.
            folder: above pictures and labels; None takes that of the file.

        Raises:
            MissingInputError: it is not there, or says something else.
        """
        folder = folder or posixpath.dirname(url) or "."
        if not url.lower().endswith((".yaml", ".yml")):
            return _read_darknet(url, folder)
        text = _text_of(url)
        try:
            found = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise MissingInputError(f"{redact(url)}: no YAML ({describe(error, url)})") from error
        names = found.get("names") if isinstance(found, dict) else None
        by_class = dict(enumerate(names)) if isinstance(names, list) else names
        if not isinstance(by_class, dict) or not all(
            type(number) is int and isinstance(name, str) for number, name in by_class.items()
        ):
            raise MissingInputError(f"{redact(url)}: expected names as a list, or by number, as Ultralytics has them")
        root = found.get("path")
        splits = {
            name: _places(url, folder, root if isinstance(root, str) else "", found[name])
            for name in _SPLITS
            if found.get(name)
        }
        return cls(url, folder, by_class, splits, found.get("kpt_shape") is not None)

    def has(self, split: str) -> bool:
        """Tell whether a split is named and there."""
        return any(is_there(self.folder, place) for place in self.splits.get(split, ()))

    def folders(self, split: str) -> list[str]:
        """Return the folders of a split, below ``folder``, all of whose pictures belong to it."""
        return [place for place in self.splits.get(split, ()) if is_folder_there(self.folder, place)]

    def pictures(self, split: str) -> list[str]:
        """Return the pictures of a split, below ``folder``, in order; MissingInputError where it has none.

        What a list names twice comes twice.
        """
        found: list[str] = []
        folders = self.folders(split)
        for place in self.splits.get(split, ()):
            if place in folders:
                top = to_place(f"{self.folder}/{place}")
                names = (name_below(top, path) for path in list_below(top))
                inside = (posixpath.normpath(f"{place}/{name}") for name in names if is_picture(name))
                known = set(found)  # by a folder above or beside it
                found += [name for name in inside if name not in known]
            elif is_there(self.folder, place):
                found += _listed(self.folder, place)
        if not found:
            told = ", ".join(f"{name}: {', '.join(places)}" for name, places in self.splits.items())
            raise MissingInputError(f"{redact(self.folder)}: no pictures of the split {split} ({told or 'none named'})")
        return found


def is_there(folder: str, name: str) -> bool:
    """Tell whether there is a file or folder of a name that stands in a file, below a folder."""
    try:
        place = to_place(folder if name == "." else join_inside(folder, name))
        return is_folder(place) or exists(place)
    except (ImageError, OSError):  # longer than any name on this disk, for example
        return False


def is_folder_there(folder: str, name: str) -> bool:
    """Tell whether it is a folder."""
    return is_there(folder, name) and is_folder(to_place(f"{folder}/{name}"))


def _text_of(url: str) -> str:
    with open_file(url) as file:
        return decode_text(file.read(MAX_SET_BYTES))[0]


def _read_darknet(url: str, folder: str) -> YoloSet:
    """Read darknet's description of a data set, or a list of classes beside lists or folders of the pictures."""
    stated: dict[str, str] = {}
    if url.lower().endswith(DATA_FILE):
        pairs = (line.partition("=") for line in _text_of(url).splitlines() if not line.lstrip().startswith(("#", ";")))
        stated = {key.strip().lower(): value.strip() for key, _, value in pairs if value.strip()}
        names_file = _names_of(url, folder, stated.get("names"))
    else:
        names_file = url
    names = {number: line.strip() for number, line in enumerate(_text_of(names_file).splitlines()) if line.strip()}
    if not names:
        raise MissingInputError(f"{redact(names_file)}: no names; expected the name of a class in each line")
    splits = {}
    for split, called in _SPLITS.items():
        told = [stated[name] for name in called if name in stated]
        lists = [f"{name}.txt" for name in called if _is_list(folder, f"{name}.txt")]
        tries = (each for name in called for each in (name, f"images/{name}"))
        folders = [each for each in tries if is_folder(to_place(f"{folder}/{each}"))]
        if told:
            splits[split] = _places(url, folder, "", told)
        elif lists:
            splits[split] = (lists[0],)
        elif folders:
            splits[split] = (folders[0],)
    return YoloSet(url, folder, names, splits or {"train": (".",)}, is_darknet=True)


def _names_of(url: str, folder: str, stated: str | None) -> str:
    """Return the file of names that an obj.data means."""
    tries = [*(_suffixes(stated) if stated else ()), *NAME_FILES]
    found = next((name for name in tries if is_there(folder, name)), None)
    if found is None:
        told = f"names = {stated}, which is not there" if stated else "no line names = …"
        raise MissingInputError(f"{redact(url)}: {told}; expected a list of classes, such as {NAME_FILES[0]} beside it")
    return f"{folder}/{found}"


def _is_list(folder: str, name: str) -> bool:
    """Tell whether a file lists pictures; that of ``train.jpg`` is called train.txt as well."""
    if not is_there(folder, name):
        return False
    with open_text(f"{folder}/{name}") as lines:
        return is_picture(next((line.strip() for line in lines if line.strip()), ""))


def _listed(folder: str, place: str) -> list[str]:
    """Return the pictures that a list names, below the folder.

    Paths start at the list, or at the folder, or were those of another machine: then all have lost as many steps.
    """
    above = posixpath.dirname(place)
    with open_text(f"{folder}/{place}") as lines:
        names = [line.strip().replace("\\", "/") for line in lines if line.strip()]
    top = to_place(folder)
    there = {name_below(top, path) for path in list_below(top)}
    ways: list[Callable[[str], str]] = [lambda name: posixpath.normpath(posixpath.join(above, name))]
    ways += [_without(steps) for steps in range(max((name.count("/") for name in names), default=0) + 1)]
    way = next((way for way in ways if any(way(name) in there for name in names)), ways[0])
    return [found if (found := way(name)) in there else ways[0](name) for name in names]


def _without(steps: int) -> Callable[[str], str]:
    return lambda name: "/".join(posixpath.normpath(name).split("/")[steps:])


def _places(url: str, folder: str, root: str, value: Any) -> tuple[str, ...]:
    """Return the folders or lists that a split names, below the folder.

    Tools write paths as they were on their machine: of ``root/../train/images`` what is there below the folder counts.

    Raises:
        MissingInputError: a name leaves the folder, and nothing like it is there.
    """
    found = []
    for name in value if isinstance(value, list) else [value]:
        if not isinstance(name, str):
            raise MissingInputError(f"{redact(url)}: {name!r} is no folder of pictures")
        tries = [posixpath.normpath(posixpath.join(root, name)), posixpath.normpath(name)]
        tries += [re.sub(r"^(\.\./)+", "", each) for each in tries]
        inside = [each for each in tries if not each.startswith(("../", "/")) and each != ".." and "://" not in each]
        there = next((each for each in (*inside, *_suffixes(name)) if is_there(folder, each)), None)
        if there is None and not inside:
            raise MissingInputError(
                f"{redact(url)}: {name} leaves its folder; write where it is from there, such as images/train"
            )
        found.append(there or inside[0])
    return tuple(found)


def _suffixes(path: str) -> Sequence[str]:
    """Return a path without its first steps, the longest first, none of which leaves a folder."""
    steps = posixpath.normpath(path.replace("\\", "/")).split("/")
    tries: Iterable[list[str]] = (steps[start:] for start in range(len(steps)))
    return ["/".join(each) for each in tries if each[0] and ".." not in each and ":" not in each[0]]
