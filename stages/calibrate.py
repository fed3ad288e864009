"""Measure pseudo-labels against human boxes at every score threshold, to choose `pseudo_label.min_score` from.

The curves give precision and recall for base and novel phrases, and how often the teacher finds what is not there.
Records are those of captions with boxes for their phrases (grounding) or of pictures with category boxes (detection),
whose classes are all asked for. Of several teachers (--teacher A --teacher B) the metrics say how often boxes are right
by how many of them agree, to choose pseudo_label.min_agreement from.

Run: glip calibrate --records data/records/dev --teacher models/teacher \
    --out plots/calibration/round_1.csv --metrics metrics/calibration/round_1.json
"""

from __future__ import annotations

import argparse
import itertools
import os
from typing import TYPE_CHECKING, Any

from pipeline.cli import add_params, add_teachers, at_least, progress, run_if_program
from pipeline.errors import MissingInputError

if TYPE_CHECKING:
    from pipeline.pseudo_labels.calibration import Sample
    from pipeline.pseudo_labels.labeller import PseudoLabeller
    from pipeline.pseudo_labels.settings import PseudoLabelConfig
    from pipeline.store.storage import Place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument(
        "--records",
        required=True,
        help="shards of human grounding or detection data: a folder or a URL; or one with folders grounding/ and "
        "detection/, of which the first is taken that has shards",
    )
    add_teachers(parser)
    parser.add_argument("--out", required=True, help="CSV file for the curves")
    parser.add_argument(
        "--round", metavar="NAME", help="key of rounds in params.yaml, whose settings of pseudo_label apply"
    )
    parser.add_argument(
        "--phrases", help="shards of the web pairs' phrases: quality by how often a phrase is said there"
    )
    parser.add_argument("--metrics", help="JSON file for the figures at the threshold in use")
    parser.add_argument("--limit", type=at_least(1), default=2000, help="rows to look at (default: %(default)s)")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Label human data and compare."""
    from pipeline.pseudo_labels.calibration import by_agreement, curves, summarise, write_curves
    from pipeline.pseudo_labels.label_quality import count_head_nouns, label_quality
    from pipeline.pseudo_labels.settings import of_round
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.storage import to_place

    settings = load_all(args.params)
    config = of_round(settings.pseudo_label, settings.rounds, args.round)
    number, positive, negative = _samples(args, settings, config)
    if not any(sample.truth for sample in positive):
        raise MissingInputError(f"{args.records}: nothing has a true box to compare with")
    rows = curves(positive, negative)
    write_curves(rows, to_place(args.out))
    said = count_head_nouns(to_place(args.phrases)) if args.phrases else {}
    summary = summarise(rows, config.min_score) | {"rows": number, "phrases": len(positive)}
    summary |= label_quality(positive, config.min_score, said)
    agreements = by_agreement(positive, config.min_score)
    if agreements:
        summary["by_agreement"] = agreements
    if args.metrics:
        write_json(to_place(args.metrics), summary)
    for row in agreements:
        share, boxes = f"{row['agreement']:.0%}", f"{row['boxes']:.0f}"
        figures = f"precision {_percent(row['precision'])}, recall {_percent(row['recall'])}"
        print(f"  at least {share:>4} of the teachers agree: {boxes:>6} boxes, {figures}")
    used = summary["at_min_score"]
    precision, recall, alarms = (_percent(used[name]) for name in ("precision_all", "recall_all", "false_alarms"))
    figures = f"precision {precision}, recall {recall}, false alarms {alarms}"
    best = summary["best_f1_at"]["all"]
    return f"calibrate: at min_score {config.min_score:.2f} {figures}; best F1 at {best:.2f} → {args.out}"


def _samples(
    args: argparse.Namespace, settings: Any, config: PseudoLabelConfig
) -> tuple[int, list[Sample], list[Sample]]:
    """Return how many rows were looked at, what was given to what is there, and to what is not."""
    from pipeline.pseudo_labels import calibration, judging
    from pipeline.pseudo_labels.decoding import PictureDecoder
    from pipeline.pseudo_labels.ensemble import open_teachers
    from pipeline.pseudo_labels.labeller import PseudoLabeller
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.images import image_roots
    from pipeline.store.records import DetectionRecord, GroundingRecord
    from pipeline.store.shards import KIND, KIND_KEY, read_categories, read_metadata, read_shard

    place, paths = _shards(args.records)
    kind = read_metadata(paths[0]).get(KIND_KEY)
    kinds: list[Any] = [GroundingRecord, DetectionRecord]
    record_type = next((each for each in kinds if KIND[each] == kind), None)
    if record_type is None:
        raise MissingInputError(
            f"--records {args.records}: holds {kind or 'no'} records; expected human grounding or detection data, "
            "captions with boxes for their phrases or pictures with category boxes, such as data/records/dev"
        )
    shards = (read_shard(path, record_type) for path in paths)
    records: list[Any] = list(itertools.islice(itertools.chain.from_iterable(shards), args.limit))
    limits = settings.prepare.max_image_pixels, config.decode_timeout_s
    roots = image_roots(place, allowed_roots(settings.image_roots))
    with PictureDecoder(*limits, os.cpu_count() or 1, roots) as decoder:

        def make_labeller(settings: PseudoLabelConfig) -> PseudoLabeller:
            return PseudoLabeller(open_teachers(args.teacher, settings), settings, decoder.decode)

        with progress(len(records), "calibrate", "rows") as bar:
            if record_type is GroundingRecord:
                found = calibration.collect_samples(records, make_labeller, config, bar.update)
            else:
                found = judging.collect_samples(records, read_categories(paths[0]), make_labeller, config, bar.update)
    return len(records), *found


def _shards(records: str) -> tuple[Place, list[Place]]:
    """Return the shards of a folder, or of one below it."""
    from pipeline.store.shards import list_shards
    from pipeline.store.storage import list_files, to_place

    place = to_place(records)
    for below in (place, place / "grounding", place / "detection"):
        if list_files(below, "part-*.parquet"):
            return below, list_shards(below)
    return place, list_shards(place)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


run_if_program(__name__)
