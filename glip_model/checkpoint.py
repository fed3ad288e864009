"""Models on disk: weights and config as one folder, and pretrained weights for the parts of a fresh model."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glip_model.backbone import fetch_timm_weights, load_backbone_weights
from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.pretrained import resolve_folder, resolve_source

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_NAMED_PROBLEMS = 20
"""Problems that a message names; a wholly different model would fill pages."""


def save_model(model: GLIP, folder: str | Path, tokenizer: Any = None) -> None:
    """Write config, tokenizer and weights; a reader of the folder needs nothing else.

    Each file appears whole or not at all, the weights last.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(model.config.to_dict(), indent=2, sort_keys=True) + "\n"
    _write_whole(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    _write_whole(folder / WEIGHTS_FILE, lambda path: save_file(weights, path, metadata={"format": "pt"}))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.touch()
    mode = aside.stat().st_mode  # as the user's umask has it; safetensors makes its files private
    try:
        write(aside)
        aside.chmod(mode)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load_model(name: str | Path, revision: str | None = None) -> GLIP:
    """Read a folder that ``save_model`` wrote, or such a one on the hub.

    Args:
        name: path, ``package:`` path or hub id.
        revision: branch, tag or commit of a hub id.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        ValueError: a file is missing or broken, or names and shapes do not fit the config.
    """
    folder = resolve_folder(name, revision)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise ValueError(f"{folder}: no {file}; expected a folder written by save_pretrained")
    try:
        model = GLIP(GLIPConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))))
        weights = load_file(folder / WEIGHTS_FILE)
    except (ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not readable as a model: {error}") from error
    load_strictly(model, weights, str(folder))
    return model.eval()


def load_strictly(model: GLIP, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights under our own names; raise ValueError that names missing, unknown and misshapen ones."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        named = "; ".join(problems[:_NAMED_PROBLEMS]) + ("; …" if len(problems) > _NAMED_PROBLEMS else "")
        raise ValueError(f"{origin}: {len(problems)} tensors do not fit the model: {named}")
    model.load_state_dict(dict(weights))


def initialise_pretrained(model: GLIP, backbone_weights: str | None, text_weights: str | None) -> None:
    """Fill backbone and text encoder of a fresh model with pretrained weights.

    Args:
        model: changed in place.
        backbone_weights: ``timm`` (the weights of ``config.backbone.timm_name``, or those that the published Swin
            started from, from the hub), a local ``.pth`` or ``.safetensors`` file or its ``package:`` path, or None
            to keep random weights.
        text_weights: ``hub`` (``config.text.name``), a local folder or its ``package:`` path, or None.

    Raises:
        ValueError: a source is missing, unreadable, or does not fit.
    """
    if backbone_weights == "timm":
        weights, origin = fetch_timm_weights(model.config.backbone)
        load_backbone_weights(model.backbone, weights, origin)
    elif backbone_weights is not None:
        load_backbone_weights(model.backbone, _read_weights(resolve_source(backbone_weights)), backbone_weights)
    if text_weights is not None:
        _load_text_weights(model, model.config.text.name if text_weights == "hub" else text_weights)


def _load_text_weights(model: GLIP, origin: str) -> None:
    from transformers import BertModel

    source: Any = BertModel
    try:
        with _quiet_transformers():  # it reports weights that are left out, such as a pooler's
            pretrained, report = source.from_pretrained(
                resolve_source(origin), add_pooling_layer=False, output_loading_info=True
            )
    except OSError as error:
        raise ValueError(f"{origin}: no text encoder could be loaded from there: {error}") from error
    if report["missing_keys"]:  # transformers would leave them random
        raise ValueError(f"{origin}: lacks {', '.join(sorted(report['missing_keys'])[:_NAMED_PROBLEMS])}")
    body = model.text_encoder.body
    # Shapes would not tell: the number of heads, the activation and the norms' epsilon are in no weight.
    for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        found, expected = getattr(pretrained.config, name), getattr(body.config, name)
        if found != expected:
            raise ValueError(f"{origin}: its {name} is {found}, the text settings make it {expected}")
    try:
        body.load_state_dict(pretrained.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{origin}: does not fit the text settings: {error}") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict, bare or under the key ``state_dict`` or ``model``."""
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        # Tensors and plain containers alone: a pickle from elsewhere must not run code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not readable as weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected a state dict (names to tensors), got something else")
    return dict(content)
