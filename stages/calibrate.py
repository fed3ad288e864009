"""Measure pseudo-labels against human boxes at every score threshold, to choose `pseudo_label.min_score` from.

The curves give precision and recall for base and novel phrases, and how often the teacher finds what is not there.

Run: glip calibrate --records data/records/dev/grounding --teacher models/teacher \
    --out plots/calibration/round_1.csv --metrics metrics/calibration/round_1.json
"""

from __future__ import annotations

import argparse
import itertools
import os
from typing import TYPE_CHECKING

from pipeline.cli import add_params, at_least, progress, run_if_program
from pipeline.errors import MissingInputError

if TYPE_CHECKING:
    from pipeline.pseudo_labels.labeller import PseudoLabeller
    from pipeline.pseudo_labels.settings import PseudoLabelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", required=True, help="shards of human grounding data: a folder or a URL")
    parser.add_argument("--teacher", required=True, help="see pseudo_label")
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
    from pipeline.pseudo_labels.calibration import collect_samples, curves, summarise, write_curves
    from pipeline.pseudo_labels.decoding import PictureDecoder
    from pipeline.pseudo_labels.label_quality import label_quality, times_said
    from pipeline.pseudo_labels.labeller import PseudoLabeller
    from pipeline.pseudo_labels.settings import of_round
    from pipeline.pseudo_labels.teachers import open_teacher
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.filesystem import allowed_roots
    from pipeline.store.images import image_roots
    from pipeline.store.records import GroundingRecord
    from pipeline.store.shards import KIND, KIND_KEY, list_shards, read_metadata, read_shard
    from pipeline.store.storage import to_place

    settings = load_all(args.params)
    config: PseudoLabelConfig = of_round(settings.pseudo_label, settings.rounds, args.round)
    place = to_place(args.records)
    paths = list_shards(place)
    kind = read_metadata(paths[0]).get(KIND_KEY)
    if kind != KIND[GroundingRecord]:
        raise MissingInputError(
            f"--records {args.records}: holds {kind or 'no'} records; expected human grounding data, captions with "
            "boxes for their phrases, such as data/records/dev/grounding"
        )
    shards = (read_shard(path, GroundingRecord) for path in paths)
    records = list(itertools.islice(itertools.chain.from_iterable(shards), args.limit))
    limits = settings.prepare.max_image_pixels, config.decode_timeout_s
    roots = image_roots(place, allowed_roots(settings.image_roots))
    with PictureDecoder(*limits, os.cpu_count() or 1, roots) as decoder:

        def make_labeller(settings: PseudoLabelConfig) -> PseudoLabeller:
            return PseudoLabeller(open_teacher(args.teacher, precision=settings.precision), settings, decoder.decode)

        with progress(len(records), "calibrate", "rows") as bar:
            positive, negative = collect_samples(records, make_labeller, config, bar.update)
    if not positive:
        raise MissingInputError(f"{args.records}: no phrase has a true box to compare with")
    rows = curves(positive, negative)
    write_curves(rows, to_place(args.out))
    said = times_said(to_place(args.phrases)) if args.phrases else {}
    summary = summarise(rows, config.min_score) | {"rows": len(records), "phrases": len(positive)}
    summary |= label_quality(positive, config.min_score, said)
    if args.metrics:
        write_json(to_place(args.metrics), summary)
    used = summary["at_min_score"]
    precision, recall, alarms = (_percent(used[name]) for name in ("precision_all", "recall_all", "false_alarms"))
    figures = f"precision {precision}, recall {recall}, false alarms {alarms}"
    best = summary["best_f1_at"]["all"]
    return f"calibrate: at min_score {config.min_score:.2f} {figures}; best F1 at {best:.2f} → {args.out}"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


run_if_program(__name__)
