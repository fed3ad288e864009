"""How good labels by names are on pictures that people annotated, name by name and threshold by threshold.

Boxes are given out best first, so those that a higher threshold would keep are just those of a higher score: one pass
over the pictures answers for all thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import MissingInputError, ShardError
from pipeline.pseudo_labels.calibration import Row, Sample, check_readable, curve, match_boxes
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.atomic import write_csv
from pipeline.store.records import NOTHING_FOUND, Category, DetectionRecord
from pipeline.store.shards import list_shards, read_annotations, read_categories
from pipeline.store.storage import Place
from pipeline.store.vocabulary import Vocabulary, read_as

FEWEST = 5
"""Annotated boxes of a class below which no threshold is proposed for it."""
_MOST_IN_CROWD = 0.5
"""A box that lies in a crowd by a larger share of its area is neither right nor wrong."""


@dataclass(frozen=True)
class Verdict:
    """What came of one class."""

    name: str
    truth: int
    """Annotated boxes."""
    curve: Sequence[Row]
    threshold: float | None
    """What is proposed; None where there are too few boxes to say."""

    def at(self, threshold: float) -> Row:
        """Return the figures at the nearest threshold of the curve."""
        return min(self.curve, key=lambda row: abs((row["threshold"] or 0.0) - threshold))


def vocabulary_of(categories: Sequence[Category]) -> Vocabulary:
    """Return the names of a data set as what is asked for; ConfigError where one is no name."""
    return Vocabulary.of({category.name: category.name for category in categories})


def judge(
    truth: Sequence[DetectionRecord],
    found: Sequence[DetectionRecord],
    categories: Sequence[Category],
    classes: Sequence[str],
    least_precision: float | None = None,
) -> list[Verdict]:
    """Compare labels with what people drew.

    Args:
        truth: annotated pictures; those whose labels have no picture are left out.
        found: their labels, in the same order.
        categories: of the annotations. A class is judged by the category of its name.
        classes: of the labels, with ids from 1.
        least_precision: propose the lowest threshold with this precision; None proposes that of the best F1.

    Returns:
        Of every class that the annotations have; the last verdict, without a name, is of all of them together.
    """
    id_of = {read_as(category.name): category.id for category in categories}
    is_federated = any(category.frequency for category in categories)
    samples: dict[str, list[Sample]] = {}
    for number, name in enumerate(classes, 1):
        category = id_of.get(read_as(name))
        if category is not None:
            samples[name] = [
                _sample(mine, theirs, category, number)
                for mine, theirs in zip(truth, found, strict=True)
                if theirs.reject_reason in (None, NOTHING_FOUND) and (not is_federated or _is_judged(mine, category))
            ]
    verdicts = [_verdict(name, rows, least_precision) for name, rows in samples.items()]
    return [*verdicts, _verdict("", [row for rows in samples.values() for row in rows], least_precision)]


def collect_samples(
    records: Sequence[DetectionRecord],
    categories: Sequence[Category],
    make_labeller: Callable[[PseudoLabelConfig], PseudoLabeller],
    config: PseudoLabelConfig,
    on_rows: Callable[[int], Any] = lambda rows: None,
) -> tuple[list[Sample], list[Sample]]:
    """Label annotated pictures with the names of their own data set, as ``calibration.collect_samples`` does captions.

    Args:
        records: pictures with true boxes.
        categories: of the annotations, all of which are asked for.
        make_labeller: loads the teacher for given settings.
        config: the settings of the stage; its thresholds of the score and of agreement are set aside.
        on_rows: receives the number of rows that were done.

    Returns:
        Samples of all classes that a picture was looked through for; and of these the ones that are not in it.

    Raises:
        RejectLimitError: too many of the pictures cannot be read.
    """
    labeller = make_labeller(replace(config, min_score=0.0, min_score_by_source={}, min_agreement=0.0))
    vocabulary = vocabulary_of(categories)
    number_of = {read_as(name): number for number, name in enumerate(vocabulary.classes, 1)}
    is_federated = any(category.frequency for category in categories)
    samples: list[Sample] = []
    broken = 0
    for start in range(0, len(records), config.batch_size):
        batch = records[start : start + config.batch_size]
        labelled = labeller.answer(labeller.ask_names(batch, vocabulary))
        samples += [
            replace(_sample(mine, theirs, each.id, number_of[read_as(each.name)]), split=each.split, noun=each.name)
            for mine, theirs in zip(batch, labelled, strict=True)
            for each in categories
            if theirs.reject_reason in (None, NOTHING_FOUND) and (not is_federated or _is_judged(mine, each.id))
        ]
        broken += sum(record.reject_reason not in (None, NOTHING_FOUND) for record in labelled)
        on_rows(len(batch))
    check_readable(broken, len(records), config)
    return samples, [sample for sample in samples if not sample.truth]


def judge_shards(truth: Place, found: Place, least_precision: float | None = None) -> list[Verdict]:
    """Compare folders of shards: annotated pictures, and their labels in shards of the same names.

    The vocabulary is that of the labels; for the rest see ``judge``. Pictures are not read.

    Raises:
        ShardError: they do not hold the same pictures.
        MissingInputError: no class is a category of the annotations.
    """
    mine: list[DetectionRecord] = []
    theirs: list[DetectionRecord] = []
    categories: dict[int, Category] = {}
    for shard in list_shards(truth):
        mine += read_annotations(shard, DetectionRecord)
        theirs += read_annotations(found / shard.name, DetectionRecord)
        for category in read_categories(shard):
            if categories.setdefault(category.id, category).name != category.name:
                raise ShardError(f"{shard}: category {category.id} has two names; judge by one data set at a time")
    if [record.key for record in mine] != [record.key for record in theirs]:
        raise ShardError(f"{found}: holds other pictures than {truth}; label these")
    names = [category.name for category in read_categories(list_shards(found)[0])]
    verdicts = judge(mine, theirs, list(categories.values()), names, least_precision)
    if len(verdicts) == 1:
        known = ", ".join(category.name for category in categories.values())
        raise MissingInputError(f"none of {', '.join(names)} is a category of the annotations, which are: {known}")
    return verdicts


def thresholds(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the thresholds that are proposed, by class."""
    return {each.name: each.threshold for each in verdicts if each.name and each.threshold is not None}


