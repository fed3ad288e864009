"""Doubles by hashes, against a comparison of all with all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.curation.duplicates import find_alike, find_same
from pipeline.prepare.held_out import HASH_BITS, MAX_DISTANCE

Hashes = list[int | None]
SEEDS = (0, (1 << HASH_BITS) - 1, 0x0F0F_1234_ABCD_5A5A)


@st.composite
def hashes(draw: st.DrawFn) -> Hashes:
    """Draw hashes near a few others: a random one is near no other."""
    found: Hashes = []
    for _ in range(draw(st.integers(0, 25))):
        value = draw(st.sampled_from(SEEDS))
        for bit in draw(st.lists(st.integers(0, HASH_BITS - 1), max_size=4)):
            value ^= 1 << bit
        found.append(draw(st.sampled_from([value, value, value, None])))
    return found


def arrays(values: Hashes) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    return np.array([each or 0 for each in values], np.uint64), np.array([each is not None for each in values], bool)


def earlier_within(values: Hashes, distance: int) -> list[bool]:
    return [
        value is not None
        and any(other is not None and (value ^ other).bit_count() <= distance for other in values[:number])
        for number, value in enumerate(values)
    ]


@given(hashes())
def test_alike_is_what_an_earlier_one_is_near(values: Hashes) -> None:
    assert find_alike(*arrays(values)).tolist() == earlier_within(values, MAX_DISTANCE)


@given(hashes())
def test_same_is_what_came_before(values: Hashes) -> None:
    assert find_same(*arrays(values)).tolist() == earlier_within(values, 0)


@pytest.mark.parametrize("distance", range(8))
def test_every_place_of_differing_bits_is_found(distance: int) -> None:
    rng = np.random.default_rng(distance)
    for _ in range(300):
        first = int(rng.integers(1 << 63))
        other = first
        for bit in rng.choice(HASH_BITS, distance, replace=False):
            other ^= 1 << int(bit)
        assert find_alike(*arrays([first, other])).tolist() == [False, distance <= MAX_DISTANCE]


def test_many_are_compared_without_all_pairs() -> None:
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 1 << 63, 200_000, dtype=np.uint64)  # all pairs would be 20,000 million
    looks[150_000:] = looks[:50_000] ^ np.uint64(0b101)
    found = find_alike(looks, np.ones(len(looks), bool))
    assert found[150_000:].all()
    assert not found[:150_000].any()
