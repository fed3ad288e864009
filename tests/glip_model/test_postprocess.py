"""Reading off, against the published steps written as loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from glip_model import postprocess as postprocessing
from glip_model.anchors import anchor_grid
from glip_model.boxes import encode_boxes
from glip_model.config import GLIPConfig
from glip_model.postprocess import DROPPED, KEPT, OPEN, postprocess, suppress, suppress_together
from glip_model.structures import Detections, GLIPOutput

CONFIG = GLIPConfig(
    num_levels=3, anchor_scale=4.0, score_threshold=0.3, pre_nms_topk=12, nms_threshold=0.5, max_detections=9
)
LEVELS = ((6, 8), (3, 4), (2, 2))
ANCHORS = anchor_grid(LEVELS, CONFIG.strides, CONFIG.anchor_scale, torch.device("cpu"))
TOKENS = 5


def make_output(size: int, seed: int) -> GLIPOutput:
    generator = torch.Generator().manual_seed(seed)
    return GLIPOutput(
        token_logits=torch.randn(size, len(ANCHORS), TOKENS, generator=generator),
        box_deltas=torch.randn(size, len(ANCHORS), 4, generator=generator) * 2,
        centerness=torch.randn(size, len(ANCHORS), generator=generator),
        level_sizes=LEVELS,
    )


def output_of(
    boxes: Tensor, probabilities: list[list[float]], centerness: float = 0.5
) -> tuple[GLIPOutput, list[Tensor]]:
    """One picture in which anchor i proposes box i; ``probabilities[i]`` are its token probabilities."""
    logits = torch.full((1, len(ANCHORS), len(probabilities[0])), -50.0)
    logits[0, : len(boxes)] = torch.tensor(probabilities).logit()
    deltas = torch.zeros(1, len(ANCHORS), 4)
    deltas[0, : len(boxes)] = encode_boxes(boxes, ANCHORS[: len(boxes)])
    raw = torch.full((1, len(ANCHORS)), math.log(centerness / (1 - centerness)))
    return GLIPOutput(logits, deltas, raw, LEVELS), [torch.eye(logits.shape[2], dtype=torch.bool)]


def inclusive_iou(left: list[float], right: list[float]) -> float:
    width = min(left[2], right[2]) - max(left[0], right[0]) + 1
    height = min(left[3], right[3]) - max(left[1], right[1]) + 1
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (left, right)]
    return shared / (sum(areas) - shared)


def slow_decode(deltas: list[float], anchor: list[float], size: tuple[int, int]) -> list[float]:
    box = [0.0] * 4
    for axis, limit in ((0, size[1]), (1, size[0])):
        length = anchor[axis + 2] - anchor[axis] + 1
        centre = (anchor[axis] + anchor[axis + 2]) / 2 + deltas[axis] / 10 * length
        new = length * math.exp(min(deltas[axis + 2] / 5, math.log(1000 / 16)))
        box[axis] = min(max(centre - 0.5 * (new - 1), 0), limit - 1)
        box[axis + 2] = min(max(centre + 0.5 * (new - 1), 0), limit - 1)
    return box


def slow_postprocess(
    output: GLIPOutput, i: int, positive_map: Tensor, size: tuple[int, int], original: tuple[int, int]
) -> list[tuple[float, int, list[float]]]:
    found: list[tuple[float, int, list[float]]] = []
    start = 0
    for height, width in LEVELS:
        level = []
        for a in range(start, start + height * width):
            for p, row in enumerate(positive_map.tolist()):
                logits = [output.token_logits[i, a, t].item() for t, belongs in enumerate(row) if belongs]
                score = sum(1 / (1 + math.exp(-x)) for x in logits) / len(logits) if logits else 0.0
                if score > CONFIG.score_threshold:
                    centred = score / (1 + math.exp(-output.centerness[i, a].item()))
                    box = slow_decode(output.box_deltas[i, a].tolist(), ANCHORS[a].tolist(), size)
                    level.append((math.sqrt(centred), p, box))
        found += sorted(level, reverse=True)[: CONFIG.pre_nms_topk]
        start += height * width
    kept: list[tuple[float, int, list[float]]] = []
    for candidate in sorted(found, reverse=True):
        rivals = [other for other in kept if other[1] == candidate[1]]
        if all(inclusive_iou(candidate[2], other[2]) <= CONFIG.nms_threshold for other in rivals):
            kept.append(candidate)
    scale = (original[1] / size[1], original[0] / size[0]) * 2
    return [(s, p, [x * f for x, f in zip(b, scale, strict=True)]) for s, p, b in kept[: CONFIG.max_detections]]


@pytest.mark.parametrize("seed", range(8))
def test_detections_equal_the_published_steps(seed: int) -> None:
    sizes, originals = ((48, 64), (40, 50)), ((96, 128), (20, 60))
    output = make_output(2, seed)
    maps = [  # the second prompt is shorter; its last phrase was cut off
        torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 1]]).bool(),
        torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool(),
    ]
    results = postprocess(output, sizes, maps, originals, CONFIG)
    for i, found in enumerate(results):
        expected = slow_postprocess(output, i, maps[i], sizes[i], originals[i])
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)
        assert found.phrase_index.tolist() == [phrase for _, phrase, _ in expected]
        for box, (_, _, slow) in zip(found.boxes_xyxy.tolist(), expected, strict=True):
            assert box == pytest.approx(slow, abs=1e-3)


def test_random_outputs_reach_every_limit() -> None:
    """The comparison above is about something: each setting changes what is found."""
    maps, sizes = [torch.eye(TOKENS, dtype=torch.bool)], ((48, 64),)
    output = make_output(1, 0)

    def found(config: GLIPConfig) -> list[float]:
        return postprocess(output, sizes, maps, sizes, config)[0].scores.tolist()

    loose = replace(CONFIG, max_detections=1000)
    assert len(found(CONFIG)) == CONFIG.max_detections < len(found(loose))
    assert found(replace(loose, pre_nms_topk=1000)) != found(loose)
    assert found(replace(loose, nms_threshold=0.99)) != found(loose)
    assert found(replace(loose, pre_nms_topk=1000, score_threshold=0.7)) != found(replace(loose, pre_nms_topk=1000))


def test_the_threshold_comes_before_centerness() -> None:
    output, maps = output_of(torch.tensor([[5.0, 5.0, 20.0, 20.0]]), [[0.31]], centerness=0.01)
    (found,) = postprocess(output, ((48, 64),), maps, [(48, 64)], CONFIG)
    assert found.scores.tolist() == pytest.approx([math.sqrt(0.31 * 0.01)], rel=1e-4)


def test_ties_at_the_last_score_stay() -> None:
    corners = torch.tensor([[x, y] for y in (0.0, 24.0) for x in (0.0, 16.0, 32.0)])
    boxes = torch.cat((corners, corners + 9), 1)
    output, maps = output_of(boxes, [[0.9]] + [[0.5]] * 5)
    (found,) = postprocess(output, ((48, 64),), maps, [(48, 64)], replace(CONFIG, max_detections=3))
    assert len(found) == 6
    assert found.boxes_xyxy[0].tolist() == pytest.approx([0, 0, 9, 9], abs=1e-3)


def test_boxes_suppress_one_another_within_a_phrase_only() -> None:
    boxes = torch.tensor([[5.0, 5.0, 24.0, 24.0], [6.0, 5.0, 25.0, 24.0]])
    output, maps = output_of(boxes, [[0.9, 0.6], [0.8, 0.7]])
    (found,) = postprocess(output, ((48, 64),), maps, [(48, 64)], CONFIG)
    assert found.phrase_index.tolist() == [0, 1]
    assert found.boxes_xyxy[:, 0].tolist() == pytest.approx([5, 6], abs=1e-3)


def test_suppression_is_as_exact_for_the_last_phrase_as_for_the_first() -> None:
    """Boxes near the threshold: shifting phrases apart, as batched NMS does, must not round their IoU."""
    first = [700.0, 300.0, 716.0, 316.0]
    size, phrases = (1000, 1200), 100
    config = replace(CONFIG, max_detections=1000, pre_nms_topk=1000)
    for shift in (3.996, 3.999, 4.001, 4.004):
        second = [first[0] + shift, first[1], first[2] + shift, first[3]]
        boxes = torch.tensor([first, second])
        output, maps = output_of(boxes, [[0.9] * phrases, [0.8] * phrases])
        threshold = inclusive_iou(first, [first[0] + 4, first[1], first[2] + 4, first[3]])
        (found,) = postprocess(output, (size,), maps, [size], replace(config, nms_threshold=threshold))
        assert len(found) == (phrases if shift < 4 else 2 * phrases)


def test_boxes_end_on_the_last_pixel_of_the_picture_and_grow_with_it() -> None:
    output, maps = output_of(torch.tensor([[-30.0, -30.0, 90.0, 90.0]]), [[0.9]])
    (found,) = postprocess(output, ((40, 50),), maps, [(80, 150)], CONFIG)
    assert found.boxes_xyxy[0].tolist() == pytest.approx([0, 0, 49 * 3, 39 * 2])


@pytest.mark.parametrize("positive_map", [torch.zeros(0, TOKENS), torch.zeros(2, TOKENS)], ids=["none", "cut off"])
def test_without_phrases_or_their_tokens_nothing_is_found(positive_map: Tensor) -> None:
    sizes = ((48, 64),)
    (found,) = postprocess(make_output(1, 0), sizes, [positive_map.bool()], sizes, CONFIG)
    assert isinstance(found, Detections)
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.phrase_index.dtype == torch.int64


def test_pictures_are_postprocessed_independently() -> None:
    sizes = ((48, 64), (40, 50))
    output, maps = make_output(2, 5), [torch.eye(TOKENS, dtype=torch.bool)] * 2
    both = postprocess(output, sizes, maps, sizes, CONFIG)
    for i in range(2):
        alone = GLIPOutput(
            output.token_logits[i : i + 1], output.box_deltas[i : i + 1], output.centerness[i : i + 1], LEVELS
        )
        (single,) = postprocess(alone, sizes[i : i + 1], maps[:1], sizes[i : i + 1], CONFIG)
        torch.testing.assert_close(single.boxes_xyxy, both[i].boxes_xyxy)
        assert torch.equal(single.phrase_index, both[i].phrase_index)


@pytest.mark.parametrize("seed", range(6))
def test_suppression_of_pictures_together_is_that_of_each_box_after_box(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(3, 200, 2, generator=generator, dtype=torch.float64) * 90
    boxes = torch.cat((corners, corners + 5 + 40 * torch.rand(3, 200, 2, generator=generator)), -1)
    phrases, scores = torch.randint(3, (3, 200), generator=generator), torch.linspace(1, 0.1, 200)
    fates = suppress_together(boxes, phrases, 0.4)
    for i in range(3):
        assert torch.equal(fates[i], suppress(boxes[i], scores, phrases[i], 0.4))
        assert {KEPT, DROPPED} == set(fates[i].tolist())


def test_a_picture_with_a_long_chain_of_rivals_stays_open_and_is_suppressed_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = 3.0 * torch.arange(12.0)  # each box overlaps the next one too much, and no other
    boxes = torch.stack((left, torch.zeros(12), left + 10, torch.full((12,), 10.0)), 1)
    output, maps = output_of(boxes, [[0.9 - 0.01 * i] for i in range(12)])
    sizes, config = ((48, 64),), replace(CONFIG, nms_threshold=0.5, max_detections=100)
    (expected,) = postprocess(output, sizes, maps, sizes, config)
    assert len(expected) == 6
    monkeypatch.setattr(postprocessing, "ROUNDS", 3)
    opened = suppress_together(boxes[None].double(), torch.zeros(1, 12, dtype=torch.int64), 0.5)
    assert (opened == OPEN).all()
    on_host, calls = postprocessing._suppress, []

    def as_on_a_gpu(*arguments: Any) -> list[Tensor]:
        calls.append(arguments)
        return [opened[0]] if len(calls) == 1 else on_host(*arguments)

    monkeypatch.setattr(postprocessing, "_suppress", as_on_a_gpu)
    (found,) = postprocess(output, sizes, maps, sizes, config)
    assert len(calls) == 2
    assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy)
