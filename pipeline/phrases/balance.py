"""Which pairs are labelled: those that say something new, and not all of those that say what many others say.

A phrase that ``times`` pairs say is drawn in ``limit / times`` of them, one that fewer than ``limit`` say in all. A
pair is labelled if one of its phrases is drawn in it. So rare phrases keep all their pairs, and common ones about
``limit`` of them, besides those that they share with rarer ones.

Source: Xu et al., Demystifying CLIP Data (MetaCLIP), ICLR 2024, algorithm 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import PipelineError
from pipeline.phrases.known import KNOWN, says_something_new
from pipeline.store.dataset import connect, open_dataset
from pipeline.store.provenance import fingerprint
from pipeline.store.records import PhrasesRecord
from pipeline.store.shards import PROVENANCE_KEY, read_shard, write_shard
from pipeline.store.storage import Place

BEFORE = "of_all_pairs"
"""Folder of the phrases of all pairs, in that of those that are labelled."""
COMMON = "phrases_common"
"""Reject reason of pairs that are not labelled because all their phrases are said often enough in others."""
_COMMON = """
    SELECT text, count(*) AS times FROM (
        SELECT DISTINCT key, lower(phrase.text) AS text FROM (SELECT key, unnest(phrases) AS phrase FROM shards)
    ) GROUP BY text HAVING count(*) > $limit
"""


def common_phrases(folder: Place, limit: int) -> dict[str, int]:
    """Return the phrases that more than so many pairs say, in lower case, and how many say them.

    Raises:
        MissingInputError: there are no shards.
        ShardError: one is broken.
    """
    with connect(shards=open_dataset(folder)) as db:
        return dict(db.execute(_COMMON, {"limit": limit}).fetchall())


@dataclass(frozen=True)
class Choice:
    """Which pairs are labelled.

    Attributes:
        limit: about so many pairs of each of the common phrases; 0 takes them all.
        common: what ``common_phrases`` returned.
        known: words; pairs that have no others are left out.
    """

    limit: int = 0
    common: Mapping[str, int] = field(default_factory=dict)
    known: frozenset[str] = frozenset()

    def reject_reason(self, record: PhrasesRecord) -> str | None:
        """Return why a pair is not labelled; None where it is, or has no phrases anyway. The same in every run."""
        if not record.phrases:
            return None
        if self.known and not says_something_new(record, self.known):
            return KNOWN
        texts = {phrase.text.lower() for phrase in record.phrases}
        is_drawn = any(_draw(record.key, text) * self.common.get(text, 0) < self.limit for text in texts)
        return None if is_drawn or not self.limit else COMMON

    def describe(self) -> dict[str, Any]:
        """Return what shards depend on."""
        return {"max_per_phrase": self.limit, "common": fingerprint(self.common), "known": sorted(self.known)}


def choose_in_shard(
    source: Place, target: Place, choice: Choice, provenance: Mapping[str, Any]
) -> PipelineError | None:
    """Write a shard of phrases in which pairs that are not labelled have a reason and no phrases.

    Args:
        source: with the phrases of all pairs.
        target: the shard to write.
        choice: of the pairs.
        provenance: of the target.

    Returns:
        What went wrong.
    """
    try:
        reasons = ((record, choice.reject_reason(record)) for record in read_shard(source, PhrasesRecord))
        records = [record if why is None else replace(record, phrases=(), reject_reason=why) for record, why in reasons]
        write_shard(target, records, PhrasesRecord, {PROVENANCE_KEY: json.dumps(provenance)})
    except PipelineError as error:
        return error  # as data: raised here, Ray would print it with a traceback
    return None


def _draw(key: str, text: str) -> float:
    """Return a number in [0, 1) that depends on a pair and a phrase alone."""
    digest = hashlib.blake2b(f"{key}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
