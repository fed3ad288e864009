"""Which pictures are known again, by id and by their looks."""

from __future__ import annotations

import io
import pickle
import random
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from glip_model.images import check_image
from pipeline.prepare.held_out import MAX_DISTANCE, HeldOut, Sighting, group_alike, perceptual_hash
from pipeline.prepare.validation import CHECKED_SIDE

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


def test_every_way_to_differ_in_few_bits_is_found() -> None:
    held_out = HeldOut([Sighting(None, 0)])
    chance = random.Random(0)
    for _ in range(5000):
        value = sum(1 << bit for bit in chance.sample(range(64), MAX_DISTANCE))
        assert held_out.has(Sighting(None, value))
        assert not held_out.has(Sighting(None, value | (~value & -~value)))  # one bit more


def test_ids_decide_within_their_data_set_and_looks_elsewhere() -> None:
    held_out = HeldOut([Sighting("coco/1", 5), Sighting(None, 255 << 40)])
    assert held_out.has(Sighting("coco/1", None))
    assert not held_out.has(Sighting("coco/2", 5))  # another picture, however alike
    assert held_out.has(Sighting("vg/2", 5))
    assert held_out.has(Sighting(None, 255 << 40))
    assert held_out.has(Sighting("coco/2", 255 << 40))  # nobody knows of which data set that one is
    assert not held_out.has(Sighting(None, None))
    assert not held_out.has(Sighting("vg/2", None))
    assert len(held_out) == 3


def test_nothing_held_out_is_never_met() -> None:
    assert not HeldOut([]).has(Sighting("coco/1", 5))
    assert len(HeldOut([])) == 0
    assert not HeldOut([Sighting(None, None)]).has(Sighting(None, 0))


ids = st.sampled_from([None, *(f"{name}/{i}" for name in ("coco", "vg") for i in range(3))])
looks = st.none() | st.sampled_from([0, 1, 1 << 63, 2**64 - 1])
sightings = st.builds(Sighting, ids, looks, st.sampled_from(["", "mine", "yours"]))


@given(st.lists(sightings, max_size=6), sightings)
def test_ids_and_looks_together_answer_as_their_description_says(known: list[Sighting], seen: Sighting) -> None:
    def is_alike(other: Sighting) -> bool:
        both = seen.looks is not None and other.looks is not None
        return both and ((seen.looks or 0) ^ (other.looks or 0)).bit_count() <= MAX_DISTANCE

    def is_same(other: Sighting) -> bool:
        return seen.picture_id == other.picture_id if seen.kind and seen.kind == other.kind else is_alike(other)

    def is_of_own_set(other: Sighting) -> bool:
        return bool(seen.data_set) and seen.data_set == other.data_set

    assert HeldOut(known).has(seen) == any(is_same(other) and not is_of_own_set(other) for other in known)
    assert HeldOut(known).resembles(seen) == any(is_same(other) or is_alike(other) for other in known)


@given(st.lists(st.none() | st.sampled_from([0, 1, 15, 255, 4095, 1 << 63, 2**64 - 1]), max_size=8))
def test_groups_link_what_looks_alike(looks: list[int | None]) -> None:
    groups = group_alike(looks)
    for (i, a), (k, b) in combinations(enumerate(looks), 2):
        if a is None or b is None:
            assert groups[i] != groups[k]
        elif (a ^ b).bit_count() <= MAX_DISTANCE:
            assert groups[i] == groups[k]
    assert group_alike([0, 15, 255, 1 << 63 | 0xFFFFFF])[:3] == [0, 0, 0]  # 0 and 255 by way of 15
    assert len(set(group_alike([0, 255, None, None]))) == 4


def test_the_digest_knows_what_is_held_out_and_not_in_which_order() -> None:
    seen = [Sighting("coco/1", 5), Sighting("coco/2", 6)]
    assert HeldOut(seen).digest() == HeldOut(seen[::-1]).digest() != HeldOut(seen[:1]).digest()
    assert HeldOut(seen * 2).digest() == HeldOut(seen).digest()
    assert HeldOut([Sighting(None, 5)]).digest() != HeldOut([Sighting(None, 6)]).digest()


def test_it_survives_the_way_to_another_process() -> None:
    held_out = pickle.loads(pickle.dumps(HeldOut([Sighting("coco/1", 5)])))
    assert held_out.has(Sighting("coco/1", None))
    assert held_out.has(Sighting(None, 4))


def test_an_answer_among_a_hundred_thousand_hashes_takes_microseconds() -> None:
    chance = random.Random(0)
    held_out = HeldOut(Sighting(None, chance.getrandbits(64)) for _ in range(100_000))
    asked = [Sighting(None, chance.getrandbits(64)) for _ in range(2000)]
    start = time.process_time()
    found = sum(held_out.has(seen) for seen in asked)
    assert (time.process_time() - start) / len(asked) < 300e-6  # about 20 µs; far less than a comparison with each
    assert found == 0


@pytest.mark.parametrize("colour", ["black", "white", "red", "#7f7f80"])
def test_pictures_that_show_too_little_have_no_hash(colour: str) -> None:
    assert perceptual_hash(Image.new("RGB", (50, 50), colour)) is None
    assert perceptual_hash(Image.new("RGB", (1, 1), colour)) is None


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_pictures_of_every_shape_hash_to_64_bits_or_nothing(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    looks = perceptual_hash(Image.fromarray(pixels))
    assert looks is None or 0 <= looks < 1 << 64
    assert looks == perceptual_hash(Image.fromarray(pixels))


def encoded(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "half the size": lambda image: encoded(image.resize((image.width // 2, image.height // 2)), quality=95),
    "128 wide": lambda image: encoded(image.resize((128, 128 * image.height // image.width)), quality=95),
    "square": lambda image: encoded(image.resize((256, 256)), quality=95),
    "without loss": lambda image: encoded(image, "PNG", compress_level=1),
    "quality 50": lambda image: encoded(image, quality=50),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.1), quality=95),
    "more contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(1.2), quality=95),
    "grey": lambda image: encoded(image.convert("L"), quality=95),
}
"""What becomes of pictures on their way through the web."""


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"the photographs are not here: {PHOTOGRAPHS}")
    return [path.read_bytes() for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]


def looks_of(data: bytes) -> int:
    looks = perceptual_hash(check_image(data, 10**8, CHECKED_SIDE)[1])
    assert looks is not None
    return looks


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_photographs_are_found(kind: str, photographs: list[bytes]) -> None:
    known = [looks_of(data) for data in photographs]
    copies = [looks_of(COPIES[kind](Image.open(io.BytesIO(data)).convert("RGB"))) for data in photographs]
    held_out = HeldOut(Sighting(None, looks) for looks in known)
    assert all(held_out.has(Sighting(None, looks)) for looks in copies)
    assert max((a ^ b).bit_count() for a, b in zip(known, copies, strict=True)) <= MAX_DISTANCE


def test_different_photographs_are_far_apart(photographs: list[bytes]) -> None:
    known = [looks_of(data) for data in photographs]
    assert len(known) == 50
    assert min((a ^ b).bit_count() for a, b in combinations(known, 2)) >= 4 * MAX_DISTANCE
