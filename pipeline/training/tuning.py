"""What of a model a run trains: all, the last layers of its head, low-rank changes before it, or an offset to its text.

Source: GLIP (Li et al., CVPR 2022), section 5.2 and its published configs (``linear_prob``, ``language_prompt_v2``).
"""

from __future__ import annotations

from glip_model.glip import GLIP
from pipeline.errors import TrainingError
from pipeline.training.adapters import add_adapters
from pipeline.training.settings import RunConfig

LINEAR_LAYERS = ("bbox_pred.", "centerness.", "text_projection.", "log_scale", "bias_lang", "bias0")
"""Parameters of the head that linear tuning and adapters train; the scales of the levels stay frozen."""


def freeze_for(run: RunConfig, model: GLIP) -> None:
    """Leave to train what the run asks for; frozen parts run in eval mode and cost no backward pass.

    Args:
        run: see ``tuning`` and ``frozen_stages``.
        model: changed in place; prompt tuning adds an offset of zeros, which is then part of its config.

    Raises:
        TrainingError: the backbone has fewer stages than are to be frozen.
    """
    if run.frozen_stages is not None:
        try:
            model.backbone.freeze_stages(run.frozen_stages)
        except ValueError as error:
            raise TrainingError(str(error)) from error
    if run.tuning in ("linear", "lora"):
        if run.tuning == "lora":
            add_adapters(model, run.lora_rank)
        else:
            model.requires_grad_(False)
        for name, parameter in model.head.named_parameters():
            parameter.requires_grad_(name.startswith(LINEAR_LAYERS))
    elif run.tuning == "prompt":
        model.requires_grad_(False)
        model.add_text_offset().requires_grad_(True)
