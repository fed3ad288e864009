"""Whose a place is: a small file in it names the run that writes there, so that no other run does.

The file is created, never replaced, where there is none: of two runs that begin at once one gets the place.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import OwnershipError, StorageError
from pipeline.store.atomic import create, replacing
from pipeline.store.read_errors import READ_ERRORS, describe
from pipeline.store.storage import Place, exists, patiently

OWNER_FILE = "glip-run.json"


@dataclass(frozen=True)
class Owner:
    """What the file says."""

    run: str
    since: str
    """When the run came to own the place, ISO 8601."""
    sent: str
    """Hash of the code and the settings that it came with."""


def claim(place: Place, owner: Owner, take_over: bool = False) -> None:
    """Make a place a run's own; nothing changes where it is already.

    Args:
        place: folder or prefix that the run will write into.
        owner: the run.
        take_over: take it from another run, or with what lies there unowned.

    Raises:
        OwnershipError: it, or a folder above it, belongs to another run, or it holds files and nobody's name.
        StorageError: the store gives no answer, or the place cannot be written.
    """
    for above in place.parents:
        try:
            found = _read(above)
        except StorageError as error:
            if isinstance(error.__cause__, PermissionError):
                continue  # nodes may have rights on their run's prefix alone
            raise
        _refuse_other(above, owner, found, "choose another place with --folder or --out")
    found = _read(place)
    if found and found.run == owner.run:
        return
    content = (json.dumps(asdict(owner), indent=2) + "\n").encode()
    if take_over:
        with replacing(place / OWNER_FILE) as aside:
            aside.write_bytes(content)
        return
    if found is None:
        if _holds_files(place):
            raise OwnershipError(
                f"{place}: holds files and no {OWNER_FILE} that says whose they are; choose an empty place, "
                "or make it this run's with --take-over"
            )
        if create(place / OWNER_FILE, content):
            return
        found = _read(place)
    _refuse_other(place, owner, found, "choose another place, or --take-over once that run has ended")


def _refuse_other(place: Place, owner: Owner, found: Owner | None, advice: str) -> None:
    if found and found.run != owner.run:
        raise OwnershipError(
            f"{place}: belongs to the run {found.run!r} since {found.since}, and this is {owner.run!r}; {advice}"
        )


def _read(place: Place) -> Owner | None:
    file = place / OWNER_FILE
    try:
        if not exists(file):
            return None
        found = json.loads(patiently(file.read_bytes, file))
        return Owner(**{name: str(found[name]) for name in ("run", "since", "sent")})
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise OwnershipError(f"{file}: not written by glip submit ({error!r}); remove it if it is yours") from error
    except READ_ERRORS as error:
        raise StorageError(f"{file}: cannot be read ({describe(error, str(file))})") from error


def _holds_files(place: Place) -> bool:
    if isinstance(place, Path):
        return place.is_dir() and any(place.iterdir())
    try:
        return bool(patiently(lambda: place.fs.find(place.path, maxdepth=1, withdirs=True), place))
    except FileNotFoundError:
        return False
    except READ_ERRORS as error:
        raise StorageError(f"{place}: the store gives no answer ({describe(error, str(place))})") from error
