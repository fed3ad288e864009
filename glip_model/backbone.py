"""The image side of a model: GLIP's Swin, or any ``features_only`` backbone of timm by name."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from glip_model.config import BackboneConfig
from glip_model.swin import SwinTransformer

STRIDES = (8, 16, 32)


class Backbone(nn.Module):
    """Pixels to three maps, with the freezing that the config asks for.

    Attributes:
        channels: widths of the maps at strides 8, 16 and 32.
    """

    def __init__(self, config: BackboneConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.body: nn.Module
        if config.kind == "swin":
            self.body = SwinTransformer(config.swin, activation_checkpointing)
            self.channels = self.body.channels
        else:
            self.body, self.channels = _timm_body(cast(str, config.timm_name))
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if config.freeze_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Switch modes; what is frozen stays in eval mode."""
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
            if self.config.freeze_norm:
                for norm in self._batch_norms():
                    norm.eval()
        return self

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to maps (B, C, h, w) at strides 8, 16 and 32."""
        if self.config.kind == "timm":
            # Convolutions of small pictures run about a quarter faster in this layout on a CPU.
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return list(self.body(pixel_values))

    def _frozen_modules(self) -> list[nn.Module]:
        stem, stages = _stem_and_stages(self.body)
        return [*(stem if self.config.freeze_stem else []), *stages[: self.config.frozen_stages]]

    def _batch_norms(self) -> list[nn.Module]:
        return [m for m in self.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _timm_body(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    try:
        probe: Any = timm.create_model(name, features_only=True, pretrained=False)
        reductions = probe.feature_info.reduction()
        indices = tuple(reductions.index(stride) for stride in STRIDES)
        body: Any = timm.create_model(name, features_only=True, pretrained=False, out_indices=indices)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"timm model {name!r} gives no feature maps at strides 8, 16 and 32: {error}") from error
    return body, tuple(body.feature_info.channels())


def _stem_and_stages(body: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Split a body into the modules of its stem and its stages, finest first."""
    if isinstance(body, SwinTransformer):
        return [body.patch_embed], list(body.layers)
    children = dict(body.named_children())
    if "blocks" in children:  # EfficientNet-like
        stages = list(children["blocks"].children())
        return [child for name, child in children.items() if name != "blocks"], stages
    stages = [child for name, child in children.items() if name.startswith(("layer", "stages"))]
    return [child for name, child in children.items() if not name.startswith(("layer", "stages"))], stages


def _strip_classifier(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the classifier of ImageNet weights, which a feature backbone has no place for."""
    heads = ("classifier.", "head.", "fc.", "_fc.", "conv_head.", "bn2.", "_conv_head.", "_bn1.")
    return {name: value for name, value in weights.items() if not name.startswith(heads)}


def load_backbone_weights(backbone: Backbone, weights: dict[str, Tensor], origin: str) -> None:
    """Load ImageNet weights strictly into a timm backbone.

    Weights under timm's names load by name. Weights of the same architecture under other names load in order when
    every shape agrees, which is how the packaged EfficientNet-Lite0 reaches timm's.

    Raises:
        ValueError: names or shapes do not fit.
    """
    target = backbone.body.state_dict()
    weights = _strip_classifier(weights)
    if not set(weights) & set(target):
        skipped = ("num_batches_tracked",)
        names = [name for name in target if not name.endswith(skipped)]
        values = [value for name, value in weights.items() if not name.endswith(skipped)]
        if [target[name].shape for name in names] != [value.shape for value in values]:
            raise ValueError(f"{origin}: its {len(values)} tensors do not fit the backbone's {len(names)} in order")
        weights = dict(zip(names, values, strict=True))
    missing = sorted(n for n in set(target) - set(weights) if not n.endswith("num_batches_tracked"))
    misshapen = sorted(n for n in set(target) & set(weights) if target[n].shape != weights[n].shape)
    if missing or misshapen:
        raise ValueError(f"{origin}: missing {missing[:5]}, other shapes {misshapen[:5]}")
    with torch.no_grad():
        backbone.body.load_state_dict({n: v for n, v in weights.items() if n in target}, strict=False)
