"""The image side of a model: GLIP's Swin, or any ``features_only`` backbone of timm by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from glip_model.config import BackboneConfig, SwinConfig
from glip_model.swin import SwinStage, SwinTransformer

STRIDES = (8, 16, 32)
PUBLISHED_STARTS = {
    (96, 7): "swin_tiny_patch4_window7_224.ms_in1k",
    (192, 12): "swin_large_patch4_window12_384.ms_in22k",
}
"""timm's names of the ImageNet weights that the published Swins started from, by ``embed_dim`` and ``window_size``."""
_COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Entries of state dicts that a model counts or computes for itself."""


class Backbone(nn.Module):
    """Image encoder: pixels to three feature maps, with frozen stages as the config says.

    Frozen stages at the front cost no backward pass, because nothing in them or before them needs a gradient.

    Attributes:
        channels: widths of the maps at strides 8, 16 and 32.

    Raises:
        ValueError: timm has no such model, it lacks one of the strides, or it has fewer stages than are to be frozen.
    """

    def __init__(self, config: BackboneConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.body: nn.Module
        if config.kind == "swin":
            self.body = SwinTransformer(config.swin, activation_checkpointing)
            self.channels = self.body.channels
        else:
            self.body, self.channels = _timm_body(cast(str, config.timm_name), pretrained=False)
        self._freeze()

    def freeze_stages(self, count: int) -> None:
        """Freeze the stem and this number of first stages instead of the config's; 0 freezes none.

        Raises:
            ValueError: there are fewer stages.
        """
        self.config = replace(self.config, frozen_stages=count, freeze_stem=False)
        self.requires_grad_(True)
        self._freeze()

    def recompute_activations(self) -> None:
        """Let a Swin's blocks be computed anew by the backward pass; models of timm keep what they compute."""
        if isinstance(self.body, SwinTransformer):
            self.body.activation_checkpointing = True

    def _freeze(self) -> None:
        stages = _stem_and_stages(self.body)[1]
        if self.config.frozen_stages > len(stages):
            raise ValueError(
                f"backbone.frozen_stages is {self.config.frozen_stages}, the backbone has {len(stages)} stages"
            )
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Switch modes; what is frozen stays in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to maps (B, C, h, w) at strides 8, 16 and 32."""
        if self.config.kind == "timm":
            # Convolutions of small pictures run about a quarter faster in this layout on a CPU.
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return list(self.body(pixel_values))

    def layers(self) -> list[nn.Module]:
        """Return what runs one after the other behind the stem: blocks of a Swin, stages of a timm model."""
        stages = _stem_and_stages(self.body)[1]
        if isinstance(self.body, SwinTransformer):
            return [block for stage in stages for block in cast(SwinStage, stage).blocks]
        return stages

    def _frozen_modules(self) -> list[nn.Module]:
        stem, stages = _stem_and_stages(self.body)
        is_stem_frozen = self.config.freeze_stem or self.config.frozen_stages > 0
        frozen = [*(stem if is_stem_frozen else []), *stages[: self.config.frozen_stages]]
        if self.config.freeze_norm:
            frozen += [m for m in self.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return frozen


def _create_timm(name: str, **options: Any) -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the backbone {name} needs timm; run: pip install 'glip-self-training[timm]'", name="timm"
        ) from error
    return timm.create_model(name, **options)


def _timm_body(name: str, pretrained: bool) -> tuple[nn.Module, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            probe = _create_timm(name, features_only=True)
        reductions = probe.feature_info.reduction()
        indices = tuple(reductions.index(stride) for stride in STRIDES)
        body = _create_timm(name, features_only=True, pretrained=pretrained, out_indices=indices)
    except (RuntimeError, ValueError, OSError) as error:
        if pretrained:
            raise ValueError(f"timm delivers no weights for {name!r}: {error}") from error
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


def fetch_timm_weights(config: BackboneConfig) -> tuple[dict[str, Tensor], str]:
    """Fetch ImageNet weights through timm: those of ``timm_name``, or what the published Swin started from.

    Returns:
        The weights and the name that they have in timm.

    Raises:
        ValueError: no name is known, or timm cannot deliver.
    """
    name = config.timm_name or PUBLISHED_STARTS.get((config.swin.embed_dim, config.swin.window_size))
    if name is None:
        raise ValueError("no published weights for a Swin of these sizes; name some in backbone.timm_name")
    if config.kind == "timm":
        return _timm_body(name, pretrained=True)[0].state_dict(), name
    try:
        weights: dict[str, Tensor] = _create_timm(name, pretrained=True).state_dict()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"timm delivers no weights for {name!r}: {error}") from error
    return weights, name


def load_backbone_weights(backbone: Backbone, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load ImageNet weights strictly; a classifier among them is left out.

    A Swin takes timm's names or those of the original release, a timm body timm's names; an EfficientNet also those
    of the EfficientNet-PyTorch family. Weights know RGB: for a backbone that is fed BGR the stem's input channels are
    turned round, so that it sees from the first step what it was trained on (published GLIP left that to training).

    Args:
        backbone: changed in place.
        weights: a state dict.
        origin: where they come from, for messages.

    Raises:
        ValueError: names or shapes do not fit.
    """
    expected = {name: value for name, value in backbone.body.state_dict().items() if not name.endswith(_COMPUTED)}
    found = {name: value for name, value in weights.items() if not name.endswith(_COMPUTED)}
    if isinstance(backbone.body, SwinTransformer):
        found = _swin_names(found, backbone.config.swin)
        # ImageNet training knows no norms on the maps that leave a stage: they start as they are.
        expected = {name: value for name, value in expected.items() if not name.startswith("norm")}
    elif "_conv_stem.weight" in found:
        found = _efficientnet_names(found, list(expected))
    missing = sorted(set(expected) - set(found))
    unknown = sorted(name for name in set(found) - set(expected) if not _is_classifier(name))
    misshapen = sorted(n for n in set(expected) & set(found) if expected[n].shape != found[n].shape)
    if missing or unknown or misshapen:
        raise ValueError(
            f"{origin} does not fit the backbone: {len(missing)} missing {missing[:5]}, "
            f"{len(unknown)} unknown {unknown[:5]}, {len(misshapen)} of other shapes {misshapen[:5]}"
        )
    found = {name: value for name, value in found.items() if name in expected}
    if backbone.config.bgr:
        stem = next(name for name, value in expected.items() if value.dim() == 4 and value.shape[1] == 3)
        found[stem] = found[stem].flip(1)
    backbone.body.load_state_dict(found, strict=False)


