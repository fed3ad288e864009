"""Whether a model has gained on another one by more than chance: what the next round of self-training waits for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.evaluation.benchmark import Benchmark
from pipeline.evaluation.bootstrap import draw_pictures
from pipeline.evaluation.judged import has_predictions, judge
from pipeline.evaluation.standings import Standing, standings
from pipeline.store.storage import Place

GAIN = "gain"
"""Key of a model's metrics, beside the splits, below which its gain stands."""
SPLIT = "dev"
"""What decides; test stays out of all decisions."""
SAMPLES, SEED = 500, 0
"""Number and seed of the bootstrap samples."""


@dataclass(frozen=True)
class Gain:
    """What one model gained on another, in percent of the leading measure of the first benchmark of dev."""

    over: str
    """The other model."""
    source: str
    part: str
    """``novel`` where the benchmark divides base from novel concepts, otherwise all."""
    measure: str
    value: float
    low: float
    high: float
    """The 95 % interval over pictures."""

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON; ``is_beyond_chance`` tells whether the whole interval lies above 0."""
        return {**asdict(self), "split": SPLIT, "is_beyond_chance": self.low > 0}


def measure_gain(benchmarks: Sequence[Benchmark], predictions: Place, models: tuple[str, str]) -> Gain | None:
    """Compare two models on the first benchmark of dev, detection before others.

    Args:
        benchmarks: those that the first model was evaluated on.
        predictions: folder of MODEL/SPLIT/TASK.
        models: names of the one that is to have gained, and of the other.

    Returns:
        None where dev has no benchmark with a true box that both models were asked about.
    """
    found = next(_standings(benchmarks, predictions, models), None)
    if found is None:
        return None
    gained = found.gains[models]
    return Gain(models[1], found.source, found.part, found.measure, gained.value, gained.low, gained.high)


def _standings(benchmarks: Sequence[Benchmark], predictions: Place, models: tuple[str, str]) -> Iterator[Standing]:
    """Yield where the two stand on the benchmarks of dev, the most telling part of each first."""
    model, other = models
    if not all(has_predictions(predictions, name, SPLIT) for name in models):
        return
    for benchmark in benchmarks:
        if benchmark.split == SPLIT:
            judged = judge(benchmark, predictions, (other, model))  # the last one is compared with the others
            if len(judged.models) == len(models):
                yield from standings(judged, draw_pictures(judged.pictures, SAMPLES, SEED))
