"""What the gain of self-training is made of: a round is run again and again, each time with one thing changed.

glip ablations                        all of pipeline/training/recipes/ablations, judged on dev → metrics/ablations.csv
glip ablations base no_competition    some of them, by name; the table keeps its other rows
glip ablations own.yaml               one of your own: a params file whose ``rounds`` names the one round to run

Each goes on from the records, phrases and models of the run in this folder (make repro); one that changes ``prepare``,
such as the number of web pairs, has records and phrases of its own. What is finished stays; run again, it makes
only what is missing. glip report shows the table, and novel AP over web pairs.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import add_params, run_if_program, run_module
from pipeline.errors import ConfigError, MissingInputError

if TYPE_CHECKING:
    from pipeline.phrases.settings import PhrasesConfig
    from pipeline.prepare.settings import PrepareConfig
    from pipeline.pseudo_labels.settings import PseudoLabelConfig

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parents[1] / "pipeline/training/recipes/ablations"
MEASURES = {
    "novel AP": ("detection", "novel", "AP"),
    "base AP": ("detection", "base", "AP"),
    "novel R@1": ("grounding", "novel", "R@1"),
    "base R@1": ("grounding", "base", "R@1"),
}
LABELS = {
    "novel precision": "precision_novel",
    "novel recall": "recall_novel",
    "base precision": "precision_base",
    "base recall": "recall_base",
}
"""Columns of the labels' quality on dev, in percent, at the threshold in use."""
COUNTS = {"web pairs": "rows", "labelled pairs": "rows_labelled", "boxes": "boxes"}
"""Columns of how many labels there are to learn from."""
REFERENCES = ("base", "round_2")
"""The rounds as the run has them, which the others are compared with."""


@dataclass(frozen=True)
class Ablation:
    """One round with something changed."""

    name: str
    file: Path
    what: str
    """The first comment of the file."""
    round: str
    teacher: str
    labelling: PseudoLabelConfig
    prepare: PrepareConfig
    phrases: PhrasesConfig
    settings: str
    """All settings, as YAML."""
    needs_calibration: bool
    learns_from_labels: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    shown = "(default: %(default)s)"
    parser.add_argument("files", nargs="*", metavar="NAME", help="names below recipes/ablations, or params files (all)")
    parser.add_argument("--out", type=Path, default=Path("ablations"), help=f"folder, a folder for each in it {shown}")
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"records, phrases, labels of the run {shown}")
    parser.add_argument("--models", type=Path, default=Path("models"), help=f"its models {shown}")
    parser.add_argument("--table", type=Path, default=Path("metrics/ablations.csv"), help=f"what was found {shown}")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Run what is missing, and write every row as soon as it is known."""
    ablations = [_read(path) for path in _files(args.files)]
    for number, ablation in enumerate(ablations, 1):
        logger.info("ablations %d of %d: %s (%s)", number, len(ablations), ablation.name, ablation.what)
        row = _row(ablation, _measure(ablation, args), _labels(ablation, args))
        logger.info("  %s", ", ".join(f"{name} {row[name]}" for name in MEASURES))
        _write_row(args.table, row)
    return f"ablations: {len(ablations)} → {args.table}"


def _write_row(table: Path, row: dict[str, Any]) -> None:
    """Put a row into the table, in place of an earlier one of its name."""
    from pipeline.store.atomic import write_csv

    rows: dict[str, dict[str, Any]] = {}
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            rows = {each["name"]: each for each in csv.DictReader(file)}
    rows[row["name"]] = row
    ordered = sorted(rows.values(), key=lambda each: (each["round"], each["name"] not in REFERENCES, each["name"]))
    write_csv(table, [list(row), *([each.get(column, "") for column in row] for each in ordered)])


def _files(asked: Sequence[str]) -> list[Path]:
    known = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    found = [known.get(name, Path(name)) for name in asked] or list(known.values())
    for path in found:
        if not path.is_file():
            raise MissingInputError(f"{path}: no such file, nor one of the ablations: {', '.join(known)}")
    return found


def _read(path: Path) -> Ablation:
    from pipeline.pseudo_labels.settings import of_round
    from pipeline.settings import load_all, to_yaml

    settings = load_all(path)
    if len(settings.rounds) != 1:
        raise ConfigError(f"{path}: rounds has {', '.join(settings.rounds) or 'none'}; expected the one round to run")
    [(name, each)] = settings.rounds.items()
    if name not in settings.train.runs:
        raise ConfigError(f"{path}: train.runs has no {name!r}; runs: {', '.join(settings.train.runs)}")
    lines = path.read_text(encoding="utf-8").splitlines()
    return Ablation(
        name=path.stem,
        file=path,
        what=next((line.removeprefix("#").strip() for line in lines if line.startswith("#")), ""),
        round=name,
        teacher=each.teacher,
        labelling=of_round(settings.pseudo_label, settings.rounds, name),
        prepare=settings.prepare,
        phrases=settings.phrases,
        settings=to_yaml(settings),
        needs_calibration=settings.train.samples.pseudo_weight == "precision",
        learns_from_labels=settings.train.runs[name].learns_from_labels,
    )


def _measure(ablation: Ablation, args: argparse.Namespace) -> dict[str, Any]:
    """Run an ablation's stages, or read what they wrote before; return their metrics by stage."""
    from pipeline.store.provenance import describe_model, fingerprint
    from pipeline.store.resume import begin_work

    teacher, out = args.models / ablation.teacher, args.out / ablation.name
    identity = fingerprint({"settings": ablation.settings, "teacher": describe_model(teacher)})
    begin_work(out / "fingerprint.json", identity)
    if not (out / "model.json").is_file():
        for words in _stages(ablation, args, teacher, out):
            run_module([*words, "--params", ablation.file], ablation.name)
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))}


