"""GLIP in pure PyTorch: grounded language-image detection, training and inference.

The public names are imported when they are first used: reading settings must not cost the seconds that torch and
transformers take to load.
"""

import importlib
from typing import TYPE_CHECKING, Any

from glip_model.hugging_face.registration import register_when_imported

if TYPE_CHECKING:
    from glip_model.config import PRESETS, GLIPConfig
    from glip_model.glip import GLIP
    from glip_model.losses import GroundingCriterion
    from glip_model.predictor import GLIPPredictor
    from glip_model.prompts import Prompt, caption_prompt, category_prompt
    from glip_model.structures import Detections, GLIPOutput, GroundingBatch, GroundingTarget

__version__ = "0.1.0"
"""Version of the whole project; pyproject.toml reads it here."""

__all__ = [
    "GLIP",
    "PRESETS",
    "Detections",
    "GLIPConfig",
    "GLIPOutput",
    "GLIPPredictor",
    "GroundingBatch",
    "GroundingCriterion",
    "GroundingTarget",
    "Prompt",
    "caption_prompt",
    "category_prompt",
]

_HOME = {
    "GLIP": "glip",
    "PRESETS": "config",
    "Detections": "structures",
    "GLIPConfig": "config",
    "GLIPOutput": "structures",
    "GLIPPredictor": "predictor",
    "GroundingBatch": "structures",
    "GroundingCriterion": "losses",
    "GroundingTarget": "structures",
    "Prompt": "prompts",
    "caption_prompt": "prompts",
    "category_prompt": "prompts",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


register_when_imported()
