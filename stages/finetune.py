"""Tune a model on annotated pictures of your own, and see what that was worth.

    glip finetune --data my_pictures/ --from models/glip_t --out models/mine
    glip predict photo.jpg --text "what you labelled." --model models/mine

--data is a folder of pictures with boxes, in COCO's format as Roboflow, CVAT, Label Studio and COCO's authors have it,
in Pascal VOC's, in Ultralytics' (data.yaml), or as glip label writes them; pipeline/prepare/readers/README.md has the
names that are known. --dry-run says what is found.

A part to judge by (valid/, instances_val*.json, ImageSets/Main/val.txt) is taken as it is. Where there is none, 15 % of
the pictures with boxes are held out; those that look alike stay on one side. Category names are what the model is asked
for, so name things as people do: "fire truck" rather than "cls_07". --from is a model of this project; published
checkpoints become one by glip convert.

The model is judged before and after, by COCO's AP on the pictures held out. Length and sizes follow from the data and
the model. --tuning linear or prompt moves a few weights alone: quicker, rarely as good. Interrupted, the same
command goes on. The work folder, OUT/work, may be deleted afterwards.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline.cli import add_params, run_if_program
from pipeline.errors import ConfigError, MissingInputError

if TYPE_CHECKING:
    from pipeline.evaluation.settings import EvaluateConfig
    from pipeline.prepare.layouts import Layout
    from pipeline.prepare.settings import PrepareConfig
    from pipeline.store.storage import Place

logger = logging.getLogger(__name__)

MEASURES = ("AP", "AP50", "AP75")
RESULT_FILE = "finetune.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("--data", required=True, help="folder or URL of annotated pictures")
    parser.add_argument(
        "--from", dest="start", required=True, metavar="MODEL", help="folder, URL or hub id to start from"
    )
    parser.add_argument("--out", required=True, help="folder or URL for the tuned model")
    parser.add_argument(
        "--tuning", choices=("full", "linear", "prompt"), default="full", help="what is trained (default: all of it)"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps (default: by the number of pictures)")
    parser.add_argument("--learning-rate", type=float, help="(default: 0.0001, of prompt 0.05)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures a step (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes, one for each GPU; 0 trains in this one (default: %(default)s)",
    )
    parser.add_argument("--val-share", type=float, default=0.15, help="held out to judge by (default: %(default)s)")
    parser.add_argument("--work", help="folder or URL for records and predictions (default: OUT/work)")
    parser.add_argument("--dry-run", action="store_true", help="read and divide the data, train nothing")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Prepare, judge, tune, judge again."""
    from glip_model.checkpoint import read_config
    from glip_model.text_encoder import load_tokenizer
    from pipeline.prepare.division import check_names, divide, tell_of_unused
    from pipeline.prepare.job import prepare
    from pipeline.prepare.layouts import find_layout, picture_files
    from pipeline.ray_session import ray_session
    from pipeline.settings import load, load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.filesystem import allowed_roots
    from pipeline.store.folders import local_folder
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place
    from pipeline.training.finetune import RUN, Choices, finetune_config, with_length
    from pipeline.training.job import Paths, train
    from pipeline.training.settings import TrainingSettings

    start, out, data = _start(args.start), to_place(args.out), to_place(args.data)
    if out.resolve() == start:
        raise ConfigError(f"--out is {out}, the model to start from; name another folder")
    if not 0 < args.val_share < 1:
        raise ConfigError(f"--val-share is {args.val_share}; expected a share between 0 and 1, such as 0.15")
    if args.steps is not None and args.steps < 1:
        raise ConfigError(f"--steps is {args.steps}; expected at least 1")
    if args.learning_rate is not None and not 0 < args.learning_rate < math.inf:
        raise ConfigError(f"--learning-rate is {args.learning_rate}; expected a number above 0, such as 0.0001")
    work = to_place(args.work) if args.work else out / "work"
    layout = find_layout(data)
    logger.info("finetune: %s", layout.description)
    try:
        with local_folder(start) as folder:
            sizes = read_config(folder)
            tokenizer = load_tokenizer(folder, sizes.text.vocab_size)
    except ValueError as error:
        raise ConfigError(f"--from {start}: not usable as a model: {error}") from error
    choices = Choices(args.tuning, args.steps, args.learning_rate, args.batch_size, args.workers)
    settings = load_all(args.params)
    config = finetune_config(load(args.params, TrainingSettings), sizes, choices)
    judging = _judging(settings.evaluate, max(1, args.workers))
    with alone_in(out), ray_session():
        preparing = _preparing(settings.prepare, layout)
        check = partial(check_names, tokenizer=tokenizer, max_tokens=sizes.text.max_tokens)
        roots = (str(data.resolve()), *settings.image_roots)
        prepare(preparing, config.seed, work / "read", check, roots)
        allowed = allowed_roots(roots)
        counts = divide(work / "read", work / "records", args.val_share, preparing.max_image_pixels, allowed)
        tell_of_unused(picture_files(layout), work / "records")
        if args.dry_run:
            return f"finetune: would learn from {counts['train']} pictures, judged on {counts['validation']} others"
        config = with_length(config, counts["train"])
        before = _judge(judging, start, work, allowed, "before")
        paths = Paths(
            human=(work / "records/human").resolve(),
            pseudo_labels=None,
            teacher=start,
            out=out.resolve(),
            allowed=allowed,
        )
        trained = train(RUN, config, paths, work / "losses.csv")
        after = _judge(judging, out, work, allowed, "after")
    write_json(out / RESULT_FILE, {"before": before, "after": after, "pictures": counts, **trained})
    print(f"{counts['train']} pictures, {trained['steps']} steps; judged on {counts['validation']} others")
    for name, found in (("before", before), ("after", after)):
        print(f"  {name:6} " + "  ".join(f"{measure} {found.get(measure, 0.0):5.1f}" for measure in MEASURES))
    return f"finetune → {out}"


