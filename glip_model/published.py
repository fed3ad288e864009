"""The published checkpoints: their parameter names to ours and back, completely and strictly.

Source: the module tree of the published implementation, listed name by name in the project's specification.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glip_model.checkpoint import load_strictly, read_tensors
from glip_model.config import PRESETS, GLIPConfig, glip_l, glip_t
from glip_model.glip import GLIP

SCALES = "head.scales"
"""Our one vector of box scales per level; the published model keeps as many modules of one number each."""
_Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]
# First match wins; a name that no rule matches is the same on both sides.
_RULES: _Rules = [
    (r"fpn\.inner\.(\d)\.", lambda m: f"backbone.fpn.fpn_inner{int(m[1]) + 2}."),
    (r"fpn\.layer\.(\d)\.", lambda m: f"backbone.fpn.fpn_layer{int(m[1]) + 2}."),
    (r"fpn\.top\.(\d)\.", lambda m: f"backbone.fpn.top_blocks.p{int(m[1]) + 6}."),
    (r"text_encoder\.body\.", r"language_backbone.body.model."),
    (r"head\.text_projection\.", r"rpn.head.dot_product_projection_text."),
    (r"head\.", r"rpn.head."),
]
_BRANCHES = {"coarser": 0, "same": 1, "finer": 2}
_TOWER_RULES: _Rules = [
    (r"fuse\.", "b_attn."),
    (r"text\.(query|key|value)\.", r"attention.self.\1."),
    (r"text\.attention_output\.", "attention.output.dense."),
    (r"text\.attention_norm\.", "attention.output.LayerNorm."),
    (r"text\.(intermediate|output)\.", r"\1.dense."),
    (r"text\.output_norm\.", "output.LayerNorm."),
    (r"dyconv\.(coarser|same|finer)\.norm\.", lambda m: f"DyConv.{_BRANCHES[m[1]]}.bn."),
    (r"dyconv\.(coarser|same|finer)\.", lambda m: f"DyConv.{_BRANCHES[m[1]]}.conv."),
    (r"dyconv\.scale_attention\.", "AttnConv.1."),
    (r"dyconv\.activation\.squeeze\.", "relu.fc.0."),
    (r"dyconv\.activation\.expand\.", "relu.fc.2."),
    (r"dyconv\.", ""),
]
_IGNORED = re.compile(
    r"\.relative_position_index$|^rpn\.anchor_generator\.|\.position_ids$|^rpn\.head\.cls_logits\."
    r"|^rpn\.tunable_linear\.|^rpn\.head\.mlm_head\.|^rpn\.loss_evaluator\."
)
"""Entries of published checkpoints that the model computes for itself or that no released model uses."""


def load_published(path: str | Path, config: GLIPConfig | None = None) -> GLIP:
    """Build a model from a published ``.pth`` file.

    Args:
        path: a file that holds the state dict under ``model``, with or without what a training left beside it.
        config: of that checkpoint; None finds the preset by the names and shapes in it.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        ValueError: the file is missing, unreadable, or of another model.
    """
    content = read_tensors(path, "a published checkpoint")
    weights = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{path}: expected a dict with named weights under 'model', got {type(content).__name__}")
    try:
        config = config or PRESETS[guess_preset(weights)]()
        renamed = from_published(weights, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model = GLIP(config)
    load_strictly(model, renamed, str(path))
    return model.eval()


def guess_preset(weights: Mapping[str, Any]) -> str:
    """Return the preset that a published state dict is of; B, C and T share one.

    Raises:
        ValueError: it is none of them.
    """
    patches = _without_prefix(weights).get("backbone.body.patch_embed.proj.weight")
    width = patches.shape[0] if isinstance(patches, Tensor) and patches.ndim else None
    if width == glip_l().backbone.swin.embed_dim:
        return "glip_l"
    if width == glip_t().backbone.swin.embed_dim:
        return "glip_t" if any(".b_attn." in name for name in weights) else "glip_t_a"
    raise ValueError(
        "holds no weights of a published GLIP: no backbone.body.patch_embed.proj.weight of width 96 or 192"
    )


def _without_prefix(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Strip ``module.`` where all names carry it, as parallel training leaves them."""
    if weights and all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def from_published(weights: Mapping[str, Tensor], config: GLIPConfig) -> dict[str, Tensor]:
    """Rename a published state dict to our names, strictly.

    Args:
        weights: names as in the published checkpoints; a prefix ``module.`` on all of them is stripped.
        config: the model that they are for.

    Raises:
        ValueError: lists every published name that no parameter of ours wants, and every one that is missing.
    """
    weights = _without_prefix(weights)
    with torch.device("meta"):
        expected = GLIP(config).state_dict()
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    for name in expected:
        sources = published_names(name, config)
        absent = [source for source in sources if source not in weights]
        missing += absent
        used.update(sources)
        if not absent:
            found = [weights[source] for source in sources]
            renamed[name] = torch.cat(found) if name == SCALES else found[0]
    unknown = [name for name in weights if name not in used and not _IGNORED.search(name)]
    if missing or unknown:
        raise ValueError(
            f"published names do not fit this model: {len(missing)} missing ({', '.join(missing)}), "
            f"{len(unknown)} unknown ({', '.join(unknown)})"
        )
    return renamed


def to_published(weights: Mapping[str, Tensor], config: GLIPConfig) -> dict[str, Tensor]:
    """Rename one of our state dicts to the published names; the ignored entries of those are not made up.

    Raises:
        ValueError: the model has parts that the published one lacks.
    """
    if config.text.projected_size is not None or config.backbone.kind != "swin":
        raise ValueError("a model with text.projected_size or a timm backbone has no published names")
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        targets = published_names(name, config)
        renamed.update(zip(targets, torch.split(value, 1) if name == SCALES else [value], strict=True))
    return renamed


def published_names(name: str, config: GLIPConfig) -> list[str]:
    """Translate one of our parameter names to the published one, or to one per level for ``head.scales``."""
    if name == SCALES:
        return [f"rpn.head.scales.{level}.scale" for level in range(config.num_levels)]
    tower = re.fullmatch(r"tower\.(\d+)\.((fuse|text|dyconv)\..+)", name)
    if tower is None:
        return [_translate(name, _RULES)]
    # Fused layers are three modules in a row in the published tower: fusion, BERT layer, DyConv.
    layer, part = int(tower[1]), ("fuse", "text", "dyconv").index(tower[3])
    index = 3 * layer + part if config.fusion.enabled else layer
    return [f"rpn.head.dyhead_tower.{index}.{_translate(tower[2], _TOWER_RULES)}"]


def _translate(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        translated, count = re.subn("^" + pattern, replacement, name)
        if count:
            return translated
    return name
