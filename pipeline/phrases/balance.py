"""Which pairs are labelled where some phrases are said far more often than others.

A phrase that ``times`` pairs say is drawn in ``limit / times`` of them, one that fewer than ``limit`` say in all. A
pair is labelled if one of its phrases is drawn in it. So rare phrases keep all their pairs, and common ones about
``limit`` of them, besides those that they share with rarer ones.

Source: Xu et al., Demystifying CLIP Data (MetaCLIP), ICLR 2024, algorithm 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import PipelineError
from pipeline.store.dataset import connect, open_dataset
from pipeline.store.records import PhrasesRecord
from pipeline.store.shards import PROVENANCE_KEY, read_shard, write_shard
from pipeline.store.storage import Place

BEFORE = "unbalanced"
"""Folder of the phrases of all pairs, in that of the balanced ones."""
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


def is_chosen(record: PhrasesRecord, common: Mapping[str, int], limit: int) -> bool:
    """Tell whether one of a pair's phrases is drawn in it; the same in every run."""
    texts = {phrase.text.lower() for phrase in record.phrases}
    return not texts or any(_draw(record.key, text) * common.get(text, 0) < limit for text in texts)


def balance_shard(
    source: Place, target: Place, common: Mapping[str, int], limit: int, provenance: Mapping[str, Any]
) -> PipelineError | None:
    """Write a shard of phrases in which pairs that are not chosen have a reason and no phrases; return what went wrong.

    Args:
        source: with the phrases of all pairs.
        target: the shard to write.
        common: what ``common_phrases`` returned.
        limit: about so many pairs of each of them are chosen.
        provenance: of the target.
    """
    try:
        records = [
            record
            if record.reject_reason is not None or is_chosen(record, common, limit)
            else replace(record, phrases=(), reject_reason=COMMON)
            for record in read_shard(source, PhrasesRecord)
        ]
        write_shard(target, records, PhrasesRecord, {PROVENANCE_KEY: json.dumps(provenance)})
    except PipelineError as error:
        return error  # as data: raised here, Ray would print it with a traceback
    return None


def _draw(key: str, text: str) -> float:
    """Return a number in [0, 1) that depends on a pair and a phrase alone."""
    digest = hashlib.blake2b(f"{key}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
