"""Tune a model on annotated pictures of your own, and see what that was worth, and what it cost.

    glip finetune --data my_pictures/ --from models/glip_t --out models/mine
    glip finetune --data my_pictures/ --val other_day/ --from models/glip_t --out models/mine --replay records/
    glip predict photo.jpg --text "what you labelled." --model models/mine

--data is a folder of pictures with boxes, in COCO's format as Roboflow, CVAT, Label Studio and COCO's authors have it,
in Pascal VOC's, in YOLO's (data.yaml, obj.data, classes.txt), or as glip label writes them;
pipeline/prepare/readers/README.md has the names that are known. --dry-run says what is found.

What is judged: --val, or a part to judge by (valid/, instances_val*.json, ImageSets/Main/val.txt). Where there is
neither, 15 % of the pictures with boxes are held out; those that look alike stay on one side. As many again, where
there are 20 or more, choose when training stops (--no-early-stop trains to the end). Names are what the model is asked
for: "fire truck" rather than "cls_07". --rename cls_07="fire truck" changes them.

What is not to be forgotten: --keep is a folder of pictures with other names, like --data; a model, whose boxes of
common names on your own pictures stand in for the truth; "embedded" pictures that ship with the project (default); or
"none". The tuned weights are mixed with those before, so that other names lose at most --may-lose points of AP; half of
the --keep pictures choose the mixture, the others judge it. More that helps: --replay learns on with other records,
--other-names asks for names of theirs that your pictures do not show, --distil keeps what the starting model says of
these, --tuning lora learns small changes (pip install 'glip-self-training[tune]').

Beside the model lie card.md, finetune.json and mistakes/: what it takes for what, and where it does worst. Length and
sizes follow from the data and the model. Interrupted, the same command goes on. The work folder, OUT/work, may be
deleted afterwards.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.cli import add_params, run_if_program
from pipeline.errors import ConfigError, MissingInputError

if TYPE_CHECKING:
    from pipeline.evaluation.benchmark import Benchmark
    from pipeline.evaluation.dev_set import DevSet
    from pipeline.evaluation.settings import EvaluateConfig
    from pipeline.prepare.layouts import Layout
    from pipeline.store.storage import Place
    from pipeline.training.averaging import Trial
    from pipeline.training.finetune import Choices
    from pipeline.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

MEASURES = ("AP", "AP50", "AP75")
EMBEDDED, NOTHING = "embedded", "none"
"""What --keep may say besides places."""
TUNED = "tuned"
"""Folder of the work folder for the model as it was trained."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    shown = "(default: %(default)s)"
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--data", required=True, help="folder or URL of annotated pictures")
    add("--val", help="folder or URL of annotated pictures to judge by (default: a part of --data)")
    add("--from", dest="start", required=True, metavar="MODEL", help="folder, URL or hub id to start from")
    add("--out", required=True, help="folder or URL for the tuned model")
    add("--rename", action="append", default=[], metavar="OLD=NEW", help="call a category so; or a YAML file of these")
    add("--keep", default=EMBEDDED, metavar="FOLDER", help=f"other names: pictures, a model, or none {shown}")
    add("--may-lose", type=float, default=3.0, metavar="POINTS", help=f"AP of other names that may go {shown}")
    add("--average", action=switch, default=True, help=f"mix the weights with those before {shown}")
    add("--replay", metavar="FOLDER", help="folder or URL of records to learn on with: human or pseudo-labels")
    add("--replay-share", type=float, default=0.3, help=f"of the samples, with --replay {shown}")
    add("--other-names", type=int, metavar="N", help="names of other data in a prompt (default: 0, with --distil 20)")
    add("--distil", type=float, default=0.0, metavar="WEIGHT", help="keep what the starting model says of these names")
    ways = ("full", "linear", "prompt", "lora")
    add("--tuning", choices=ways, default="full", help="what is trained (default: all of it)")
    add("--augment", action="store_true", help="vary colours, cuts and sizes (default: as train.samples.augment says)")
    add("--early-stop", action=switch, default=True, help=f"stop when it gets no better, take the best {shown}")
    add("--steps", type=int, help="optimiser steps at most (default: by the number of pictures)")
    add("--learning-rate", type=float, help="(default: 0.0001, of prompt 0.05, of lora 0.001)")
    add("--batch-size", type=int, default=8, help=f"pictures a step {shown}")
    add("--workers", type=int, default=1, help=f"processes, one for each GPU; 0 trains in this one {shown}")
    add("--val-share", type=float, default=0.15, help=f"held out to judge by {shown}")
    add("--work", help="folder or URL for records and predictions (default: OUT/work)")
    add("--dry-run", action="store_true", help="read and divide the data, train nothing")
    add_params(parser)