def to_metrics(verdicts: Sequence[Verdict], otherwise: float) -> dict[str, Any]:
    """Return all figures: by class those at its threshold, or at another one where none is proposed."""

    def figures(verdict: Verdict) -> dict[str, Any]:
        threshold = otherwise if verdict.threshold is None else verdict.threshold
        return {**verdict.at(threshold), "boxes": verdict.truth, "threshold": verdict.threshold, "at": threshold}

    *classes, whole = verdicts
    return {
        "thresholds": thresholds(verdicts),
        "all": figures(whole),
        "classes": {verdict.name: figures(verdict) for verdict in classes},
    }


def format_verdicts(verdicts: Sequence[Verdict], otherwise: float) -> str:
    """Lay the figures out for a terminal."""
    shown = [(verdict.name or "all", verdict) for verdict in verdicts]
    width = max(len(name) for name, _ in shown)
    lines = [f"{'':{width}}  boxes  threshold  precision  recall     F1"]
    for name, verdict in shown:
        row = verdict.at(otherwise if verdict.threshold is None else verdict.threshold)
        threshold = f"({otherwise:.2f})" if verdict.threshold is None else f"{verdict.threshold:.2f} "
        shares = "".join(
            f"{_percent(row[key]):>{space}}" for key, space in (("precision", 11), ("recall", 8), ("f1", 7))
        )
        lines.append(f"{name:{width}}  {verdict.truth:>5}  {threshold:>9}{shares}")
    return "\n".join(lines)


def write_verdicts(verdicts: Sequence[Verdict], path: Place) -> None:
    """Write the curves of all classes as CSV."""
    rows = [[verdict.name or "all", *row.values()] for verdict in verdicts for row in verdict.curve]
    write_csv(path, [["name", *verdicts[-1].curve[0]], *rows], end="\n")


def _verdict(name: str, samples: Sequence[Sample], least_precision: float | None) -> Verdict:
    rows = curve(samples)
    truth = sum(sample.truth for sample in samples)
    threshold = None
    if truth >= FEWEST:
        good = [row for row in rows if least_precision is None or (row["precision"] or 0.0) >= least_precision]
        # Of several with the same F1 the highest: between them there is no box.
        measure = "f1" if least_precision is None else "recall"
        best = max(good, key=lambda row: (row[measure] or 0.0, row["threshold"] or 0.0), default=None)
        threshold = best["threshold"] if best is not None and best["recall"] else None
    return Verdict(name, truth, rows, threshold)


def _is_judged(record: DetectionRecord, category: int) -> bool:
    """Tell whether a data set that does not look for everything looked for a category in a picture, to the last box."""
    looked = category in record.negative_category_ids or any(item.category_id == category for item in record.objects)
    return looked and category not in record.not_exhaustive_category_ids


def _sample(truth: DetectionRecord, found: DetectionRecord, category: int, number: int) -> Sample:
    mine = [item for item in truth.objects if item.category_id == category]
    single = [item.xyxy for item in mine if not item.is_crowd]
    crowds = [item.xyxy for item in mine if item.is_crowd]
    boxes = sorted((item for item in found.objects if item.category_id == number), key=lambda item: -item.score)
    hits = list(match_boxes([item.xyxy for item in boxes], single))
    kept = [
        (item, is_hit)
        for item, is_hit in zip(boxes, hits, strict=True)
        if is_hit or not any(_share_inside(item.xyxy, crowd) > _MOST_IN_CROWD for crowd in crowds)
    ]
    return Sample(
        scores=tuple(item.score for item, _ in kept),
        hits=tuple(hit for _, hit in kept),
        truth=len(single),
        split=None,
        agreements=tuple(item.agreement for item, _ in kept),
    )


def _share_inside(box: Sequence[float], crowd: Sequence[float]) -> float:
    x1, y1, x2, y2 = (max(box[0], crowd[0]), max(box[1], crowd[1]), min(box[2], crowd[2]), min(box[3], crowd[3]))
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(0.0, x2 - x1) * max(0.0, y2 - y1) / area if area > 0 else 0.0


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
