"""Publish a model or labels on the Hugging Face hub, with a card that tells what they are.

    glip push models/round_2 --repo USER/NAME                    # weights, config, tokenizer, processor, code, card
    glip push data/pseudo_labels/round_1 --repo USER/NAME --type dataset     # shards as they are, and a card
    glip push models/round_2 --repo USER/NAME --dry-run pushed/  # write the folder, send nothing

The card of a model is made of its metrics, the calibration of the labels that it learned from, its recipe, what it was
trained on and a picture. Those of models/NAME are found beside it (metrics/models/NAME.json, params.yaml, reports/);
--metrics, --calibration and --picture name others. transformers loads the repository with trust_remote_code, or without
where this package is installed. Labels are read by datasets and shown by the hub's viewer.

The token is that of: hf auth login, or of HF_TOKEN. What is there already is not sent again. Private repositories
stay so; new ones are public unless --private is said.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import add_params, run_if_program
from pipeline.errors import ConfigError, MissingInputError

if TYPE_CHECKING:
    from pipeline.publishing.folder import Papers

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("source", help="folder or hub id of a model; folder or URL of labels")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository of the hub")
    parser.add_argument("--type", choices=("model", "dataset"), default="model", help="(default: %(default)s)")
    parser.add_argument("--licence", "--license", default="mit", help="as the hub names it (default: %(default)s)")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--metrics", type=Path, help="JSON of glip evaluate")
    parser.add_argument("--calibration", type=Path, help="JSON of the stage calibrate")
    parser.add_argument("--picture", type=Path, help="shown by the card")
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write the folder and send nothing")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Write the folder, and send it."""
    from pipeline.publishing.hub import check_name, send

    check_name(args.repo)
    if args.type == "dataset" and (args.metrics or args.calibration or args.picture):
        raise ConfigError("--metrics, --calibration and --picture belong to models")
    if args.dry_run:
        if args.dry_run.exists() and (not args.dry_run.is_dir() or any(args.dry_run.iterdir())):
            raise ConfigError(f"--dry-run {args.dry_run}: expected an empty folder, or none")
        args.dry_run.mkdir(parents=True, exist_ok=True)
        _write(args, args.dry_run)
        return f"push: would send {len(list(args.dry_run.iterdir()))} files → {args.dry_run}"
    with tempfile.TemporaryDirectory(prefix="glip-push-") as name:
        _write(args, Path(name))
        url = send(Path(name), args.repo, args.type, is_private=args.private, message=f"Push {args.type} by glip")
    return f"push: → {url}"


def _write(args: argparse.Namespace, out: Path) -> None:
    """Write what is pushed."""
    from glip_model.pretrained import resolve_folder
    from pipeline.publishing.folder import write_dataset, write_model
    from pipeline.store.storage import to_place

    if args.type == "dataset":
        write_dataset(to_place(args.source), args.repo, args.licence, out)
        return
    try:
        model = resolve_folder(args.source)
    except ValueError as error:
        raise MissingInputError(str(error)) from error
    write_model(model, args.repo, _papers(args, model), args.licence, out)


def _papers(args: argparse.Namespace, model: Path) -> Papers:
    """Return the papers of a model: those that are named, and those that are found."""
    from pipeline.publishing.folder import papers_beside

    papers = papers_beside(model, _recipe(args.params, model.name))
    named = {name: getattr(args, name) for name in ("metrics", "calibration", "picture") if getattr(args, name)}
    for kind in ("metrics", "calibration", "tuning", "picture"):
        path = named.get(kind) or getattr(papers, kind)
        logger.info("push: %s: %s", kind, path or "none")
    return replace(papers, **named)


def _recipe(params: Path, name: str) -> str:
    """Return the settings of the run that made a model of the graph, as YAML; an empty text for other models."""
    import yaml

    from pipeline.settings import load, to_yaml
    from pipeline.training.settings import TrainingSettings

    settings = load(params, TrainingSettings)
    if name not in settings.train.runs:
        return ""
    whole = yaml.safe_load(to_yaml(settings))
    train = {part: whole["train"][part] for part in ("optim", "samples")}
    return yaml.safe_dump(
        {"model": whole["model"], "train": {**train, "runs": {name: whole["train"]["runs"][name]}}}, sort_keys=False
    )


run_if_program(__name__)
