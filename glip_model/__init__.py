"""GLIP in pure PyTorch: grounded language-image detection, training and inference."""

from glip_model.config import PRESETS, GLIPConfig
from glip_model.glip import GLIP
from glip_model.losses import GroundingCriterion
from glip_model.predictor import GLIPPredictor
from glip_model.prompts import Prompt, caption_prompt, category_prompt
from glip_model.structures import Detections, GLIPOutput, GroundingBatch, GroundingTarget

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
