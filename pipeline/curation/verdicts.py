"""Which pairs stay, and why the others go: first what a pair says for itself, then what all say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.curation.captions import CaptionRules, caption_hash
from pipeline.curation.duplicates import find_alike, find_same
from pipeline.curation.settings import CurateConfig
from pipeline.errors import ShardError
from pipeline.store.shards import read_table
from pipeline.store.storage import Place

KEPT = 0
_OWN = ("picture_unreadable", "picture_small", "picture_narrow", "picture_blank")
_OF_CAPTIONS = ("caption_short", "caption_long", "caption_blocked", "caption_language")
_OF_ALL = ("caption_repeated", "duplicate_exact", "duplicate_near")


def reasons(config: CurateConfig) -> tuple[str, ...]:
    """Return all reasons, in the order in which they are asked for; a verdict is a place in it, ``KEPT`` the first."""
    return ("kept", *_OWN, *_OF_CAPTIONS, *(f"score_{name}" for name in config.scores), *_OF_ALL)


@dataclass(frozen=True)
class Evidence:
    """What the pairs of some shards say, in order; arrays of N."""

    verdicts: NDArray[np.uint8]
    captions: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    looks: NDArray[np.uint64]
    has_digest: NDArray[np.bool_]
    has_looks: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Evidence]) -> Evidence:
        """Return that of several shards as one."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def hear_shard(
    shard: Place, looks: Place | None, scores: Mapping[str, Place], config: CurateConfig, words: tuple[str, ...]
) -> Evidence:
    """Judge the pairs of a shard, each for itself.

    Args:
        shard: of records.
        looks: what was measured of their pictures; None where no filter asks.
        scores: by name, what models say of them.
        config: the filters.
        words: that are blocked.

    Raises:
        ShardError: a shard is broken, or a measure is of another one.
    """
    table = read_table(shard, ["key", "caption", "height", "width"])
    keys, captions = table["key"].to_pylist(), table["caption"].to_pylist()
    sides = np.sort(np.stack([table["height"].to_numpy(), table["width"].to_numpy()]), axis=0)
    at = {reason: number for number, reason in enumerate(reasons(config))}
    verdicts = np.zeros(len(keys), np.uint8)

    def reject(reason: str, is_so: NDArray[np.bool_]) -> None:
        verdicts[is_so & (verdicts == KEPT)] = at[reason]

    seen = {name: np.zeros(len(keys), np.uint64) for name in ("digest", "looks")}
    known = {name: np.zeros(len(keys), np.bool_) for name in seen}
    if looks is not None:
        found = _read(looks, keys)
        for name in seen:
            known[name] = found[name].is_valid().to_numpy()
            seen[name] = found[name].fill_null(0).to_numpy()
        reject("picture_unreadable", ~known["digest"])
        reject("picture_blank", found["contrast"].fill_null(0).to_numpy() < config.min_contrast)
    reject("picture_small", sides[0] < config.min_side)
    if config.max_aspect:
        reject("picture_narrow", sides[1] > config.max_aspect * sides[0])
    rules = CaptionRules(config, words)
    for number, caption in enumerate(captions):
        if verdicts[number] == KEPT and (reason := rules.reason_of(caption)) is not None:
            verdicts[number] = at[reason]
    for name, place in scores.items():
        values, limits = _read(place, keys)["score"].to_numpy(), config.scores[name]
        # A pair without a score has a picture that cannot be read.
        reject("picture_unreadable", np.isnan(values))
        reject(f"score_{name}", values < (-np.inf if limits.min is None else limits.min))
        reject(f"score_{name}", values > (np.inf if limits.max is None else limits.max))
    said = np.array([caption_hash(caption) for caption in captions], np.uint64)
    return Evidence(verdicts, said, seen["digest"], seen["looks"], known["digest"], known["looks"])


def judge(evidence: Evidence, config: CurateConfig) -> NDArray[np.uint8]:
    """Judge the pairs of all shards together.

    A pair that goes for itself takes no other one with it: of doubles the first that stays otherwise is kept.

    Args:
        evidence: of all shards, in order.
        config: the filters.

    Returns:
        (N,) verdicts: places in ``reasons``.
    """
    at = {reason: number for number, reason in enumerate(reasons(config))}
    verdicts = evidence.verdicts.copy()
    if config.max_caption_repeats:
        verdicts[_is_repeated(evidence, config.max_caption_repeats) & (verdicts == KEPT)] = at["caption_repeated"]
    if config.duplicates != "off":
        verdicts[find_same(evidence.digests, evidence.has_digest & (verdicts == KEPT))] = at["duplicate_exact"]
    if config.duplicates == "near":
        verdicts[find_alike(evidence.looks, evidence.has_looks & (verdicts == KEPT))] = at["duplicate_near"]
    return verdicts


def _is_repeated(evidence: Evidence, limit: int) -> NDArray[np.bool_]:
    """Tell whose captions more than so many pictures have; one picture that comes again counts once."""
    pictures = np.where(evidence.has_digest, evidence.digests, np.arange(len(evidence.digests), dtype=np.uint64))
    pairs = np.unique(np.stack([evidence.captions, pictures]), axis=1)
    captions, times = np.unique(pairs[0], return_counts=True)
    return np.isin(evidence.captions, captions[times > limit])


def _read(place: Place, keys: list[str]) -> pa.Table:
    """Return a measure; ShardError where it is one of other rows."""
    table = read_table(place)
    if table["key"].to_pylist() != keys:
        raise ShardError(f"{place}: measured of other rows; remove it and run the same command again")
    return table
