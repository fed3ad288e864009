"""Names of somebody else's data: joined as their file system wants them, and never out of their folder."""

from __future__ import annotations

import posixpath
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_model.images import ImageError
from pipeline.store.filesystem import read_many
from pipeline.store.image_roots import join_inside

FOLDERS = ["/data/x", "s3://bucket/x", "https://host/x", "hf://datasets/a/b", "x/", "x", "/", "", "memory://"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    "name",
    [
        *("../a", "a/../../b", "..", ".", "./", "a/..", "/etc/passwd", "//host/a", "file:///etc/passwd"),
        *("..\\a", "a\\..\\..\\b", "\\a", "C:\\a", "c:a", "a::b", "a/::b", "zip://a", "x/s3://b", "a\nb://c"),
    ],
)
def test_names_that_leave_their_folder_are_refused(folder: str, name: str) -> None:
    with pytest.raises(ImageError) as caught:
        join_inside(folder, name)
    assert caught.value.reason == "image_outside_folder"


@pytest.mark.parametrize("name", ["", "a\0b", None, 5, b"a", ["a"], "a\ud800.jpg", "a.jpg#bytes=0-99", "#bytes=5-9"])
def test_names_that_no_file_can_have_are_missing(name: Any) -> None:
    for folder in FOLDERS:
        with pytest.raises(ImageError) as caught:
            join_inside(folder, name)
        assert caught.value.reason == "image_missing"
        str(caught.value).encode()


def test_names_are_joined_as_their_file_system_wants_them() -> None:
    assert join_inside("/data/x/", "a//b/./c.jpg") == "/data/x/a/b/c.jpg"
    assert join_inside("s3://bucket", "train\\a#1?.jpg") == "s3://bucket/train/a#1?.jpg"
    assert join_inside("https://host/x", "a#1?ü%2e.jpg") == "https://host/x/a%231%3F%C3%BC%252e.jpg"
    assert join_inside("zip://::s3://bucket/a.zip", "b.jpg") == "zip://b.jpg::s3://bucket/a.zip"
    assert join_inside("zip://train::s3://bucket/a.zip", "b.jpg") == "zip://train/b.jpg::s3://bucket/a.zip"
    assert join_inside("", "~root/b.jpg") == "./~root/b.jpg"
    assert join_inside("/", "b.jpg") == "/b.jpg"


names = st.text(st.sampled_from("ab./\\:#?%2e[*~ \n"), max_size=12) | st.text(max_size=20)
names |= st.lists(st.sampled_from(["..", ".", "%2e%2e", "a", "::", "://", "/", "\\", "%2F", "#", "?"])).map("/".join)


@settings(max_examples=500)
@given(st.sampled_from(["/data/x", "s3://bucket/x", "https://host/x", "x/", "", "zip://x::/a.zip"]), names)
def test_a_joined_name_stays_below_its_folder(folder: str, name: str) -> None:
    try:
        place = join_inside(folder, name)
    except ImageError:
        return
    inner, _, outer = folder.partition("::")
    root = inner.rstrip("/") + "/" if folder else "./"
    assert place.startswith(root)
    assert place.endswith(f"::{outer}" if outer else "")
    below = place.removeprefix(root).removesuffix(f"::{outer}" if outer else "")
    assert "::" not in below
    assert "://" not in below
    assert posixpath.normpath(below) == below
    assert below.split("/")[0] not in ("", ".", "..")
    if folder.startswith("https"):
        parts = urlsplit(place)
        assert (parts.query, parts.fragment) == ("", "")
        # However often a server decodes the path.
        assert unquote(parts.path) == f"/x/{posixpath.normpath(name.replace(chr(92), '/'))}"


@settings(deadline=None)
@given(names)
def test_whatever_a_file_names_is_read_below_its_folder_or_not_at_all(name: str) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe({"/secret": b"secret", "/x/a": b"inside", "/x/a#": b"inside"})
    for folder in ("memory://x", "/dev", "file:///dev"):
        try:
            found = read_many([join_inside(folder, name)], None)
        except ImageError:
            continue
        assert found[0] == b"inside" or isinstance(found[0], ImageError)