@dataclass(frozen=True)
class _Task:
    """What is tuned, where, and by what."""

    args: argparse.Namespace
    settings: Any
    """All of the params file."""
    start: Place
    out: Place
    work: Place
    layout: Layout
    choices: Choices
    renamed: Mapping[str, str]
    allowed: tuple[str, ...]
    judging: EvaluateConfig
    replay: Place | None

    @property
    def is_chosen(self) -> bool:
        """Whether pictures choose when to stop, or how much of the tuned weights to take."""
        return self.choices.stops_early or (self.args.average and self.args.keep != NOTHING)


def run(args: argparse.Namespace) -> str:
    """Prepare, judge, tune, choose, judge again."""
    from pipeline.ray_session import ray_session
    from pipeline.store.resume import alone_in
    from pipeline.training.finetune import with_length

    _check(args)
    task = _task(args)
    with alone_in(task.out), ray_session():
        config, counts = _read(task)
        if args.dry_run:
            return f"finetune: would learn from {counts['train']} pictures, judged on {counts['validation']} others"
        kept = _read_others(task)
        config = with_length(config, counts["train"])
        before, _ = _judge(task, task.start, "before", kept is not None)
        trained = _train(task, config, counts, kept is not None)
        trials = _save_interpolated(task, counts, kept is not None)
        after, benchmark = _judge(task, task.out, "after", kept is not None)
    _write_results(task, config, trained, trials, (before, after), (counts, kept), benchmark)
    print(f"{counts['train']} pictures, {trained['steps']} steps; judged on {counts['validation']} others")
    for name, found in (("before", before), ("after", after)):
        print(f"  {name:6} " + "  ".join(f"{measure} {found.get(measure, 0.0):5.1f}" for measure in MEASURES))
    lost = f", other names {before['other']:.1f} → {after['other']:.1f}" if kept else ""
    over = " (more than --may-lose)" if kept and before["other"] - after["other"] > args.may_lose else ""
    print(f"own AP {before.get('AP', 0.0):.1f} → {after.get('AP', 0.0):.1f}{lost}{over}")
    return f"finetune → {task.out}"


def _check(args: argparse.Namespace) -> None:
    """Refuse numbers that are out of range."""
    if not 0 < args.val_share < 1:
        raise ConfigError(f"--val-share is {args.val_share}; expected a share between 0 and 1, such as 0.15")
    if args.steps is not None and args.steps < 1:
        raise ConfigError(f"--steps is {args.steps}; expected at least 1")
    if args.learning_rate is not None and not 0 < args.learning_rate < math.inf:
        raise ConfigError(f"--learning-rate is {args.learning_rate}; expected a number above 0, such as 0.0001")
    if not 0 < args.replay_share < 1:
        raise ConfigError(f"--replay-share is {args.replay_share}; expected a share between 0 and 1, such as 0.3")
    for option, value in (("--may-lose", args.may_lose), ("--distil", args.distil)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"{option} is {value}; expected a number of at least 0")
    if args.other_names is not None and args.other_names < 0:
        raise ConfigError(f"--other-names is {args.other_names}; expected at least 0")
    if (args.other_names or args.distil) and args.keep == NOTHING and not args.replay:
        raise ConfigError("--other-names and --distil take their names from --replay or --keep; name one of them")
    if args.tuning == "lora":
        import peft  # noqa: F401  # a missing one is told before anything is read