def _is_classifier(name: str) -> bool:
    """Tell whether a weight of timm's lies behind the last feature map, where this model has no layers."""
    return name.startswith(("classifier.", "head.", "fc.", "conv_head.", "bn2.", "norm."))


def _swin_names(weights: dict[str, Tensor], config: SwinConfig) -> dict[str, Tensor]:
    """Translate timm's names; the original release's are ours already."""
    if "layers.0.downsample.reduction.weight" in weights:
        return weights
    # timm counts patch merging to the stage that it leads to, the original to the stage that it ends.
    moves = {f"layers.{i}.downsample.": f"layers.{i - 1}.downsample." for i in range(1, len(config.depths))}
    renamed = {}
    for name, value in weights.items():
        prefix = next((prefix for prefix in moves if name.startswith(prefix)), "")
        renamed[moves.get(prefix, "") + name.removeprefix(prefix)] = value
    return renamed


_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTSIDE_BLOCKS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "fc"}


def _efficientnet_names(weights: dict[str, Tensor], expected: list[str]) -> dict[str, Tensor]:
    """Translate the names of the EfficientNet-PyTorch family (``_blocks.4._bn0``) to timm's (``blocks.2.1.bn1``)."""
    # That family counts its blocks through; timm counts within stages.
    places = list(dict.fromkeys(match[0] for name in expected if (match := re.match(r"blocks\.\d+\.\d+", name))))
    renamed = {}
    for name, value in weights.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
        module, _, leaf = name.rpartition(".")
        if block is not None and int(block[1]) < len(places):
            has_expansion = f"_blocks.{block[1]}._expand_conv.weight" in weights
            inner = (_INVERTED if has_expansion else _SEPARABLE).get(block[2], block[2])
            name = f"{places[int(block[1])]}.{inner}.{block[3]}"
        elif module in _OUTSIDE_BLOCKS:
            name = f"{_OUTSIDE_BLOCKS[module]}.{leaf}"
        renamed[name] = value
    return renamed
