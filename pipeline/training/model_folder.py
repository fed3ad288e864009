"""The folder of a model in training: where it starts from, how it is written, what a killed training left in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from glip_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from glip_model.glip import GLIP
from glip_model.initialise import initialise_pretrained
from glip_model.text_encoder import load_tokenizer
from glip_model.whole_files import ASIDE_FOLDER
from pipeline.errors import TrainingError
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


def starting_model(config: TrainingSettings, teacher: Path | None) -> tuple[GLIP, Any]:
    """Return the model to start from, and its tokenizer: the teacher's, or a fresh one with pretrained parts.

    Raises:
        TrainingError: weights are missing or do not fit.
    """
    try:
        if teacher is not None:
            model = GLIP.from_pretrained(teacher)
            return model, load_tokenizer(teacher, model.config.text.vocab_size)
        torch.manual_seed(config.seed)  # the same start in every worker
        model = GLIP(config.model.glip_config())
        initialise_pretrained(model, config.model.backbone_weights, config.model.text_weights)
        source = config.model.text_weights
        name = model.config.text.name if source in (None, "hub") else str(source)
        return model, load_tokenizer(name, model.config.text.vocab_size)
    except (ValueError, OSError) as error:
        where = f"{teacher} cannot be loaded" if teacher is not None else "section model of params.yaml"
        raise TrainingError(f"{where}: {error}") from error


def remove_unfinished(out: Path, is_resumed: bool = False) -> None:
    """Remove the model of an earlier training and what a killed one left; checkpoints stay.

    What evaluations left stays as well where training goes on.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE, DIVERGED_FILE):
        (out / name).unlink(missing_ok=True)
    evaluated = () if is_resumed else (out / BEST_FOLDER, out / SAMPLES_FOLDER)
    for folder in (out / SCRATCH_FOLDER, out / AVERAGE_FOLDER, *evaluated, *out.glob(f"{ASIDE_FOLDER}*")):
        shutil.rmtree(folder, ignore_errors=True)
