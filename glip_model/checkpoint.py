"""Weights and config as one folder, pretrained weights for a fresh model, names of the published checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glip_model.backbone import load_backbone_weights
from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.pretrained import resolve_source

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_model(model: GLIP, folder: str | Path, tokenizer: Any = None) -> None:
    """Write config, weights and tokenizer; a reader of the folder needs nothing else."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(model.config.to_dict(), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_model(folder: str | Path) -> GLIP:
    """Read a folder that ``save_model`` wrote.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        ValueError: a file is missing or broken, or names and shapes do not fit the config.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}; expected a folder written by save_pretrained")
    try:
        config = GLIPConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
        weights = load_file(folder / WEIGHTS_FILE)
    except (json.JSONDecodeError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not readable as a model: {error}") from error
    model = GLIP(config)
    load_strictly(model, weights, str(folder))
    return model.eval()


def load_strictly(model: GLIP, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights under our own names; raise ValueError that lists every missing, unknown or misshapen one."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"{origin}: {len(problems)} tensors do not fit the model: " + "; ".join(problems))
    model.load_state_dict(dict(weights))


def initialise_pretrained(model: GLIP, backbone_weights: str | None, text_weights: str | None) -> None:
    """Fill backbone and text encoder of a fresh model with pretrained weights.

    Args:
        model: changed in place.
        backbone_weights: ``timm`` (the tag in ``config.backbone.timm_name``, from the hub), a local ``.pth`` or
            ``.safetensors`` file or its ``package:`` path, or None to keep random weights.
        text_weights: ``hub`` (``config.text.name``), a local folder or its ``package:`` path, or None.

    Raises:
        ValueError: a source is missing or does not fit.
    """
    if backbone_weights == "timm":
        import timm

        name = model.config.backbone.timm_name or ""
        source = timm.create_model(name, features_only=True, pretrained=True)
        load_backbone_weights(model.backbone, source.state_dict(), name)
    elif backbone_weights is not None:
        load_backbone_weights(model.backbone, _read_weights(resolve_source(backbone_weights)), backbone_weights)
    if text_weights is not None:
        from transformers import BertModel

        source_name = model.config.text.name if text_weights == "hub" else text_weights
        pretrained = BertModel.from_pretrained(resolve_source(source_name), add_pooling_layer=False)
        try:
            model.text_encoder.body.load_state_dict(pretrained.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{source_name}: does not fit the text settings: {error}") from error


def _read_weights(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        return load_file(path)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return dict(weights.get("state_dict", weights))


# Our names to the published ones, first match wins. Everything else is the same on both sides.
_Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]
_PUBLISHED_RULES: _Rules = [
    (r"backbone\.body\.", r"backbone.body."),
    (r"fpn\.inner\.(\d)\.", lambda m: f"backbone.fpn.fpn_inner{int(m[1]) + 2}."),
    (r"fpn\.layer\.(\d)\.", lambda m: f"backbone.fpn.fpn_layer{int(m[1]) + 2}."),
    (r"fpn\.top\.(\d)\.", lambda m: f"backbone.fpn.top_blocks.p{int(m[1]) + 6}."),
    (r"text_encoder\.body\.", r"language_backbone.body.model."),
    (r"head\.text_projection\.", r"rpn.head.dot_product_projection_text."),
    (r"head\.", r"rpn.head."),
]
_TEXT_LAYER_RULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
_BRANCH = {"coarser": 0, "same": 1, "finer": 2}
_DYCONV_RULES: _Rules = [
    (r"(coarser|same|finer)\.norm\.", lambda m: f"DyConv.{_BRANCH[m[1]]}.bn."),
    (r"(coarser|same|finer)\.", lambda m: f"DyConv.{_BRANCH[m[1]]}.conv."),
    (r"scale_attention\.", "AttnConv.1."),
    (r"activation\.squeeze\.", "relu.fc.0."),
    (r"activation\.expand\.", "relu.fc.2."),
]
_IGNORED = re.compile(
    r"\.relative_position_index$|^rpn\.anchor_generator\.|\.position_ids$|^rpn\.head\.cls_logits\."
    r"|^rpn\.tunable_linear\.|^rpn\.head\.mlm_head\.|^rpn\.loss_evaluator\."
)
"""Entries of published checkpoints that the model computes for itself or that no released model uses."""


def published_name(name: str, fused: bool) -> str:
    """Translate one of our parameter names (``head.scales`` excepted) to the published one."""
    tower = re.match(r"tower\.(\d+)\.(fuse|text|dyconv)\.(.+)", name)
    if tower:
        layer, part, rest = int(tower[1]), tower[2], tower[3]
        # Fused layers are three modules in a row in the published tower: fusion, BERT layer, DyConv.
        index = 3 * layer + ("fuse", "text", "dyconv").index(part) if fused else layer
        return f"rpn.head.dyhead_tower.{index}.{_published_tower_rest(part, rest)}"
    return _translate(name, _PUBLISHED_RULES)


def _published_tower_rest(part: str, rest: str) -> str:
    if part == "fuse":
        return "b_attn." + rest
    if part == "text":
        module, _, leaf = rest.rpartition(".")
        return f"{_TEXT_LAYER_RULES[module]}.{leaf}"
    return _translate(rest, _DYCONV_RULES)


def _translate(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        translated, count = re.subn("^" + pattern, replacement, name)
        if count:
            return translated
    return name


def from_published(weights: Mapping[str, Tensor], config: GLIPConfig) -> dict[str, Tensor]:
    """Rename a published state dict to our names, strictly.

    Args:
        weights: names as in the published checkpoints; a prefix ``module.`` on all of them is stripped.
        config: the model that they are for.

    Raises:
        ValueError: lists every published name that no parameter of ours wants, and every one that is missing.
    """
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    with torch.device("meta"):
        expected = GLIP(config).state_dict()
    renamed, used, missing = {}, set(), []
    for name in expected:
        if name == "head.scales":
            sources = [f"rpn.head.scales.{level}.scale" for level in range(config.num_levels)]
        else:
            sources = [published_name(name, config.fusion.enabled)]
        absent = [source for source in sources if source not in weights]
        missing += absent
        used.update(sources)
        if not absent:
            found = [weights[source] for source in sources]
            renamed[name] = torch.cat(found) if name == "head.scales" else found[0]
    unknown = [name for name in weights if name not in used and not _IGNORED.search(name)]
    if missing or unknown:
        raise ValueError(
            f"published checkpoint does not fit: {len(missing)} missing ({', '.join(missing)}), "
            f"{len(unknown)} unknown ({', '.join(unknown)})"
        )
    return renamed