def _task(args: argparse.Namespace) -> _Task:
    from pipeline.evaluation.own_set import own_settings
    from pipeline.prepare.class_names import read_renames
    from pipeline.prepare.layouts import find_layout
    from pipeline.prepare.own_data import judged_by
    from pipeline.settings import load_all
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.shards import list_shards
    from pipeline.store.storage import is_folder, to_place
    from pipeline.training.finetune import OTHER_NAMES, Choices

    start, out, data = _start(args.start), to_place(args.out), to_place(args.data)
    if out.resolve() == start:
        raise ConfigError(f"--out is {out}, the model to start from; name another folder")
    layout = find_layout(data)
    places = [str(to_place(place).resolve()) for place in (args.data, args.val) if place]
    layout = judged_by(layout, to_place(args.val)) if args.val else layout
    logger.info("finetune: %s", layout.description)
    replay = to_place(args.replay).resolve() if args.replay else None
    if replay is not None:
        replay = replay / "detection" if is_folder(replay / "detection") else replay
        list_shards(replay)  # a folder without any is told before work begins
    settings = load_all(args.params)
    choices = Choices(
        tuning=args.tuning,
        steps=args.steps,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        workers=args.workers,
        replay_share=args.replay_share if args.replay else 0.0,
        other_names=(OTHER_NAMES if args.distil else 0) if args.other_names is None else args.other_names,
        distillation=args.distil,
        is_augmented=args.augment,
        stops_early=args.early_stop,
    )
    return _Task(
        args=args,
        settings=settings,
        start=start,
        out=out,
        work=to_place(args.work) if args.work else out / "work",
        layout=layout,
        choices=choices,
        renamed=read_renames(args.rename),
        allowed=allowed_roots((*places, *settings.image_roots)),
        judging=own_settings(settings.evaluate, max(1, args.workers)),
        replay=replay,
    )


def _start(name: str) -> Place:
    """Return the folder of the model to start from."""
    from glip_model.checkpoint import WEIGHTS_FILE
    from glip_model.pretrained import resolve_folder
    from pipeline.store.storage import exists, to_place
    from pipeline.store.urls import is_url

    try:
        folder = to_place(name) if is_url(name) else resolve_folder(name)
    except ValueError as error:
        raise ConfigError(f"--from {error}") from error
    if not exists(folder / WEIGHTS_FILE):
        raise MissingInputError(
            f"--from {folder}: holds no {WEIGHTS_FILE}; published checkpoints: glip convert FILE DIR"
        )
    return folder.resolve()


def _read(task: _Task) -> tuple[TrainingSettings, dict[str, int]]:
    """Write the records; return the settings of the training and the pictures of every part."""
    from glip_model.checkpoint import read_config
    from glip_model.text_encoder import load_tokenizer
    from pipeline.prepare.own_data import read_own
    from pipeline.settings import load
    from pipeline.store.folders import local_folder
    from pipeline.training.finetune import finetune_config
    from pipeline.training.settings import TrainingSettings

    try:
        with local_folder(task.start) as folder:
            sizes = read_config(folder)
            tokenizer = load_tokenizer(folder, sizes.text.vocab_size)
    except ValueError as error:
        raise ConfigError(f"--from {task.start}: not usable as a model: {error}") from error
    config = finetune_config(load(task.args.params, TrainingSettings), sizes, task.choices)
    counts = read_own(
        task.settings.prepare,
        task.layout,
        config.seed,
        task.work,
        task.allowed,
        tokenizer=tokenizer,
        max_tokens=sizes.text.max_tokens,
        renamed=task.renamed,
        share=task.args.val_share,
        is_chosen_among=task.is_chosen,
    )
    return config, counts


def _read_others(task: _Task) -> str | None:
    """Write the records of other names; return in words what they are, None where there are to be none."""
    from glip_model.checkpoint import WEIGHTS_FILE
    from pipeline.prepare import own_data
    from pipeline.store.storage import exists, to_place

    keep, allowed, layout = task.args.keep, task.allowed, None
    if keep == NOTHING:
        return None
    if keep == EMBEDDED:
        layout, told = own_data.EMBEDDED, "pictures that ship with the project"
    elif exists(to_place(keep) / WEIGHTS_FILE):
        _stand_in(task)
        told = f"what {keep} finds in your pictures, which stands in for the truth"
    else:
        layout = own_data.records_layout(to_place(keep))
        allowed = (str(to_place(keep).resolve()), *allowed)
        told = f"{keep} ({layout.description})"
    counts = own_data.read_others(task.settings.prepare, layout, task.settings.seed, task.work, allowed)
    told = f"{counts['validation']} pictures of {counts['names']} names: {told}"
    logger.info("finetune: other names by %s", told)
    return told


def _stand_in(task: _Task) -> None:
    from glip_model.predictor import GLIPPredictor
    from pipeline.evaluation.stand_in import write_stand_in
    from pipeline.prepare.division import TRAIN
    from pipeline.prepare.embedded.sprites import load_concepts
    from pipeline.prepare.own_data import READ_OTHER
    from pipeline.store.folders import local_folder
    from pipeline.store.storage import remove_folder, to_place

    with local_folder(to_place(task.args.keep)) as folder:
        predictor = GLIPPredictor.from_pretrained(folder, precision=task.judging.precision)
    records, out = task.work / "records" / "dev", task.work / READ_OTHER
    remove_folder(out)
    min_score = task.settings.pseudo_label.min_score
    write_stand_in(predictor, records, list(load_concepts()), task.judging, min_score, out / TRAIN, task.allowed)


