"""The folder of a model in training: where it starts from, how it is written, what a killed training left in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from glip_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from glip_model.glip import GLIP
from glip_model.initialise import initialise_pretrained
from glip_model.text_encoder import load_tokenizer
from glip_model.whole_files import ASIDE_FOLDER
from pipeline.errors import TrainingError
from pipeline.store.atomic import storage_errors
from pipeline.store.folders import local_folder, sent_folder
from pipeline.store.storage import Place, remove, remove_folder
from pipeline.training.divergence import DIVERGED_FILE
from pipeline.training.settings import TrainingSettings

SCRATCH_FOLDER = ".ray-train"
"""Ray Train's own notes, which every node must see; removed in the end."""
AVERAGE_FOLDER = "average"
"""Model of the moving average of the weights, where the raw ones are the model."""
BEST_FOLDER = "best"
"""Model that scored best of those that were evaluated during training."""
SAMPLES_FOLDER = "samples"
"""Pictures drawn at evaluations during training, a folder for each."""


def starting_model(config: TrainingSettings, teacher: Place | None) -> tuple[GLIP, Any]:
    """Return the model to start from, and its tokenizer: the teacher's, or a fresh one with pretrained parts.

    Raises:
        TrainingError: weights are missing or do not fit.
    """
    try:
        if teacher is not None:
            with local_folder(teacher) as folder:
                model = GLIP.from_pretrained(folder)
                return model, load_tokenizer(folder, model.config.text.vocab_size)
        torch.manual_seed(config.seed)  # the same start in every worker
        model = GLIP(config.model.glip_config())
        initialise_pretrained(model, config.model.backbone_weights, config.model.text_weights)
        source = config.model.text_weights
        name = model.config.text.name if source in (None, "hub") else str(source)
        return model, load_tokenizer(name, model.config.text.vocab_size)
    except (ValueError, OSError) as error:
        where = f"{teacher} cannot be loaded" if teacher is not None else "section model of params.yaml"
        raise TrainingError(f"{where}: {error}") from error


def remove_unfinished(out: Place, is_resumed: bool = False) -> None:
    """Remove the model of an earlier training and what a killed one left; checkpoints stay.

    Results of evaluations stay as well where training resumes.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE, DIVERGED_FILE):
        remove(out / name)
    evaluated = () if is_resumed else (out / BEST_FOLDER, out / SAMPLES_FOLDER)
    left = out.glob(f"{ASIDE_FOLDER}*") if isinstance(out, Path) else ()  # in a store nothing is half-written
    for folder in (out / SCRATCH_FOLDER, out / AVERAGE_FOLDER, *evaluated, *left):
        remove_folder(folder)


def save_model(model: GLIP, tokenizer: Any, out: Place) -> None:
    """Write a model's folder, in a store as well; the weights come last, so that no half of a model can be loaded.

    Raises:
        StorageError: it cannot be written.
    """
    with sent_folder(out, WEIGHTS_FILE) as folder, storage_errors(out):
        model.save_pretrained(folder, tokenizer)
