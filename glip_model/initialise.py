"""Pretrained weights for the parts of a fresh model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from glip_model.backbone import fetch_timm_weights, load_backbone_weights
from glip_model.checkpoint import NAMED_PROBLEMS, check_finite, read_tensors
from glip_model.glip import GLIP
from glip_model.pretrained import resolve_source


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
        raise ValueError(f"{origin}: lacks {', '.join(sorted(report['missing_keys'])[:NAMED_PROBLEMS])}")
    body = model.text_encoder.body
    # Shapes do not reveal it: the number of heads, the activation and the norms' epsilon are in no weight.
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
    content = read_tensors(path, "weights")
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected a state dict (names to tensors), got something else")
    check_finite(content, path)
    return dict(content)
