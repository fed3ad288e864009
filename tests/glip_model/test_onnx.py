"""Detectors as ONNX files against the predictor: any size, any number of pictures, float32, float16 and int8."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.onnx_detector import METADATA_KEY, NO_CLASS, DetectorCard, export_detector
from glip_model.onnx_precision import to_half, to_int8
from glip_model.onnx_predictor import OnnxPredictor
from glip_model.predictor import GLIPPredictor
from glip_model.structures import Detections

NAMES = ("a dog", "fire truck", "frog")
PUBLISHED = GLIPConfig(
    backbone=BackboneConfig(
        swin=SwinConfig(embed_dim=16, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 2), window_size=4, drop_path=0.0)
    ),
    text=TextConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_tokens=32),
    fusion=FusionConfig(num_layers=2, embed_dim=16, num_heads=2, text_num_heads=2, text_intermediate_size=16),
    channels=16,
    norm_groups=4,
    score_threshold=0.0,
    pre_nms_topk=200,
    max_detections=20,
    test_short_side=64,
    test_long_side=160,
)
"""GLIP-T in everything but its widths and depths: deformable convolution, inclusive corners, BGR."""
CONFIGS = {
    "glip_t": PUBLISHED,
    "glip_t_a": dataclasses.replace(PUBLISHED, fusion=dataclasses.replace(PUBLISHED.fusion, enabled=False)),
    "plain": dataclasses.replace(PUBLISHED, deformable=False, inclusive_corners=False, num_levels=3),
}


def predictor_of(config: GLIPConfig, tokenizer: Any) -> GLIPPredictor:
    torch.manual_seed(1)
    model = GLIP(config).eval()
    with torch.no_grad():
        model.head.text_projection.weight.mul_(30)
        model.head.bbox_pred.weight.mul_(10)
        model.head.bias0.fill_(0.0)
        for layer in model.tower:
            if layer.dyconv.offset is not None:
                layer.dyconv.offset.weight.mul_(5)
    return GLIPPredictor(model, tokenizer, "cpu", "float32")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


PICTURES = [picture(120, 90), picture(90, 160, 1), picture(33, 200, 2), picture(120, 90, 3)]


def assert_same(found: Detections, expected: Detections, scores: float = 1e-4, sides: float = 0.01) -> None:
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=scores)
    assert found.labels == expected.labels
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=sides)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: Any) -> tuple[GLIPPredictor, Path]:
    predictor = predictor_of(CONFIGS[request.param], tokenizer)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    export_detector(predictor.model, tokenizer, NAMES, path)
    return predictor, path


def test_a_file_finds_what_the_predictor_finds(pair: tuple[GLIPPredictor, Path]) -> None:
    predictor, path = pair
    detector = OnnxPredictor(path, "cpu", threads=1)
    found = detector.predict(PICTURES, batch_size=4)
    assert [each.phrases for each in found] == [NAMES] * len(PICTURES)
    for mine, theirs in zip(found, predictor.predict(PICTURES, NAMES), strict=True):
        assert_same(mine, theirs)
    for tile in (64,):
        [mine], [theirs] = detector.predict(PICTURES[2], tile=tile), predictor.predict(PICTURES[2], NAMES, tile=tile)
        assert_same(mine, theirs)


def test_names_may_be_chosen_and_others_are_refused(pair: tuple[GLIPPredictor, Path]) -> None:
    detector = OnnxPredictor(pair[1], "cpu", threads=1)
    [every], [some] = detector.predict(PICTURES[0]), detector.predict(PICTURES[0], ["Frog", "a dog"])
    assert some.phrases == ("frog", "a dog")
    assert some.labels == tuple(label for label in every.labels if label != "fire truck")
    with pytest.raises(ValueError, match="'a cat' is not among the names of the file: a dog, fire truck, frog"):
        detector.predict(PICTURES[0], ["a cat"])


def test_more_names_than_a_prompt_holds_are_found_too(tokenizer: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(PUBLISHED, text=dataclasses.replace(PUBLISHED.text, max_tokens=8))
    predictor = predictor_of(config, tokenizer)
    names = ["a dog", "fire truck", "frog", "a red ball", "potato"]
    assert len(predictor.divide(names)) > 1
    export_detector(predictor.model, tokenizer, names, tmp_path / "model.onnx")
    [found] = OnnxPredictor(tmp_path / "model.onnx", "cpu", threads=1).predict(PICTURES[0])
    assert_same(found, predictor.predict(PICTURES[0], names)[0])


def test_where_little_is_found_the_rest_is_marked(tokenizer: Any, tmp_path: Path) -> None:
    predictor = predictor_of(dataclasses.replace(PUBLISHED, score_threshold=0.6), tokenizer)
    [expected] = predictor.predict(PICTURES[0], NAMES)
    assert 0 < len(expected) < PUBLISHED.max_detections, "the threshold of this test lets none or all through"
    export_detector(predictor.model, tokenizer, NAMES, tmp_path / "model.onnx")
    detector = OnnxPredictor(tmp_path / "model.onnx", "cpu", threads=1)
    assert_same(detector.predict(PICTURES[0])[0], expected)
    answers = detector._session.run(None, {"images": detector.resize_rule(PICTURES[0]).pixels[None]})
    boxes, scores, classes = (each[0] for each in answers)
    assert (scores[len(expected) :] == 0).all()
    assert (classes[len(expected) :] == NO_CLASS).all()
    assert (boxes[len(expected) :] == 0).all()


@pytest.mark.parametrize("kind", ["half", "dynamic", "calibrated"])
def test_fewer_bits_find_nearly_the_same(tokenizer: Any, tmp_path: Path, kind: str) -> None:
    predictor = predictor_of(PUBLISHED, tokenizer)
    exact, small = tmp_path / "exact.onnx", tmp_path / "small.onnx"
    export_detector(predictor.model, tokenizer, NAMES, exact)
    if kind == "half":
        to_half(exact, small)
    else:
        shown = [predictor.resize_rule(each).pixels for each in PICTURES]
        to_int8(exact, small, shown if kind == "calibrated" else ())
    operators = {node.op_type for node in onnx.load(small).graph.node}
    wanted = {"half": "Cast", "dynamic": "MatMulInteger", "calibrated": "QuantizeLinear"}[kind]
    assert wanted in operators or f"Dynamic{wanted}" in operators
    assert small.stat().st_size < exact.stat().st_size
    [found] = OnnxPredictor(small, "cpu", threads=1).predict(PICTURES[0])
    [expected] = predictor.predict(PICTURES[0], NAMES)
    torch.testing.assert_close(found.scores[:5], expected.scores[:5], rtol=0, atol=0.05)


def test_files_of_others_are_refused(pair: tuple[GLIPPredictor, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="onnxruntime cannot load it"):
        OnnxPredictor(tmp_path / "broken.onnx", "cpu")
    model = onnx.load(pair[1])
    for text, message in ((None, "names no classes"), ('{"names": []}', "metadata cannot be read"), ("[", "cannot be")):
        onnx.helper.set_model_props(model, {} if text is None else {METADATA_KEY: text})
        onnx.save(model, tmp_path / "other.onnx")
        with pytest.raises(ValueError, match=message):
            OnnxPredictor(tmp_path / "other.onnx", "cpu")
    with pytest.raises(ValueError, match="this onnxruntime has no TensorrtExecutionProvider"):
        OnnxPredictor(pair[1], "tensorrt")
    with pytest.raises(ValueError, match="expected one of cpu, cuda, tensorrt, openvino"):
        OnnxPredictor(pair[1], "abacus")


def test_cards_come_back_as_they_were() -> None:
    card = DetectorCard(names=("ä", "b"), short_side=64, long_side=96, inclusive_corners=True, nms_threshold=0.6)
    assert DetectorCard.from_json(card.to_json()) == card
