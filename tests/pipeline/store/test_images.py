"""Pictures that records refer to."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glip_model.images import ImageError
from pipeline.store.image_roots import allowed_roots, check_inside
from pipeline.store.images import image_roots, load_image
from pipeline.store.records import ImageRef

LIMIT = 10_000


def gradient() -> Image.Image:
    return Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8))


def encode(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_reference_is_read_from_bytes_or_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(gradient()))
    by_path = load_image(ImageRef(path=str(path)), LIMIT, [str(tmp_path)])
    by_bytes = load_image(ImageRef(bytes=path.read_bytes()), LIMIT, [])
    assert by_path.tobytes() == by_bytes.tobytes() == gradient().tobytes()


@pytest.mark.parametrize("name", ["absent.png", ".", "nul\0.png", "x" * 5000])
def test_a_reference_to_nothing_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(ImageRef(path=str(tmp_path / name)), LIMIT, [str(tmp_path)])
    assert caught.value.reason == "image_missing"


def test_an_empty_reference_is_missing() -> None:
    with pytest.raises(ImageError, match="neither bytes nor a path"):
        load_image(ImageRef(), LIMIT, [])


def test_a_place_must_lie_below_a_root_links_resolved(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(encode(gradient()))
    (inside / "link.png").symlink_to(outside / "a.png")
    roots = [str(inside)]
    for good in (f"{inside}/a.png", f"file://{inside}/a.png", f"{outside}/../in/a.png"):
        assert load_image(ImageRef(path=good), LIMIT, roots).size == (30, 20)
    odd = [f"{inside}/link.png", f"{inside}/../out/a.png", f"file://{outside}/a.png", f"local://{outside}/a.png"]
    odd += ["/etc/passwd", "../../etc/passwd", "/dev/zero", f"{inside}x/a.png", "http://127.0.0.1:9/x"]
    odd += [f"simplecache::file://{inside}/a.png", f"http://127.0.0.1:9/x::file://{inside}/a.png"]
    for bad in odd:
        with pytest.raises(ImageError) as caught:
            load_image(ImageRef(path=bad), LIMIT, roots)
        assert caught.value.reason == "image_outside_folder", bad
    assert load_image(ImageRef(path=f"{inside}/link.png"), LIMIT, [*roots, str(outside)]).size == (30, 20)


def test_urls_lie_below_a_url_that_is_allowed() -> None:
    roots = ["https://pictures.example/mine", "s3://bucket/"]
    for good in ("https://pictures.example/mine/a.png", "s3://bucket/a.png", "zip://a.png::s3://bucket/a.zip"):
        check_inside(good, roots)
    for bad in (
        "https://pictures.example/mine/../a.png",
        "https://pictures.example/mine/%2e%2e/a.png",
        "https://pictures.example/mined/a.png",
        "https://pictures.example.evil/mine/a.png",
        "s3://other/a.png",
        "s3://bucket/a.png::http://127.0.0.1/x",
        "zip://a.png::/etc/a.zip",
    ):
        with pytest.raises(ImageError, match="outside of the shard's folder"):
            check_inside(bad, roots)


def test_the_environment_allows_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIP_IMAGE_ROOTS", "/data/pictures,s3://bucket/pictures")
    assert allowed_roots(["/more", "https://"]) == ("/more", "https://", "/data/pictures", "s3://bucket/pictures")
    monkeypatch.delenv("GLIP_IMAGE_ROOTS")
    monkeypatch.chdir(tmp_path)
    assert allowed_roots(["."]) == (str(tmp_path),)
    assert image_roots(tmp_path / "shards", ["/more"]) == [f"{tmp_path}/shards", "/more"]