def _start(name: str) -> Place:
    """Return the folder of the model to start from."""
    from glip_model.checkpoint import WEIGHTS_FILE
    from glip_model.pretrained import resolve_folder
    from pipeline.store.filesystem import is_url
    from pipeline.store.storage import exists, to_place

    try:
        folder = to_place(name) if is_url(name) else resolve_folder(name)
    except ValueError as error:
        raise ConfigError(f"--from {error}") from error
    if not exists(folder / WEIGHTS_FILE):
        raise MissingInputError(
            f"--from {folder}: holds no {WEIGHTS_FILE}; published checkpoints: glip convert FILE DIR"
        )
    return folder.resolve()


def _preparing(base: PrepareConfig, layout: Layout) -> PrepareConfig:
    """Return settings that prepare the data and nothing else."""
    return replace(
        base,
        data_root=".",
        human=layout.train,
        web=(),
        dev=layout.validation,
        test=(),
        held_out=(),
        mixtures={},
        pictures="reference",
        max_reject_share=1.0,  # what is left out is told; few pictures are better than none
    )


def _judging(base: EvaluateConfig, workers: int) -> EvaluateConfig:
    """Return settings that judge a model by what was held out."""
    return replace(
        base,
        splits=("dev",),
        num_actors=workers,
        max_prompt_categories=1000,  # as many as fit into a prompt, as in training
        one_prompt_categories=0,
        max_prompt_categories_by_source={},
    )


def _judge(config: EvaluateConfig, model: Place, work: Place, allowed: Sequence[str], name: str) -> Mapping[str, float]:
    """Return COCO's measures on the pictures held out, in percent."""
    from pipeline.evaluation.job import predict_benchmarks
    from pipeline.evaluation.results import score_predictions
    from pipeline.evaluation.scoring import ALL

    out = work / "predictions" / name
    [benchmark] = predict_benchmarks(config, model, work / "records", out, allowed)
    return score_predictions(benchmark, out).metrics.get(ALL, {})


run_if_program(__name__)
