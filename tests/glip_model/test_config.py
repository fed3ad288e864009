"""GLIPConfig: published sizes, dicts and back, and values that do not go together."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glip_model.config import (
    PRESETS,
    BackboneConfig,
    FusionConfig,
    GLIPConfig,
    SwinConfig,
    TextConfig,
    glip_l,
    glip_t,
    glip_t_a,
)
from glip_model.glip import GLIP

CLASSIFIER = 20_560
"""Parameters of the published classification head (80 × 256 + 80), frozen and never used; ours has none."""
COUNTS = {
    # Specification, section 1.1: all parameters, and those that are trained.
    "glip_t_a": (151_430_526, 151_409_966),
    "glip_t": (231_780_222, 231_759_662),
    "glip_l": (430_422_384, 429_199_508),
}


def on_meta(config: GLIPConfig) -> GLIP:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisation of what has no values
        return GLIP(config)


# Presets


@pytest.mark.parametrize("preset", COUNTS)
def test_presets_have_the_published_numbers_of_parameters(preset: str) -> None:
    parameters = list(on_meta(PRESETS[preset]()).parameters())
    total, trained = COUNTS[preset]
    assert sum(p.numel() for p in parameters) + CLASSIFIER == total
    assert sum(p.numel() for p in parameters if p.requires_grad) == trained


def test_parts_have_the_published_numbers_of_parameters() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    tiny, large = on_meta(glip_t()), on_meta(glip_l())
    # Specification, section 1.1, parameter split.
    assert (count(tiny.backbone), count(large.backbone)) == (27_520_506, 195_200_820)
    assert (count(tiny.fpn), count(large.fpn)) == (3_295_232, 3_639_296)
    assert count(tiny.text_encoder) == 108_891_648
    layer: Any = tiny.tower[0]
    assert [count(part) for part in (layer.fuse, layer.text, layer.dyconv)] == [6_303_744, 7_087_872, 1_917_276]
    assert count(tiny.head) + CLASSIFIER == 219_484


def test_presets_differ_where_the_published_ones_do() -> None:
    assert PRESETS["glip_t_b"]() == PRESETS["glip_t_c"]() == glip_t() == GLIPConfig()
    assert replace(glip_t_a(), fusion=FusionConfig()) == glip_t()
    large = glip_l()
    assert (large.backbone.freeze_stem, large.backbone.frozen_stages) == (True, 1)
    assert (large.fusion.num_layers, large.fusion.enabled) == (8, True)
    assert large.text == glip_t().text


@pytest.mark.parametrize("num_levels", [3, 4, 5])
def test_strides_double_from_8_on(num_levels: int) -> None:
    assert GLIPConfig(num_levels=num_levels).strides == (8, 16, 32, 64, 128)[:num_levels]


def test_text_is_as_wide_as_its_encoder_or_its_projection() -> None:
    assert GLIPConfig().text_size == 768
    assert GLIPConfig(text=TextConfig(projected_size=384)).text_size == 384


def test_configs_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GLIPConfig().channels = 3  # type: ignore[misc]


# Dicts


def through_json(config: GLIPConfig) -> GLIPConfig:
    return GLIPConfig.from_dict(json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_json(preset: str) -> None:
    config = PRESETS[preset]()
    assert through_json(config) == config
    assert GLIPConfig.from_dict(config.to_dict()) == config


probabilities = st.floats(0, 1)
configs = st.builds(
    GLIPConfig,
    backbone=st.builds(
        BackboneConfig,
        swin=st.builds(
            SwinConfig,
            depths=st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple),
            num_heads=st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple),
            drop_path=probabilities,
        ),
        timm_name=st.none() | st.text(max_size=9),
        frozen_stages=st.integers(0, 4),
        pixel_mean=st.tuples(*[st.floats(0, 255)] * 3),
    ),
    text=st.builds(
        TextConfig,
        name=st.text(max_size=9),
        frozen=st.just(True),
        encoding=st.sampled_from(["joint", "segments"]),
        projected_size=st.sampled_from([None, 12, 384]),
    ),
    fusion=st.builds(
        FusionConfig, enabled=st.booleans(), num_layers=st.integers(1, 9), residual_scale=st.none() | probabilities
    ),
    num_levels=st.integers(3, 5),
    channels=st.integers(1, 9).map(lambda n: n * 16),
    log_scale=st.floats(-9, 9),
)


@given(configs)
def test_any_config_survives_json(config: GLIPConfig) -> None:
    assert through_json(config) == config
    assert hash(through_json(config)) == hash(config)  # tuples again, not lists


def test_settings_that_are_left_out_are_the_defaults() -> None:
    assert GLIPConfig.from_dict({}) == GLIPConfig()
    found = GLIPConfig.from_dict({"backbone": {"swin": {"window_size": 12}}, "channels": 512})
    assert found == GLIPConfig(backbone=BackboneConfig(swin=SwinConfig(window_size=12)), channels=512)


def test_sections_may_be_given_whole() -> None:
    fusion = FusionConfig(num_layers=2)
    assert GLIPConfig.from_dict({"fusion": fusion}) == GLIPConfig(fusion=fusion)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"chanels": 256}, "chanels"),
        ({"backbone": {"knd": "swin"}}, "backbone.knd"),
        ({"backbone": {"swin": {"depth": [2]}}}, "backbone.swin.depth"),
        ({"text": {"max_token": 3}}, "text.max_token"),
        ({"fusion": {"swin": {}}}, "fusion.swin"),
    ],
)
def test_a_key_that_is_no_setting_is_an_error_with_its_place_and_the_settings_there(
    values: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(name)} is not a model setting; settings here: ") as caught:
        GLIPConfig.from_dict(values)
    section: Any = GLIPConfig()
    for part in name.split(".")[:-1]:
        section = getattr(section, part)
    listed = str(caught.value).split("settings here: ")[1].split(", ")
    assert listed == sorted(f.name for f in dataclasses.fields(section))


# Values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_levels": 2}, "num_levels must be 3 to 5 (P3 to P5, P6 or P7), got 2"),
        ({"num_levels": 6}, "got 6"),
        ({"channels": 100}, "channels (=100) must be divisible by norm_groups (=16)"),
        (
            {"fusion": FusionConfig(embed_dim=100)},
            "fusion.embed_dim (=100) must be divisible by fusion.num_heads (=8)",
        ),
        (
            {"text": TextConfig(projected_size=100)},
            "text width in the tower (=100) must be divisible by fusion.text_num_heads (=12)",
        ),
        ({"text": TextConfig(hidden_size=100)}, "text width in the tower (=100)"),
        ({"text": TextConfig(encoding="segments")}, "text.encoding 'segments' needs text.frozen"),
        ({"backbone": BackboneConfig(kind="timm")}, "backbone.timm_name is empty"),
        ({"backbone": BackboneConfig(kind="timm", timm_name="")}, "backbone.timm_name is empty"),
    ],
)
def test_values_that_do_not_go_together_are_named_with_their_rule(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        GLIPConfig(**change)
    with pytest.raises(ValueError, match=re.escape(message)):
        GLIPConfig.from_dict({name: getattr(v, "__dict__", v) for name, v in change.items()})


def test_without_fusion_no_tower_text_layer_limits_the_texts_width() -> None:
    text, fusion = TextConfig(hidden_size=100), FusionConfig(enabled=False)
    assert GLIPConfig(text=text, fusion=fusion).text_size == 100


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 0}, "channels is 0; expected a whole number from 1 to 32,768"),
        ({"channels": 10**12}, "channels is 1000000000000; expected a whole number"),
        ({"channels": 256.0}, "channels is 256.0; expected a whole number"),
        ({"norm_groups": 0}, "norm_groups is 0"),
        ({"fusion": {"num_heads": 0}}, "fusion.num_heads is 0"),
        ({"text": {"hidden_size": -768}}, "text.hidden_size is -768"),
        ({"text": {"vocab_size": True}}, "text.vocab_size is True"),
        ({"text": "bert"}, "text is 'bert'; expected a mapping of settings"),
        ({"backbone": {"swin": {"depths": [10**12]}}}, "backbone.swin.depths is 1000000000000"),
        ({"backbone": {"swin": {"depths": []}}}, "backbone.swin.depths is (); expected a list"),
        ({"backbone": {"pixel_std": [0, 1, 1]}}, "backbone.pixel_std is 0"),
        ({"backbone": {"kind": "resnet"}}, "backbone.kind is 'resnet'; expected one of swin, timm"),
        ({"backbone": {"kind": {}}}, "backbone.kind is {}; expected one of swin, timm"),
        ({"text": {"encoding": {}}}, "text.encoding is {}; expected one of joint, segments"),
        ({"text": {"encoding": ["joint"]}}, "text.encoding is ('joint',); expected one of joint, segments"),
        ({"log_scale": float("nan")}, "log_scale is nan"),
        ({"anchor_scale": float("inf")}, "anchor_scale is inf"),
        ({"deformable": "yes"}, "deformable is 'yes'; expected true or false"),
        ({7: 1}, "7 is not a model setting"),
        ([], "the model's settings are []; expected a mapping of settings"),
    ],
)
def test_wild_values_are_refused_before_anything_is_built(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}"):
        GLIPConfig.from_dict(values)
