"""Which words human data teaches already: labels of nothing else have little to add to it.

A word is known when boxes that people drew are named by it often enough: as categories, or as phrases of captions. A
"fire truck" is something new, though "truck" is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.shards import holds_detections, list_shards, read_categories, read_table
from pipeline.store.storage import Place, list_files
from pipeline.store.words import singulars, words_of


def known_words(human: Place, least: int) -> frozenset[str]:
    """Return the words that name at least so many human boxes, in lower case and every singular they may have.

    Args:
        human: folder with detection/ and grounding/ records; one of them may be missing.
        least: boxes.

    Raises:
        MissingInputError: there are no shards.
        ShardError: one is broken.
    """
    boxes: Counter[str] = Counter()
    shards = [shard for name in ("detection", "grounding") for shard in list_files(human / name, "part-*.parquet")]
    for shard in shards or list_shards(human / "detection"):
        for name, times in _named(shard):
            for word in words_of(name):
                boxes[word] += times
    return frozenset().union(*(singulars(word) for word, times in boxes.items() if times >= least))


def is_known(text: str, known: Collection[str]) -> bool:
    """Tell whether all words of a phrase are known."""
    return not any(singulars(word).isdisjoint(known) for word in words_of(text))


def _named(shard: Place) -> Iterable[tuple[str, int]]:
    """Yield names of a shard of human records, and how many of its boxes have each."""
    if holds_detections(shard):
        names = {category.id: category.name for category in read_categories(shard)}
        objects = read_table(shard, ["objects"])["objects"].combine_chunks().flatten()
        for each in pc.value_counts(objects.field("category_id")).to_pylist():
            yield names.get(each["values"], ""), each["counts"]
        return
    phrases = read_table(shard, ["phrases"])["phrases"].combine_chunks().flatten()
    counts = pc.list_value_length(phrases.field("boxes"))
    table = pa.table({"text": phrases.field("text"), "boxes": counts}).group_by("text").aggregate([("boxes", "sum")])
    yield from zip(table["text"].to_pylist(), table["boxes_sum"].to_pylist(), strict=True)