def _judge(task: _Task, model: Place, name: str, has_others: bool) -> tuple[dict[str, float], Benchmark]:
    """Return COCO's measures on the pictures held out, in percent, with ``other`` names' AP; and what judged."""
    from pipeline.evaluation.own_set import judge_own

    def judge(records: str) -> tuple[dict[str, float], Benchmark]:
        out = task.work / "predictions" / records / name
        return judge_own(task.judging, model, task.work / records, out, task.allowed)

    found, benchmark = judge("records")
    return found | ({"other": judge("other")[0].get("AP", 0.0)} if has_others else {}), benchmark


def _train(task: _Task, config: TrainingSettings, counts: Mapping[str, int], has_others: bool) -> dict[str, Any]:
    """Train to the end, unless that is done; return its metrics."""
    from pipeline.prepare.division import CHOICE
    from pipeline.store.shards import holds_detections, list_shards, read_categories
    from pipeline.training.finetune import train_once
    from pipeline.training.job import Paths

    names: tuple[str, ...] = ()
    if task.choices.other_names:
        shards = list_shards(task.replay or task.work / "other" / CHOICE)
        if not holds_detections(shards[0]):
            raise ConfigError(f"--other-names: {task.replay} has captions and no names; take shards of category boxes")
        names = tuple(category.name for category in read_categories(shards[0]))
    paths = Paths(
        human=(task.work / "records/human").resolve(),
        pseudo_labels=None,
        teacher=task.start,
        out=(task.work / TUNED).resolve(),
        allowed=task.allowed,
        replay=task.replay,
        other_names=names,
    )
    own, _ = _choosers(task, counts, has_others)
    return train_once(config, paths, task.work / "losses.csv", own if task.choices.stops_early else None)


def _choosers(task: _Task, counts: Mapping[str, int], has_others: bool) -> tuple[DevSet, DevSet | None]:
    """Return what chooses among models: by own names, and by others."""
    from pipeline.evaluation.dev_set import DevSet

    folders = [task.work / "records" / ("choose" if "choose" in counts else "dev"), task.work / "other" / "choose"]
    rows = task.settings.train.evaluate_rows
    own, other = (DevSet(folder.resolve(), task.judging, rows, 0, task.allowed) for folder in folders)
    return own, other if has_others else None


def _save_interpolated(task: _Task, counts: Mapping[str, int], has_others: bool) -> list[Trial]:
    """Write the model; return what was tried between the weights before and after, the chosen one first."""
    from pipeline.training.averaging import save_interpolated

    own, other = _choosers(task, counts, has_others)
    trials, keeps = save_interpolated(
        task.start, task.work / TUNED, own, other, task.args.may_lose if task.args.average else None, task.out
    )
    if not keeps:
        logger.warning(
            "finetune: whatever of the tuning is kept, other names lose more than --may-lose %g; this is what loses "
            "least. Try --replay, --distil 1, --tuning lora or linear",
            task.args.may_lose,
        )
    return trials


def _write_results(
    task: _Task,
    config: TrainingSettings,
    trained: Mapping[str, Any],
    trials: list[Trial],
    measured: tuple[dict[str, float], dict[str, float]],
    parts: tuple[dict[str, int], str | None],
    benchmark: Benchmark,
) -> None:
    """Write what lies beside the model."""
    from pipeline.report.card import Tuned, write_results

    (before, after), (counts, kept) = measured, parts
    optim, samples = config.train.optim, config.train.samples
    rates = {"seed": config.seed, "learning_rate": optim.learning_rate, "short_sides": samples.short_sides}
    tuned = Tuned(
        start=str(task.args.start),
        data=str(task.args.data),
        layout=task.layout.description,
        names=[category.name for category in benchmark.categories()],
        pictures=counts,
        is_chosen=task.is_chosen,
        kept=kept or "nothing was kept to judge them by",
        before=before,
        after=after,
        trained=trained,
        trials=[asdict(each) for each in trials],
        settings=asdict(task.choices) | rates,
    )
    write_results(task.out, tuned, benchmark, task.work / "predictions" / "records", "after")


run_if_program(__name__)
