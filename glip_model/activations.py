"""Memory of the activations that the forward pass keeps for the backward pass, computed from shapes alone."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from glip_model.cached import forget
from glip_model.glip import GLIP
from glip_model.structures import GroundingBatch


def activation_bytes(model: GLIP, pictures: int, size: tuple[int, int], tokens: int, bf16: bool = False) -> int:
    """Return the bytes that a forward pass in training keeps until the backward pass.

    The model runs on fake tensors, which have shapes and types but no memory. The losses are not counted: they keep
    little beside the layers.

    Args:
        model: its trained parameters decide what has to be kept.
        pictures: in the batch.
        size: padded (height, width).
        tokens: of the longest prompt.
        bf16: under autocast.
    """
    is_text_frozen = not any(parameter.requires_grad for parameter in model.text_encoder.parameters())
    named = dict((*model.named_parameters(), *model.named_buffers()))
    with FakeTensorMode():
        weights = {
            name: torch.empty(value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
            for name, value in named.items()
        }
        batch = GroundingBatch(
            pixel_values=torch.empty(pictures, 3, *size),
            image_sizes=(size,) * pictures,
            input_ids=torch.zeros(pictures, tokens, dtype=torch.int64),
            attention_mask=torch.ones(pictures, tokens, dtype=torch.bool),
            text_states=torch.empty(pictures, tokens, model.config.text.hidden_size) if is_text_frozen else None,
        )
        try:
            return _kept_bytes(model, weights, batch, bf16)
        finally:
            forget()


def _kept_bytes(model: GLIP, weights: dict[str, Tensor], batch: GroundingBatch, bf16: bool) -> int:
    kept: dict[int, int] = {}
    own = {_storage(value)[0] for value in weights.values()}
    alive: list[Tensor] = []  # or storages that are freed lend their number to others

    def keep(tensor: Tensor) -> Tensor:
        number, size = _storage(tensor)
        if number not in own:
            kept[number] = size
            alive.append(tensor)
        return tensor

    was_training = model.training
    model.train()
    try:
        precision = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.enable_grad(), precision, hooks:
            functional_call(model, weights, (batch,))
    finally:
        model.train(was_training)
    return sum(kept.values())


def _storage(tensor: Tensor) -> tuple[int, int]:
    """Return a number that views of one storage share, and its bytes."""
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()
