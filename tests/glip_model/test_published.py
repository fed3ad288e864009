"""Published checkpoints: extras are taken off, what does not fit is listed, and the way back loses nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glip_model.config import PRESETS, BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.published import from_published, guess_preset, load_published, published_names, to_published

TINY = GLIPConfig(
    backbone=BackboneConfig(swin=SwinConfig(embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 1, 1), window_size=4)),
    text=TextConfig(
        hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, vocab_size=60, max_position_embeddings=32
    ),
    fusion=FusionConfig(num_layers=2, embed_dim=16, num_heads=2, text_num_heads=2, text_intermediate_size=16),
    channels=16,
    norm_groups=4,
)
WITHOUT_FUSION = replace(TINY, fusion=replace(TINY.fusion, enabled=False))
IGNORED = {
    "backbone.body.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
    "rpn.anchor_generator.cell_anchors.0": torch.zeros(1, 4),
    "rpn.anchor_generator.cell_anchors.4": torch.zeros(1, 4),
    "language_backbone.body.model.embeddings.position_ids": torch.arange(32)[None],
    "rpn.head.cls_logits.weight": torch.zeros(80, 16, 1, 1),
    "rpn.head.cls_logits.bias": torch.zeros(80),
    "rpn.tunable_linear.weight": torch.zeros(1000, 16),
    "rpn.head.mlm_head.dense.weight": torch.zeros(3),
    "rpn.loss_evaluator.shallow_contrastive.weight": torch.zeros(3),
}


def make_model(config: GLIPConfig = TINY) -> GLIP:
    torch.manual_seed(0)
    model = GLIP(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def published(model: GLIP) -> dict[str, Tensor]:
    return to_published(model.state_dict(), model.config)


def same(left: GLIP, right: GLIP) -> bool:
    theirs = right.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in left.state_dict().items())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "glip.pth"


# Names


def test_every_kind_of_name_is_the_published_one() -> None:
    # Left: names in this package. Right: section 10 of the specification.
    expected = {
        "backbone.body.patch_embed.proj.weight": "backbone.body.patch_embed.proj.weight",
        "backbone.body.layers.1.blocks.1.attn.qkv.bias": "backbone.body.layers.1.blocks.1.attn.qkv.bias",
        "backbone.body.layers.0.downsample.reduction.weight": "backbone.body.layers.0.downsample.reduction.weight",
        "backbone.body.norm1.weight": "backbone.body.norm1.weight",
        "fpn.inner.0.weight": "backbone.fpn.fpn_inner2.weight",
        "fpn.inner.2.bias": "backbone.fpn.fpn_inner4.bias",
        "fpn.layer.0.weight": "backbone.fpn.fpn_layer2.weight",
        "fpn.top.0.weight": "backbone.fpn.top_blocks.p6.weight",
        "fpn.top.1.bias": "backbone.fpn.top_blocks.p7.bias",
        "text_encoder.body.embeddings.LayerNorm.bias": "language_backbone.body.model.embeddings.LayerNorm.bias",
        "tower.0.fuse.attn.values_l_proj.weight": "rpn.head.dyhead_tower.0.b_attn.attn.values_l_proj.weight",
        "tower.0.fuse.gamma_l": "rpn.head.dyhead_tower.0.b_attn.gamma_l",
        "tower.0.text.query.weight": "rpn.head.dyhead_tower.1.attention.self.query.weight",
        "tower.0.text.attention_output.bias": "rpn.head.dyhead_tower.1.attention.output.dense.bias",
        "tower.0.text.attention_norm.weight": "rpn.head.dyhead_tower.1.attention.output.LayerNorm.weight",
        "tower.0.text.intermediate.weight": "rpn.head.dyhead_tower.1.intermediate.dense.weight",
        "tower.1.text.output.weight": "rpn.head.dyhead_tower.4.output.dense.weight",
        "tower.1.text.output_norm.bias": "rpn.head.dyhead_tower.4.output.LayerNorm.bias",
        "tower.1.dyconv.coarser.weight": "rpn.head.dyhead_tower.5.DyConv.0.conv.weight",
        "tower.1.dyconv.same.norm.weight": "rpn.head.dyhead_tower.5.DyConv.1.bn.weight",
        "tower.1.dyconv.finer.norm.bias": "rpn.head.dyhead_tower.5.DyConv.2.bn.bias",
        "tower.1.dyconv.scale_attention.weight": "rpn.head.dyhead_tower.5.AttnConv.1.weight",
        "tower.1.dyconv.activation.squeeze.bias": "rpn.head.dyhead_tower.5.relu.fc.0.bias",
        "tower.1.dyconv.activation.expand.weight": "rpn.head.dyhead_tower.5.relu.fc.2.weight",
        "tower.1.dyconv.offset.weight": "rpn.head.dyhead_tower.5.offset.weight",
        "head.bbox_pred.weight": "rpn.head.bbox_pred.weight",
        "head.text_projection.bias": "rpn.head.dot_product_projection_text.bias",
        "head.log_scale": "rpn.head.log_scale",
    }
    names = set(make_model().state_dict())
    assert {ours: published_names(ours, TINY) for ours in expected} == {o: [p] for o, p in expected.items()}
    assert set(expected) <= names


def test_scales_are_one_published_number_per_level() -> None:
    weights = published(make_model())
    names = [f"rpn.head.scales.{level}.scale" for level in range(5)]
    assert published_names("head.scales", TINY) == names
    assert [weights[name].shape for name in names] == [(1,)] * 5


@pytest.mark.parametrize("config", [TINY, WITHOUT_FUSION], ids=["fused", "without fusion"])
def test_to_published_and_back_is_the_same_model(config: GLIPConfig) -> None:
    model = make_model(config)
    back = from_published(published(model), config)
    state = model.state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in back.items())
    assert len(set(published(model))) == len(state) + 4  # five scales for one vector


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY, text=replace(TINY.text, projected_size=8)),
        replace(TINY, backbone=BackboneConfig(kind="timm", timm_name="test_efficientnet")),
    ],
    ids=["projected text", "timm"],
)
def test_a_model_with_parts_that_were_never_published_has_no_published_names(config: GLIPConfig) -> None:
    with pytest.raises(ValueError, match="has no published names"):
        to_published({}, config)


# Files


@pytest.mark.parametrize("config", [TINY, WITHOUT_FUSION], ids=["fused", "without fusion"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_as_a_training_leaves_it_loads(config: GLIPConfig, prefix: str, path: Path) -> None:
    model = make_model(config)
    weights = {prefix + name: value for name, value in (published(model) | IGNORED).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    extras = {"optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 3}, "iteration": 7, "model_ema": {}}
    torch.save({"model": weights, **extras}, path)
    loaded = load_published(path, config)
    assert same(loaded, model)
    assert loaded.config == config
    assert not any(module.training for module in loaded.modules())


def test_a_bare_state_dict_loads_too(path: Path) -> None:
    model = make_model()
    torch.save(published(model), path)
    assert same(load_published(str(path), TINY), model)


def test_without_a_config_the_preset_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the published width at the stem, by which it is told, and small everywhere else.
    swin = SwinConfig(embed_dim=96, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4)
    small = replace(WITHOUT_FUSION, backbone=BackboneConfig(swin=swin))
    monkeypatch.setitem(PRESETS, "glip_t_a", lambda: small)
    model = make_model(small)
    torch.save({"model": {f"module.{name}": value for name, value in published(model).items()}}, path)
    loaded = load_published(path)
    assert loaded.config == small
    assert same(loaded, model)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    torch.save({"model": published(make_model()), "args": Payload(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match=rf"^{path}: not readable as a published checkpoint"):
        load_published(path, TINY)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [None, b"", b"<html>404</html>", b"PK\x03\x04 a broken zip"])
def test_an_unreadable_file_is_an_error_with_its_path(content: bytes | None, path: Path) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: not readable as a published checkpoint"):
        load_published(path)


def test_a_file_that_was_cut_off_is_an_error_with_its_path(path: Path) -> None:
    torch.save({"model": published(make_model())}, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=rf"^{path}: not readable as a published checkpoint"):
        load_published(path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), "text", {"model": [1]}, {"model": None}])
def test_a_file_without_a_state_dict_is_an_error_that_says_what_was_expected(content: Any, path: Path) -> None:
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"^{path}: expected a dict with named weights under 'model'"):
        load_published(path)


@pytest.mark.parametrize("weights", [{}, {"epoch": 3}, {"conv1.weight": torch.zeros(64, 3, 7, 7)}])
def test_another_models_weights_are_no_published_glip(weights: dict[str, Any], path: Path) -> None:
    torch.save({"model": weights}, path)
    with pytest.raises(ValueError, match=rf"^{path}: holds no weights of a published GLIP"):
        load_published(path)


# What does not fit


def lose(weights: dict[str, Tensor]) -> None:
    del weights["rpn.head.scales.3.scale"]


def add(weights: dict[str, Tensor]) -> None:
    weights["rpn.head.surprise"] = torch.zeros(1)


def misshape(weights: dict[str, Tensor]) -> None:
    weights["rpn.head.bias_lang"] = torch.zeros(17)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lose, "1 missing (rpn.head.scales.3.scale), 0 unknown ()"),
        (add, "0 missing (), 1 unknown (rpn.head.surprise)"),
        (misshape, "1 tensors do not fit the model: head.bias_lang is (17,), expected (16,)"),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_a_weight_that_does_not_fit_is_listed(
    change: Callable[[dict[str, Tensor]], None], problem: str, path: Path
) -> None:
    weights = published(make_model())
    change(weights)
    torch.save({"model": weights}, path)
    with pytest.raises(ValueError, match=rf"^{path}: .*{re.escape(problem)}"):
        load_published(path, TINY)


def test_a_prefix_on_some_names_alone_is_no_prefix() -> None:
    weights = published(make_model())
    weights["module.rpn.head.bias0"] = weights.pop("rpn.head.bias0")
    problem = "1 missing (rpn.head.bias0), 1 unknown (module.rpn.head.bias0)"
    with pytest.raises(ValueError, match=re.escape(problem)):
        from_published(weights, TINY)


def test_a_checkpoint_of_another_size_is_refused() -> None:
    weights = published(make_model())
    with pytest.raises(ValueError, match=r"missing \(rpn\.head\.dyhead_tower\.6"):
        from_published(weights, replace(TINY, fusion=replace(TINY.fusion, num_layers=3)))
    with pytest.raises(ValueError, match=r"0 missing \(\), .* unknown \(.*b_attn"):
        from_published({**weights, **published(make_model(WITHOUT_FUSION))}, WITHOUT_FUSION)


# Presets


def fake(width: int, *names: str) -> dict[str, Tensor]:
    patches = torch.empty(width, 3, 4, 4, device="meta")
    return {"backbone.body.patch_embed.proj.weight": patches} | {n: torch.empty(1, device="meta") for n in names}


FUSED = "rpn.head.dyhead_tower.0.b_attn.gamma_v"


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("weights", "preset"),
    [
        (fake(96, FUSED), "glip_t"),
        (fake(96, "rpn.head.dyhead_tower.0.offset.weight"), "glip_t_a"),
        (fake(192, FUSED), "glip_l"),
    ],
    ids=["t", "a", "l"],
)
def test_a_preset_is_told_by_its_width_and_its_fusion(weights: dict[str, Tensor], preset: str, prefix: str) -> None:
    assert guess_preset({prefix + name: value for name, value in weights.items()}) == preset


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"model": torch.zeros(1)},
        fake(128, FUSED),
        {"backbone.body.patch_embed.proj.weight": torch.tensor(96.0)},
        {"backbone.body.patch_embed.proj.weight": "96"},
    ],
    ids=["empty", "other names", "other width", "number", "text"],
)
def test_what_is_no_published_model_has_no_preset(weights: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no backbone\.body\.patch_embed\.proj\.weight of width 96 or 192"):
        guess_preset(weights)
