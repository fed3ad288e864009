"""Files on disk that appear whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

ASIDE_FOLDER = ".saving-"
"""What the names of folders begin with that hold a folder's next files."""
_OF_RUST = re.compile(r"\(os error (\d+)\)")
"""How messages of safetensors and tokenizers contain an errno; their exceptions are no OSErrors."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path beside a file to write to; it takes the file's place when the block ends without an exception.

    Otherwise what was there stays, and nothing beside it. The name beside is nobody else's, on this machine or on
    another one that shares the disk. Where the file is a link, the link is replaced, and what it leads to stays.

    Raises:
        OSError: it cannot be written; one of the block that names no file, as over a full disk, gets its name.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().int}")
    try:
        with _named(path, aside):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.touch()  # fails before the work where nothing can be written
            mode = aside.stat().st_mode  # as the user's umask has it; safetensors makes its files private
            yield aside
            aside.chmod(mode)
            aside.replace(path)
    finally:
        with suppress(OSError):
            aside.unlink()


@contextmanager
def whole_files(folder: Path, last: str) -> Iterator[Path]:
    """Give a folder to write files to; they take their places in ``folder`` when the block ends without an exception.

    Args:
        folder: is made; other files in it stay.
        last: file that comes after the others, so that it means that all are there.

    Raises:
        OSError: as ``whole_file``.
    """
    with _named(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=ASIDE_FOLDER, dir=folder) as name:
            aside = Path(name)
            yield aside
            for path in sorted(aside.iterdir(), key=lambda path: path.name == last):
                path.replace(folder / path.name)


def save_picture(picture: Image.Image, path: Path, **options: Any) -> None:
    """Save a picture in the format that the file's name says, as PIL does; OSError as ``whole_file``.

    Raises:
        ValueError: PIL knows no such format.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"unknown file extension: {path.suffix}")
    with whole_file(path) as aside:
        picture.save(aside, kind, **options)


@contextmanager
def _named(path: Path, aside: Path) -> Iterator[None]:
    """Let errors of the system that name no file, or the one beside, name the one that was to be written."""
    try:
        yield
    except Exception as error:
        found = _OF_RUST.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number and getattr(error, "filename", None) in (None, str(aside)):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
