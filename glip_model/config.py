"""GLIPConfig: every number that defines a model, and the published sizes as presets.

One code path serves all sizes; a preset only changes values. Sources: GLIP (Li et al., CVPR 2022) and its published
pre-training configs, restated in the project's specification.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """A Swin Transformer in GLIP's form (pad before shift, output norms on strides 8, 16 and 32)."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    drop_path: float = 0.2
    """Stochastic depth of the last block; rises linearly from 0 over the blocks. Active in training only."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The image side: pixels to feature maps at strides 8, 16 and 32."""

    kind: Literal["swin", "timm"] = "swin"
    """``swin`` builds GLIP's Swin from ``swin``; ``timm`` builds any ``features_only`` model named in ``timm_name``."""
    swin: SwinConfig = field(default_factory=SwinConfig)
    timm_name: str | None = None
    """timm model name, with or without a pretrained tag, for example ``tf_efficientnet_lite0``."""
    frozen_stages: int = 0
    """Stem and this many first stages are frozen and kept in eval mode; 0 trains everything. GLIP-L: stem and 1."""
    freeze_stem: bool = False
    freeze_norm: bool = False
    """Keep BatchNorm statistics and affine weights of a timm backbone as they were loaded."""
    bgr: bool = True
    """Channel order of ``pixel_values``: the published weights expect BGR."""
    pixel_mean: tuple[float, float, float] = (103.530, 116.280, 123.675)
    """Per channel, in the model's channel order, on the 0 to 255 scale."""
    pixel_std: tuple[float, float, float] = (57.375, 57.120, 58.395)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text side: a BERT-type encoder from transformers."""

    name: str = "bert-base-uncased"
    """Hub id or local folder of encoder and tokenizer."""
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    dropout: float = 0.1
    max_tokens: int = 256
    """Captions are cut here, special tokens included."""
    frozen: bool = False
    """Train the encoder (published) or keep it as loaded; frozen states can be cached per string."""
    encoding: Literal["joint", "segments"] = "joint"
    """``joint`` encodes a prompt as one string (published). ``segments`` encodes each of its segments (a category
    name, a caption) alone, so that states are cached per segment and names do not attend to one another."""
    projected_size: int | None = None
    """Width of the text in the fusion tower; None keeps ``hidden_size`` (published)."""
    has_offset: bool = False
    """Add a learned offset for each place in the prompt to the text before the tower: what prompt tuning trains."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion tower: per layer cross-attention, one BERT layer, one DyConv layer."""

    enabled: bool = True
    """False is GLIP-T (A): DyConv layers only, text straight from the encoder."""
    num_layers: int = 6
    embed_dim: int = 2048
    """Width of the cross-attention."""
    num_heads: int = 8
    dropout: float = 0.1
    residual_scale: float | None = None
    """Start of the learned scales on what attention adds; None is 1 / ``num_layers`` (published)."""
    text_num_heads: int = 12
    text_intermediate_size: int = 3072
    text_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class GLIPConfig:
    """A whole model. Lists of per-level values run from P3 (finest) to the coarsest level."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    text: TextConfig = field(default_factory=TextConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    channels: int = 256
    """Width of the pyramid, the DyConv layers and the region-token dot product."""
    log_scale: float = 0.0
    """Start of the learned log_scale; region-token logits are divided by its exponential. 0 as published; narrow models
    start with logits that hardly differ and learn sooner from a negative one."""
    num_levels: int = 5
    """Pyramid levels from P3 on: 5 (P3 to P7) as published; 3 to 5."""
    norm_groups: int = 16
    drop_block: float = 0.3
    """DropBlock probability on the maps entering the P3 and P4 output convolutions in training; 0 turns it off."""
    deformable: bool = True
    """Deformable convolutions in the DyConv layers (published); plain ones are several times faster on a CPU."""
    anchor_scale: float = 8.0
    """Side of the one square anchor per location, in strides."""
    inclusive_corners: bool = True
    """The model's boxes end with the last pixel that they hold, as published: targets are a pixel shorter than boxes
    of records, and what is found a pixel longer than what the model says. False for models that were trained on boxes
    which end where the next pixel begins."""
    # Assignment and losses
    atss_topk: int = 9
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    token_loss_weight: float = 1.0
    box_loss_weight: float = 2.0
    centerness_loss_weight: float = 1.0
    # Reading off detections
    score_threshold: float = 0.05
    """Phrase score below which a candidate is dropped, before centerness."""
    pre_nms_topk: int = 1000
    """Candidates kept per level."""
    nms_threshold: float = 0.6
    max_detections: int = 100
    """Most boxes of an image, over all phrases."""
    # Preprocessing at test time
    test_short_side: int = 800
    test_long_side: int = 1333
    size_divisor: int = 32
    activation_checkpointing: bool = False
    """Recompute tower and Swin activations in the backward pass: slower, far less memory."""

    def __post_init__(self) -> None:
        """Check every single value before anything is built from it, and then the relations between values."""
        _check_values(self, "")
        if not 3 <= self.num_levels <= 5:
            raise ValueError(f"num_levels must be 3 to 5 (P3 to P5, P6 or P7), got {self.num_levels}")
        if self.channels % self.norm_groups:
            raise ValueError(f"channels (={self.channels}) must be divisible by norm_groups (={self.norm_groups})")
        if self.fusion.embed_dim % self.fusion.num_heads:
            raise ValueError(
                f"fusion.embed_dim (={self.fusion.embed_dim}) must be divisible by "
                f"fusion.num_heads (={self.fusion.num_heads})"
            )
        if self.fusion.enabled and self.text_size % self.fusion.text_num_heads:
            raise ValueError(
                f"text width in the tower (={self.text_size}) must be divisible by "
                f"fusion.text_num_heads (={self.fusion.text_num_heads})"
            )
        if self.text.encoding == "segments" and not self.text.frozen:
            raise ValueError("text.encoding 'segments' needs text.frozen: its states are computed outside of training")
        if self.backbone.kind == "timm" and not self.backbone.timm_name:
            raise ValueError("backbone.kind is 'timm' but backbone.timm_name is empty; name a timm model")

    @property
    def text_size(self) -> int:
        """Width of the text states in the tower and in the dot product."""
        return self.text.projected_size or self.text.hidden_size

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level."""
        return tuple(8 * 2**level for level in range(self.num_levels))

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GLIPConfig:
        """Rebuild a config from ``to_dict``; raise ValueError on a key that is not a setting."""
        config: GLIPConfig = _build(cls, values, "")
        return config


