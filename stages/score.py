"""Score a file of detections as COCO's or LVIS's evaluator does, to the same numbers and many times faster.

glip score --protocol coco --annotations instances_val2017.json --predictions results.json
glip score --protocol lvis --annotations lvis_v1_val.json --predictions results.json        best 300 of a picture
glip score --protocol lvis-fixed --annotations lvis_v1_val.json --predictions results.json  best 10,000 of a category

Detections are a JSON list of {"image_id": …, "category_id": …, "bbox": [x, y, width, height], "score": …} in pixels.
Those of categories that the annotations do not list are left out, as the evaluators do. The table shows percent, --json
writes the same numbers from 0 to 1; one that has no ground truth to be measured by is "–" or null.

Both evaluators count whatever finds the annotation with id 0 as a false alarm. Where there is one, the numbers are
still theirs, and a warning says what they would be with another id.
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from pipeline.cli import run_if_program
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.evaluation.detection_set import DetectionSet
    from pipeline.evaluation.matching import Found

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("--protocol", required=True, choices=("coco", "lvis", "lvis-fixed"))
    parser.add_argument("--annotations", required=True, help="ground truth, JSON as of COCO or LVIS")
    parser.add_argument("--predictions", required=True, help="detections, JSON as above")
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="best detections that count: coco, of a picture and category (default: 100); lvis, of a picture, "
        "-1 for all (default: 300; lvis-fixed: -1)",
    )
    parser.add_argument(
        "--per-category",
        type=int,
        metavar="N",
        help="lvis: best detections of a category that count, -1 for all (default: -1; lvis-fixed: 10000)",
    )
    parser.add_argument("--json", metavar="OUT", help="file for the numbers")


def run(args: argparse.Namespace) -> None:
    """Read, score, print."""
    from pipeline.store.atomic import write_json
    from pipeline.store.storage import to_place

    metrics = _score(args)
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:{width}} {'–' if value is None else f'{100 * value:.2f}':>7}")
    if args.json:
        write_json(to_place(args.json), metrics)


def _score(args: argparse.Namespace) -> dict[str, float | None]:
    from pipeline.evaluation.results_json import read_annotations, read_results
    from pipeline.store.storage import to_place

    for option, count in (("--max-detections", args.max_detections), ("--per-category", args.per_category)):
        least = 1 if args.protocol == "coco" else -1
        if count is not None and (count < least or count == 0):
            raise ConfigError(f"{option} is {count}; expected at least 1" + (", or -1 for all" if least < 0 else ""))
    annotations = read_annotations(to_place(args.annotations), federated=args.protocol != "coco")
    found = read_results(to_place(args.predictions), annotations)
    if args.protocol == "coco" and args.per_category is not None:
        raise ConfigError("--per-category goes with --protocol lvis or lvis-fixed")
    metrics = _evaluate(args, annotations.detection_set, found)
    renumbered = annotations.detection_set.with_all_ids_counting()
    if renumbered is not None:
        logger.warning(
            "%s: an annotation has id 0, and the evaluators count what finds it as a false alarm; the numbers below do "
            "so too. With ids from 1 they would be %s; number the annotations from 1",
            args.annotations,
            _differences(metrics, _evaluate(args, renumbered, found)),
        )
    return metrics


def _evaluate(args: argparse.Namespace, truth: DetectionSet, found: Found) -> dict[str, float | None]:
    from pipeline.evaluation.coco import LIMITS, evaluate_coco
    from pipeline.evaluation.lvis import FIXED_AP, STANDARD, LvisProtocol, evaluate_federated

    if args.protocol == "coco":
        return evaluate_coco(truth, found, args.max_detections or LIMITS[-1]).metrics()
    default = STANDARD if args.protocol == "lvis" else FIXED_AP
    protocol = LvisProtocol(
        per_picture=_limit(args.max_detections, default.per_picture),
        per_category=_limit(args.per_category, default.per_category),
    )
    return evaluate_federated(truth, found, protocol).metrics()


def _differences(metrics: dict[str, float | None], others: dict[str, float | None]) -> str:
    """Return the numbers in percent that are others than in ``metrics``."""
    different = [
        f"{name} {100 * value:.2f}" for name, value in others.items() if value is not None and value != metrics[name]
    ]
    return ", ".join(different) or "the same here"


def _limit(asked: int | None, default: int | None) -> int | None:
    return default if asked is None else None if asked == -1 else asked


run_if_program(__name__)
