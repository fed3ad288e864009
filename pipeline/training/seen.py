"""What a model sees in a training, for its config: sources of rows and the sizes of their pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow.compute as pc

from glip_model.trained_on import TrainedOn
from pipeline.store.shards import list_shards, read_table
from pipeline.store.storage import Place
from pipeline.training.counting import folders_of

LOOKED_AT = 400
"""Shards of a folder, at most."""
WORDS = {"embedded": "emoji scenes"}
"""What people call sources that the project makes itself."""


def seen(human: Place, pseudo: Place | None, mixture: Mapping[str, float], replay: Place | None = None) -> TrainedOn:
    """Return what a training shows a model; the pictures are not read.

    Of a folder with more than ``LOOKED_AT`` shards as many are read, evenly spread, and rows are extrapolated: a
    training of millions of rows does not wait for a name and a size.

    Raises:
        MissingInputError: a folder of shards is not there.
    """
    rows: Counter[str] = Counter()
    sides: list[int] = []
    for folder in dict.fromkeys(folders_of(human, pseudo, mixture, replay).values()):
        shards = list_shards(folder)
        chosen = shards[:: -(-len(shards) // LOOKED_AT)]
        found: Counter[str] = Counter()
        for shard in chosen:
            table = read_table(shard, ("source", "height", "width"))
            if len(table):
                ends = pc.min_max(pc.max_element_wise(table["height"], table["width"])).as_py()
                sides += [ends["min"], ends["max"]]
                found.update({each["values"]: each["counts"] for each in pc.value_counts(table["source"]).to_pylist()})
        rows.update({name: round(count * len(shards) / len(chosen)) for name, count in found.items()})
    words = ", ".join(WORDS.get(name, name) for name in sorted(rows))
    return TrainedOn(dict(sorted(rows.items())), min(sides, default=0), max(sides, default=0), words)
