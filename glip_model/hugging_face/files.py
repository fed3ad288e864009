"""Files of a model's folder for transformers: keys of config.json, and processor_config.json. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glip_model.config import GLIPConfig

MODEL_TYPE = "glip"
MODEL_CLASS = "GLIPForZeroShotObjectDetection"
PROCESSOR_FILE = "processor_config.json"
KEYS = frozenset({"model_type", "architectures", "auto_map", "dtype", "transformers_version"})
"""Entries of config.json that are no settings of the model."""
_OF_BACKBONE = ("bgr", "pixel_mean", "pixel_std")
_OF_MODEL = (
    "test_short_side",
    "test_long_side",
    "size_divisor",
    "num_levels",
    "anchor_scale",
    "inclusive_corners",
    "score_threshold",
    "pre_nms_topk",
    "nms_threshold",
    "max_detections",
)
IMAGE_SETTINGS = (*_OF_BACKBONE, *_OF_MODEL)
"""Settings of a model by which pictures are prepared for it and its answers postprocessed."""


def config_entries() -> dict[str, Any]:
    """Return what config.json holds beside the model's settings, so that transformers knows whose it is."""
    return {"model_type": MODEL_TYPE, "architectures": [MODEL_CLASS]}


def processor_entries(config: GLIPConfig) -> dict[str, Any]:
    """Return processor_config.json: how transformers prepares pictures and prompts for a model."""
    return {
        "processor_class": "GLIPProcessor",
        "max_tokens": config.text.max_tokens,
        "image_processor": {"image_processor_type": "GLIPImageProcessor", **image_settings(config)},
    }


def image_settings(config: GLIPConfig) -> dict[str, Any]:
    """Return the ``IMAGE_SETTINGS`` of a model."""
    values = {name: getattr(config.backbone, name) for name in _OF_BACKBONE}
    values |= {name: getattr(config, name) for name in _OF_MODEL}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def reading_config(settings: Mapping[str, Any]) -> GLIPConfig:
    """Return a config with the given ``IMAGE_SETTINGS``; all else is as published, and not looked at.

    Raises:
        ValueError: a value is of another type or out of range.
    """
    backbone = {name: settings[name] for name in _OF_BACKBONE if name in settings}
    return GLIPConfig.from_dict(
        {"backbone": backbone, **{name: settings[name] for name in _OF_MODEL if name in settings}}
    )
