"""A loss that keeps a tuned model close to its starting model on names without labels.

Source of the idea: Learning without Forgetting (Li and Hoiem, ECCV 2016); of its weights: Generalized Focal Loss (Li et
al., NeurIPS 2020).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from glip_model.glip import GLIP
from glip_model.structures import GLIPOutput, GroundingBatch

LOSS = "loss_distillation"


class Distillation:
    """Compares token logits with those of a model that does not learn.

    Args:
        model: before it is tuned; a copy is kept.
        weight: of the loss.
    """

    def __init__(self, model: GLIP, weight: float) -> None:
        self._model, self._weight = copy.deepcopy(model).eval().requires_grad_(False), weight

    def to(self, device: torch.device) -> None:
        """Move the starting model."""
        self._model.to(device)

    def __call__(self, output: GLIPOutput, batch: GroundingBatch) -> Tensor:
        """Return the loss over the tokens that take no part in the token loss, () float32; 0 where there are none.

        Every pair of anchor and token is a cross entropy with what the starting model says, weighted by the square of
        how far off it is. The sum is divided by how much there is to keep, the sum of what the starting model says.

        Args:
            output: of the model that learns, for ``batch``.
            batch: with targets.
        """
        masks = [None if target.token_mask is None else ~target.token_mask for target in batch.targets or ()]
        if all(mask is None for mask in masks):
            return output.token_logits.float().sum() * 0.0
        off = torch.zeros_like(batch.attention_mask)
        for row, mask in zip(off, masks, strict=True):
            if mask is not None:
                row[: len(mask)] = mask
        off &= batch.attention_mask
        with torch.no_grad():
            wanted = self._model(batch).token_logits.float().sigmoid()
        logits = output.token_logits.float()
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        kept = off.unsqueeze(1)  # (B, 1, T)
        total = (entropy * (logits.sigmoid() - wanted).square() * kept).sum()
        loss: Tensor = self._weight * total / (wanted * kept).sum().clamp(min=1.0)
        return loss
