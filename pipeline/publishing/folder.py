"""What is pushed, as a folder: a model with its code and card, or shards as they are with theirs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, MissingInputError
from pipeline.publishing.dataset_card import dataset_card
from pipeline.publishing.model_card import PICTURE, ModelFacts, model_card
from pipeline.store.folders import local_folder
from pipeline.store.resume import find_manifest
from pipeline.store.shards import list_shards
from pipeline.store.storage import Place

CARD = "README.md"


@dataclass(frozen=True)
class Papers:
    """Files that tell of a model; None: there is none."""

    metrics: Path | None = None
    calibration: Path | None = None
    tuning: Path | None = None
    picture: Path | None = None
    recipe: str = ""
    """YAML of its settings."""


def papers_beside(model: Path, recipe: str = "") -> Papers:
    """Return the papers of a model of the graph, ``models/NAME``, or of ``glip finetune``, where they are."""
    run, name = model.resolve().parent.parent, model.resolve().name
    found = {
        "metrics": run / "metrics/models" / f"{name}.json",
        "calibration": run / "metrics/calibration" / f"{name}.json",
        "tuning": model / "finetune.json",
        "picture": run / "reports/side_by_side.png",
    }
    if not found["metrics"].is_file():
        found.pop("picture")  # it is of the graph's models
    return Papers(**{kind: path for kind, path in found.items() if path.is_file()}, recipe=recipe)


def write_model(model: Path, repository: str, papers: Papers, licence: str, out: Path) -> None:
    """Write all that a model's repository holds into an empty folder.

    Raises:
        ConfigError: the model cannot be read, or its papers.
        OSError: the folder cannot be written.
    """
    from PIL import Image

    from glip_model.glip import GLIP
    from glip_model.hugging_face.remote_code import add_remote_code
    from glip_model.text_encoder import load_tokenizer

    try:
        loaded = GLIP.from_pretrained(model)
        loaded.save_pretrained(out, load_tokenizer(model, loaded.config.text.vocab_size))
        add_remote_code(out)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if papers.picture is not None:
        try:
            with Image.open(papers.picture) as picture:
                picture.convert("RGB").save(out / PICTURE)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{papers.picture}: cannot be read as a picture: {error}") from error
    facts = ModelFacts(
        config=loaded.config,
        parameters=sum(parameter.numel() for parameter in loaded.parameters()),
        trained_on=loaded.trained_on,
        metrics=_read(papers.metrics),
        tuning=_read(papers.tuning),
        calibration=_read(papers.calibration),
        recipe=papers.recipe,
        licence=licence,
        has_picture=papers.picture is not None,
    )
    (out / CARD).write_text(model_card(repository, facts), encoding="utf-8")


def write_dataset(place: Place, repository: str, licence: str, out: Path) -> None:
    """Write all that a repository of labels holds into an empty folder: the shards as they are, linked where they may.

    Raises:
        MissingInputError: there are no shards.
        ShardError: they hold no labels, or one is broken.
        OSError: the folder cannot be written.
    """
    card = dataset_card(repository, place, licence)
    manifest = find_manifest(place)
    with local_folder(place) as folder:
        for name in [*(shard.name for shard in list_shards(place)), *([manifest.name] if manifest else [])]:
            _link(folder / name, out / name)
    (out / CARD).write_text(card, encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):  # of another disk, or of a system without links
        os.link(source.resolve(), target)
        return
    shutil.copyfile(source, target)


def _read(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(found).__name__}")
    return found
