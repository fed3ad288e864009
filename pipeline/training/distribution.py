"""One model on several workers: what they share, and how what is spread over them comes together again."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from glip_model.glip import GLIP

RECOMPILE_LIMIT = 128
"""Versions that torch.compile makes of one layer's code: blocks differ in drop path, width and shift."""


def distribute(model: GLIP, how: Literal["ddp", "fsdp"], half: torch.dtype | None) -> nn.Module:
    """Let all processes of torch.distributed train a model together; alone, return it as it is.

    Args:
        model: on the device where it trains, with the same weights everywhere. ``fsdp`` changes it in place.
        how: see ``TrainConfig.distribution``.
        half: type that autocast computes in; on a GPU ``fsdp`` sends weights in it.

    Returns:
        What to call in place of the model.
    """
    if not dist.is_initialized():
        return model
    if how == "fsdp":
        _shard(model, half)
        return model
    if dist.get_world_size() == 1:
        return model
    # Gradients stand in what is sent, without a copy. Buffers are the same everywhere or, running statistics of a
    # BatchNorm that trains, read by no training step; those of the first worker are saved.
    has_new_name = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # since torch 2.15
    unsent: dict[str, Any] = {"forward_sync_buffers" if has_new_name else "broadcast_buffers": False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **unsent)


def compile_layers(model: GLIP, backend: str = "inductor") -> None:
    """Have every layer compiled when it first runs; layers of the same code share what is compiled."""
    # Beyond the limit, layers would silently run uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for layer in _layers(model):
        layer.compile(backend=backend)


def exchange_gradients(wrapped: nn.Module, wanted: bool) -> None:
    """Say whether workers exchange gradients after the backward passes that follow, or keep adding up their own."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(wanted)
        wrapped.set_is_last_backward(wanted)
    elif isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = wanted


def is_spread(model: nn.Module) -> bool:
    """Tell whether each worker holds a part of the weights alone."""
    return isinstance(model, FSDPModule)


def gather(state: Any) -> Any:
    """Return nested containers with every tensor that is spread over the workers made whole.

    All workers must call it. Whole tensors lie in the memory of the first worker's CPU; others get empty ones.
    """
    return tree_map_only(DTensor, _whole, state)


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """Return this worker's part of a whole tensor that all workers hold, where ``like`` is spread; else all of it."""
    if not isinstance(like, DTensor):
        return whole
    device = like.device_mesh.device_type
    return distribute_tensor(whole.to(device), like.device_mesh, like.placements, src_data_rank=None)


def spread_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the whole state of an optimiser as ``optimizer`` takes it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        number: {
            name: spread(value, parameters[number]) if value.shape == parameters[number].shape else value
            for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}


def local(tensor: Tensor) -> Tensor:
    """Return what of a tensor lies on this worker; it shares the memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(part: DTensor) -> Tensor:
    whole: Tensor = part.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0, device="cpu")


def _shard(model: GLIP, half: torch.dtype | None) -> None:
    # The model changes no output of a layer in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    # Inputs keep their type: residual streams are float32, and autocast decides for the rest.
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    # A CPU's LayerNorm takes no weights of another type than its input.
    sent = half if device == "cuda" else None
    reduced = MixedPrecisionPolicy(param_dtype=sent, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # A frozen text encoder runs by itself, for the cache of its states, so each worker keeps all of it.
    whole = set() if _text_trains(model) else set(model.text_encoder.parameters())
    for layer in _layers(model):
        # Deformable convolutions and BatchNorm compute in float32.
        has_convolutions = any(isinstance(module, nn.Conv2d) for module in layer.modules())
        fully_shard(layer, mesh=mesh, mp_policy=exact if has_convolutions else reduced)
    fully_shard(model, mesh=mesh, mp_policy=exact, ignored_params=whole)


def _layers(model: GLIP) -> list[nn.Module]:
    """Return what is run as a whole, by its forward, and holds nearly all of the weights."""
    text = list(model.text_encoder.body.encoder.layer) if _text_trains(model) else []
    tower = [part for layer in model.tower for part in layer.children()]
    return [*model.backbone.layers(), *text, model.fpn, *tower, model.head]


def _text_trains(model: GLIP) -> bool:
    return any(parameter.requires_grad for parameter in model.text_encoder.parameters())
