"""Low-rank adapters (LoRA) by the peft library: a model learns a small change to layers whose own weights stay.

Source: LoRA (Hu et al., ICLR 2022).
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from glip_model.glip import GLIP

ALPHA = 2
"""Scale of an adapter's change, which peft computes as ``lora_alpha / rank``; 2 is the usual choice."""
_READ_DIRECTLY = ("fuse.",)
"""Modules that compute with the weights of their layers instead of calling these: an adapter would have no effect."""


def add_adapters(model: GLIP, rank: int) -> None:
    """Freeze a model and add adapters to those layers before its head that trained so far.

    They change nothing until they have learnt something. Layers that peft cannot adapt stay as they are: grouped
    convolutions, and layers that other modules read the weights of.

    Args:
        model: changed in place, see ``merged``.
        rank: of every change.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, module in model.named_modules() if _is_adaptable(name, module)]
    config = LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=names, lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same start in every worker and after a resumption
        inject_adapter_in_model(config, model)


def merged(model: GLIP) -> GLIP:
    """Return a model whose adapters have become part of its weights: itself where there are none, else a copy."""
    if not hasattr(model, "peft_config"):
        return model
    from peft.tuners.lora import LoraLayer

    whole = copy.deepcopy(model)
    for name, module in list(whole.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            whole.set_submodule(name, module.get_base_layer())
    del whole.peft_config
    return whole.requires_grad_(True)


def _is_adaptable(name: str, module: nn.Module) -> bool:
    # Layers of other libraries that derive from these, such as padded convolutions, are more than peft knows of.
    is_plain = type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
    is_read = name.startswith("head.") or any(f".{part}" in f".{name}." for part in _READ_DIRECTLY)
    return is_plain and not is_read and any(parameter.requires_grad for parameter in module.parameters())
