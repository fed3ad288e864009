"""Which pictures are known again, by id and by their looks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from pipeline.data.held_out import MAX_DISTANCE, HeldOut, Sighting, perceptual_hash

PHOTOGRAPHS = Path(__file__).resolve().parents[4] / "shared" / "data" / "coco_tiny" / "train2017"
hashes = st.integers(0, 2**64 - 1)


@given(st.lists(hashes, max_size=30), hashes, st.sets(st.integers(0, 63), max_size=8))
def test_near_hashes_are_found_as_by_a_slow_loop(known: list[int], wanted: int, flipped: set[int]) -> None:
    near = known[0] if known else wanted
    for bit in flipped:
        near ^= 1 << bit
    held_out = HeldOut(Sighting(None, value) for value in known)
    for value in (wanted, near):
        expected = any((value ^ other).bit_count() <= MAX_DISTANCE for other in known)
        assert held_out.has(Sighting(None, value)) == expected


def test_ids_decide_within_their_data_set_and_looks_elsewhere() -> None:
    held_out = HeldOut([Sighting("coco/1", 5), Sighting(None, 1 << 40)])
    assert held_out.has(Sighting("coco/1", None))
    assert not held_out.has(Sighting("coco/2", 5))  # another picture, however alike
    assert held_out.has(Sighting("vg/2", 5))
    assert held_out.has(Sighting(None, 1 << 40))
    assert not held_out.has(Sighting(None, None))
    assert len(held_out) == 3
    assert not HeldOut([]).has(Sighting("coco/1", 5))


def test_the_digest_knows_what_is_held_out_and_not_in_which_order() -> None:
    seen = [Sighting("coco/1", 5), Sighting("coco/2", 6)]
    assert HeldOut(seen).digest() == HeldOut(seen[::-1]).digest() != HeldOut(seen[:1]).digest()


def test_pictures_that_show_too_little_have_no_hash() -> None:
    assert perceptual_hash(Image.new("RGB", (50, 50), "red")) is None
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    assert perceptual_hash(Image.fromarray(pixels)) is not None


def copies(image: Image.Image) -> list[Image.Image]:
    """Return what becomes of pictures on their way through the web."""
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    small = image.resize((128, max(1, 128 * image.height // image.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=50)
    return [
        half,
        small,
        Image.open(out),
        ImageEnhance.Brightness(image).enhance(1.1),
        image.convert("L").convert("RGB"),
    ]


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"the photographs are not here: {PHOTOGRAPHS}")
def test_copies_of_photographs_are_found_and_others_are_not() -> None:
    originals = [Image.open(path).convert("RGB") for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    known = [perceptual_hash(image) for image in originals]
    for i in range(len(originals)):
        held_out = HeldOut(Sighting(None, looks) for k, looks in enumerate(known) if k != i)
        assert not held_out.has(Sighting(None, known[i])), f"photograph {i} is taken for another"
    everything = HeldOut(Sighting(None, looks) for looks in known)
    found = [everything.has(Sighting(None, perceptual_hash(copy))) for image in originals for copy in copies(image)]
    assert np.mean(found) > 0.99