def _stages(ablation: Ablation, args: argparse.Namespace, teacher: Path, out: Path) -> Iterator[list[object]]:
    """Yield the commands of a round's stages, but for what the run has made with the same settings."""
    of_round = ["--round", ablation.round]
    records, phrases = args.data / "records", args.data / "phrases"
    if not _has_same(ablation, args.params, "prepare"):
        records = out / "records"
        yield ["stages.prepare", "--out", records, "--metrics", out / "prepare.json"]
    if not _has_same(ablation, args.params, "prepare", "phrases"):
        phrases = out / "phrases"
        made = ["--out", phrases, "--metrics", out / "phrases.json", "--curve", out / "phrase_frequency.csv"]
        yield ["stages.phrases", "--records", records / "web", *made]
    labels: list[object] = []
    if ablation.learns_from_labels:
        shards = _labels(ablation, args)
        if shards == out / "labels":
            web = ["--records", records / "web", "--phrases", phrases, "--human", records / "human"]
            made = ["--out", shards, "--metrics", out / "labels.json"]
            yield ["stages.pseudo_label", *web, "--teacher", teacher, *made, *of_round]
        labels = ["--pseudo-labels", shards]
        curve = out / "calibration.csv"
        yield [
            "stages.calibrate",
            *("--records", records / "dev/grounding", "--teacher", teacher),
            *("--out", curve, "--metrics", out / "calibration.json", *of_round),
        ]
        labels += ["--calibration", curve] if ablation.needs_calibration else []
    model = out / "model"
    start = ["--human", records / "human", *labels, "--teacher", teacher]
    yield ["stages.train_only", ablation.round, *start, "--out", model, "--metrics", out / "training.json"]
    judged = ["--records", records, "--out", out / "predictions", "--metrics", out / "model.json"]
    yield ["stages.evaluate", "--model", model, *judged]


def _labels(ablation: Ablation, args: argparse.Namespace) -> Path:
    """Return where the labels are that it learns from: those of the run where nothing would change them."""
    from pipeline.pseudo_labels.settings import of_round
    from pipeline.settings import load_all

    run = load_all(args.params)
    theirs = run.rounds.get(ablation.round)
    is_same = (
        theirs is not None
        and theirs.teacher == ablation.teacher
        and of_round(run.pseudo_label, run.rounds, ablation.round) == ablation.labelling
        and _has_same(ablation, args.params, "prepare", "phrases")
    )
    folder: Path = args.data / "pseudo_labels" / ablation.round if is_same else args.out / ablation.name / "labels"
    return folder


def _has_same(ablation: Ablation, params: Path, *sections: str) -> bool:
    """Tell whether it has the settings of the run in this folder in these sections, and so may take what they made."""
    from pipeline.settings import load_all

    run = load_all(params)
    return all(getattr(run, section) == getattr(ablation, section) for section in sections)


def _row(ablation: Ablation, found: dict[str, Any], labels: Path) -> dict[str, Any]:
    """Return a line of the table; what an ablation does not have is empty."""
    from pipeline.pseudo_labels.manifest import read_manifest, to_metrics

    dev = found["model"]["dev"]
    counts = to_metrics(list(read_manifest(labels).values())) if ablation.learns_from_labels else {}
    used = found.get("calibration", {}).get("at_min_score", {})
    return {
        "name": ablation.name,
        "what": ablation.what,
        "round": ablation.round,
        "min_score": ablation.labelling.min_score,
        **{name: counts.get(key) for name, key in COUNTS.items()},
        **{name: _percent(used.get(key)) for name, key in LABELS.items()},
        **{name: _first(dev.get(task, {}), part, measure) for name, (task, part, measure) in MEASURES.items()},
    }


def _first(sources: dict[str, Any], part: str, measure: str) -> float | None:
    """Return a measure of the first source that has the part."""
    return next((parts[part].get(measure) for parts in sources.values() if part in parts), None)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


run_if_program(__name__)
