"""Pictures that come again: the same bytes, or looks that differ in a few bits of a perceptual hash.

Hashes are compared where they share two of six bands of bits: those that differ in at most four bits do. Of 24 million
random ones about 150 share two bands with another, so that there are no comparisons of all with all.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.prepare.held_out import HASH_BITS, MAX_DISTANCE

SHARED_BANDS = 2
_BANDS = MAX_DISTANCE + SHARED_BANDS
"""Bits that differ spoil at most ``MAX_DISTANCE`` bands; the others are equal."""
_CUTS = [band * HASH_BITS // _BANDS for band in range(_BANDS + 1)]
_MASKS = [np.uint64(((1 << (last - first)) - 1) << first) for first, last in pairwise(_CUTS)]


def find_same(values: NDArray[np.uint64], is_known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell of every row whether an earlier one has its value.

    Args:
        values: (N,), of which those that are not known count for nothing.
        is_known: (N,).

    Returns:
        (N,) bool.
    """
    is_again = is_known.copy()
    rows = np.flatnonzero(is_known)
    _, first = np.unique(values[rows], return_index=True)  # of equal ones the first
    is_again[rows[first]] = False
    return is_again


def find_alike(looks: NDArray[np.uint64], is_known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell of every row whether an earlier one looks like it: hashes that differ in ``MAX_DISTANCE`` bits at most.

    Args:
        looks: (N,) perceptual hashes, of which those that are not known count for nothing.
        is_known: (N,).

    Returns:
        (N,) bool.
    """
    is_again = find_same(looks, is_known)
    rows = np.flatnonzero(is_known & ~is_again)  # every hash once, where it comes first
    values = looks[rows]
    for bands in combinations(_MASKS, SHARED_BANDS):
        keys = values & np.bitwise_or.reduce(bands)
        order = np.argsort(keys, kind="stable")  # the rows of a key stay in their order
        left = np.arange(len(order) - 1)
        ahead = 1
        while len(left):  # compares each with the one that is so many places behind it, while that has its key
            left = left[left + ahead < len(order)]
            left = left[keys[order[left]] == keys[order[left + ahead]]]
            one, other = order[left], order[left + ahead]
            is_near = np.bitwise_count(values[one] ^ values[other]) <= MAX_DISTANCE
            is_again[rows[other[is_near]]] = True
            ahead += 1
    return is_again