_LARGEST = 1_000_000
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("drop_path", "dropout", "text_dropout", "drop_block", "focal_alpha"), (0, 1)),
    **dict.fromkeys(("nms_threshold", "score_threshold"), (0, 1)),
    **dict.fromkeys(("depths", "num_layers", "num_heads", "text_num_heads"), (1, 1024)),
    **dict.fromkeys(("embed_dim", "hidden_size", "projected_size", "channels"), (1, 32_768)),
    **dict.fromkeys(("intermediate_size", "text_intermediate_size"), (1, 131_072)),
    **dict.fromkeys(("focal_gamma", "token_loss_weight", "box_loss_weight", "centerness_loss_weight"), (0, _LARGEST)),
    **dict.fromkeys(("pixel_mean", "residual_scale", "log_scale"), (-_LARGEST, _LARGEST)),
    **dict.fromkeys(("pixel_std", "anchor_scale"), (1e-6, _LARGEST)),
    "window_size": (1, 1024),
    "max_tokens": (3, 65_536),
    "max_position_embeddings": (1, 65_536),
    "vocab_size": (1, 10_000_000),
    "frozen_stages": (0, 1024),
    "num_levels": (-_LARGEST, _LARGEST),  # GLIPConfig says more of it
    "test_short_side": (1, 32_768),
    "test_long_side": (1, 32_768),
    "size_divisor": (1, 4096),
}
"""Least and greatest value of a setting, by its name; of the others 1 to ``_LARGEST``. Wider than any sound model."""


def _check_values(section: Any, path: str) -> None:
    """Raise ValueError on a value that is of another type than its setting, no finite number, or out of range."""
    for name, kind in typing.get_type_hints(type(section)).items():
        value, where = getattr(section, name), f"{path}{name}"
        kinds = set(typing.get_args(kind)) - {type(None)} or {kind}
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, typing.cast(type, kind)):
                raise ValueError(f"{where} is {value!r:.60}; expected a mapping of settings")
            _check_values(value, f"{where}.")
        elif value is None and type(None) in typing.get_args(kind):
            continue
        elif typing.get_origin(kind) is tuple:
            length = None if Ellipsis in kinds else len(typing.get_args(kind))
            if not isinstance(value, tuple) or not value or length not in (None, len(value)) or len(value) > 64:
                raise ValueError(f"{where} is {value!r:.60}; expected a list of {length or '1 to 64'} numbers")
            for each in value:
                _check_number(where, each, name, int in kinds)
        elif kinds & {int, float}:
            _check_number(where, value, name, int in kinds)
        elif kinds in ({bool}, {str}):
            if type(value) not in kinds:
                raise ValueError(f"{where} is {value!r:.60}; expected {'true or false' if bool in kinds else 'a text'}")
        elif not isinstance(value, str) or value not in kinds:
            raise ValueError(f"{where} is {value!r:.60}; expected one of {', '.join(typing.get_args(kind))}")


def _check_number(where: str, value: Any, name: str, is_whole: bool) -> None:
    least, greatest = _RANGES.get(name, (1, _LARGEST))
    is_number = type(value) is int or (type(value) is float and not is_whole)
    if not is_number or not least <= value <= greatest:  # NaN is in no range
        expected = "a whole number" if is_whole else "a number"
        raise ValueError(f"{where} is {value!r:.60}; expected {expected} from {least:,} to {greatest:,}")


def _build(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"the model's settings are {values!r:.60}; expected a mapping of settings")
    kinds = typing.get_type_hints(cls)
    unknown = sorted(set(map(str, values)) - set(kinds))
    if unknown:
        raise ValueError(f"{path}{unknown[0]} is not a model setting; settings here: {', '.join(sorted(kinds))}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(kinds[name]) and isinstance(value, Mapping):
            built[name] = _build(kinds[name], value, f"{path}{name}.")
        else:
            built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def glip_t() -> GLIPConfig:
    """GLIP-T (variants B and C share it): Swin-T, BERT-base, six fused layers; 231,780,222 published parameters."""
    return GLIPConfig()


def glip_t_a() -> GLIPConfig:
    """GLIP-T (A): as GLIP-T without fusion; 151,430,526 published parameters."""
    return GLIPConfig(fusion=FusionConfig(enabled=False))


def glip_l() -> GLIPConfig:
    """GLIP-L: Swin-L with window 12, eight fused layers, stem and first stage frozen; 430,422,384 parameters."""
    swin = SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12, drop_path=0.4)
    return GLIPConfig(
        backbone=BackboneConfig(swin=swin, freeze_stem=True, frozen_stages=1),
        fusion=FusionConfig(num_layers=8),
    )


PRESETS = {"glip_t_a": glip_t_a, "glip_t_b": glip_t, "glip_t_c": glip_t, "glip_t": glip_t, "glip_l": glip_l}
