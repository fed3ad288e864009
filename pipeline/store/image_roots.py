"""Where the names in somebody else's data may lead: below their own folder, or below one of the image roots.

Everything that raw data names (``file_name`` of an annotation file, a member of an archive) is untrusted.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from glip_model.images import ImageError
from pipeline.store.read_errors import describe
from pipeline.store.urls import has_range, is_url, is_web, links, parse_range, place_of, redact, without_file_scheme

IMAGE_ROOTS = "GLIP_IMAGE_ROOTS"
"""Environment variable: more of the setting ``image_roots``, split by commas."""
OUTSIDE = "image_outside_folder"
"""Reason of pictures that lie in no place that is allowed."""
HOW_TO_ALLOW = (
    "if you trust what names it, add the folder or URL above it to image_roots in params.yaml, to "
    f"{IMAGE_ROOTS} in the environment or, of glip inspect, to --image-root"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_NAME_BYTES = 4096
"""More than Linux and the stores allow for a whole path."""


def join_inside(folder: str, name: str) -> str:
    """Return the place of a file that raw data names, below ``folder``.

    Raises:
        ImageError: ``image_outside_folder``, the name leaves the folder; ``image_missing``, no file can have it.
    """
    if not isinstance(name, str) or not name or not _is_file_name(name):
        raise ImageError("image_missing", f"no file can be called {name!r:.200}")
    clean = posixpath.normpath(name.replace("\\", "/"))
    # fsspec reads "a::b" and "a://b" as file systems inside one another.
    is_odd = "::" in name or "://" in name or re.match("[A-Za-z]:", name)
    if is_odd or clean.startswith(("../", "/")) or clean in {"..", "."}:
        raise ImageError("image_outside_folder", f"{name!r:.200} leaves its folder")
    if not is_url(folder):
        return f"{folder.rstrip('/') if folder else '.'}/{clean}"
    if is_web(folder):  # servers take "%2e%2e" for "..", and nothing after "?" or "#" for a part of the name
        clean = quote(clean, safe="/:@!$&'()*+,;=~")
    inner, chain, outer = folder.partition("::")  # zip://folder::s3://bucket/archive.zip
    return f"{inner if inner.endswith('://') else inner.rstrip('/') + '/'}{clean}{chain}{outer}"


def check_inside(url: str, roots: Sequence[str]) -> None:
    """Make sure that a place which somebody else's record or file names lies below one of the allowed folders or URLs.

    Links on disk are resolved on both sides. A chain such as ``zip://a.png::s3://bucket/a.zip`` lies where its last
    link does; only archives may stand before that. ``https://`` is a root, above all public hosts.

    Raises:
        ImageError: ``image_outside_folder``, or ``image_missing`` where no file can be called so.
    """
    plain, _, _ = parse_range(url)
    *archives, place = links(plain)
    try:
        # fsspec takes "~" for the home of the user there.
        is_odd = archives and without_file_scheme(place).startswith("~")
        if (
            not is_odd
            and all(re.match("(zip|tar)://", link) for link in archives)
            and any(_is_below(place, place_of(root)) for root in roots)
        ):
            return
    except (OSError, ValueError, RuntimeError) as error:  # odd names, loops of links
        raise ImageError("image_missing", f"{redact(url)!r:.300}: {describe(error, url)}") from error
    raise ImageError(OUTSIDE, f"{redact(url)!r:.300} lies outside of the shard's folder; {HOW_TO_ALLOW}")


def allowed_roots(setting: Iterable[str]) -> tuple[str, ...]:
    """Return where pictures may lie that records name, by the setting and by the environment; absolute, or URLs."""
    more = [root for root in os.environ.get(IMAGE_ROOTS, "").split(",") if root]
    return tuple(root if is_url(root) else str(Path(root).absolute()) for root in [*setting, *more])


def _is_below(place: str, root: str) -> bool:
    place, root = without_file_scheme(place), without_file_scheme(root)
    if not is_url(place) and not is_url(root):
        folder = _resolved(os.path.abspath(root))
        return bool(root) and f"{os.path.realpath(place)}/".startswith(f"{folder.rstrip('/')}/")
    path = re.split("[?#]", place)[0] if is_web(place) else place
    # Of control characters some are dropped on the way, so that ".\t." would become "..".
    is_plain = not _CONTROL.search(place) and ".." not in re.split(r"[/\\]", unquote(path))
    is_inside = place == root or place.startswith(root.rstrip("/") + "/")
    return is_url(root) and is_plain and is_inside


@lru_cache(maxsize=256)
def _resolved(root: str) -> str:
    """Resolve the links of a root, which is the user's, once: it is asked about for every picture."""
    return os.path.realpath(root)


def _is_file_name(name: str) -> bool:
    """Tell whether some file may have this name."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair
        return False
    return b"\0" not in encoded and len(encoded) <= _MAX_NAME_BYTES and not has_range(name)
