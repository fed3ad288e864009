"""The criterion against a re-computation number by number, and what it promises beyond the published code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from glip_model import losses
from glip_model.anchors import anchor_grid
from glip_model.boxes import decode_boxes, generalised_iou
from glip_model.config import GLIPConfig
from glip_model.losses import GroundingCriterion, centerness_of, focal_loss
from glip_model.matching import match_anchors
from glip_model.structures import GLIPOutput, GroundingBatch, GroundingTarget

CONFIG = GLIPConfig(
    num_levels=3,
    anchor_scale=4.0,
    atss_topk=4,
    token_loss_weight=0.7,
    box_loss_weight=2.0,
    centerness_loss_weight=1.3,
)
LEVELS = ((6, 8), (3, 4), (2, 2))
COUNTS = tuple(height * width for height, width in LEVELS)
ANCHORS = anchor_grid(LEVELS, CONFIG.strides, CONFIG.anchor_scale, torch.device("cpu"))
TOKENS = 6


def make_target(seed: int, num_boxes: int) -> GroundingTarget:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num_boxes, 2, generator=generator) * 25
    sizes = 12 + torch.rand(num_boxes, 2, generator=generator) * 25
    positive_map = torch.rand(num_boxes, TOKENS, generator=generator) < 0.4
    return GroundingTarget(torch.cat((corners, corners + sizes), 1), positive_map)


def make_batch(targets: Sequence[GroundingTarget] | None, real_tokens: Sequence[int] | None = None) -> GroundingBatch:
    size = len(targets) if targets is not None else 1
    mask = torch.zeros(size, TOKENS, dtype=torch.bool)
    for i, count in enumerate(real_tokens or [TOKENS] * size):
        mask[i, :count] = True
    return GroundingBatch(
        pixel_values=torch.zeros(size, 3, 48, 64),
        image_sizes=((48, 64),) * size,
        input_ids=torch.zeros(size, TOKENS, dtype=torch.int64),
        attention_mask=mask,
        targets=None if targets is None else tuple(targets),
    )


def make_output(size: int, seed: int = 0) -> GLIPOutput:
    generator = torch.Generator().manual_seed(seed)
    return GLIPOutput(
        token_logits=torch.randn(size, len(ANCHORS), TOKENS, generator=generator).requires_grad_(),
        box_deltas=(torch.randn(size, len(ANCHORS), 4, generator=generator) * 0.5).requires_grad_(),
        centerness=torch.randn(size, len(ANCHORS), generator=generator).requires_grad_(),
        level_sizes=LEVELS,
    )


def rows_of(output: GLIPOutput, rows: slice) -> GLIPOutput:
    return replace(
        output,
        token_logits=output.token_logits[rows],
        box_deltas=output.box_deltas[rows],
        centerness=output.centerness[rows],
    )


def binary_entropy(logit: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


def slow_losses(output: GLIPOutput, batch: GroundingBatch) -> dict[str, float]:
    """Anchor by anchor and token by token, straight from the definitions."""
    token = box = centerness = quality_sum = 0.0
    positives = 0
    assert batch.targets is not None
    for i, target in enumerate(batch.targets):
        match = match_anchors(ANCHORS, COUNTS, target.boxes_xyxy, CONFIG.atss_topk).tolist()
        for a, n in enumerate(match):
            for t in range(TOKENS):
                used = batch.attention_mask[i, t] and (target.token_mask is None or target.token_mask[t])
                wanted = float(n >= 0 and bool(target.positive_map[n, t]))
                logit = output.token_logits[i, a, t].item()
                probability = 1 / (1 + math.exp(-logit))
                alpha, miss = (0.25, 1 - probability) if wanted else (0.75, probability)
                token += float(used) * alpha * miss**2 * binary_entropy(logit, wanted)
            if n < 0:
                continue
            x, y = ((ANCHORS[a, :2] + ANCHORS[a, 2:]) / 2).tolist()
            left, top, right, bottom = target.boxes_xyxy[n].tolist()
            across = min(x - left, right - x) / max(x - left, right - x)
            down = min(y - top, bottom - y) / max(y - top, bottom - y)
            quality = math.sqrt(across * down)
            decoded = decode_boxes(output.box_deltas[i, a].detach(), ANCHORS[a])
            box += quality * (1 - generalised_iou(decoded[None], target.boxes_xyxy[n][None]).item())
            centerness += binary_entropy(output.centerness[i, a].item(), quality)
            quality_sum += quality
            positives += 1
    return {
        "loss_token": 0.7 * token / max(positives, 1),
        "loss_box": 2.0 * box / quality_sum,
        "loss_centerness": 1.3 * centerness / max(positives, 1),
    }


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_definitions(seed: int) -> None:
    targets = [make_target(seed, 2), make_target(seed + 50, 3), make_target(seed, 0)]
    masked = torch.tensor([True, True, False, True, True, True])
    targets[1] = replace(targets[1], token_mask=masked)
    batch, output = make_batch(targets, [TOKENS, 5, 4]), make_output(3, seed)
    found = GroundingCriterion(CONFIG)(output, batch)
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(slow_losses(output, batch), rel=1e-4)
    sum(found.values(), torch.zeros(())).backward()
    for prediction in (output.token_logits, output.box_deltas, output.centerness):
        assert prediction.grad is not None
        assert prediction.grad.isfinite().all()
        assert prediction.grad.abs().sum() > 0


def test_a_small_sum_of_centerness_still_divides_the_box_loss() -> None:
    one = torch.tensor([[7.0, 11.0, 13.0, 15.0]])  # one anchor, far from its middle
    batch, output = make_batch([GroundingTarget(one, torch.ones(1, TOKENS, dtype=torch.bool))]), make_output(1)
    matched = ANCHORS[match_anchors(ANCHORS, COUNTS, one, CONFIG.atss_topk) >= 0]
    assert centerness_of(matched, one).tolist() == pytest.approx([0.218], abs=1e-3)
    found = GroundingCriterion(CONFIG)(output, batch)
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(slow_losses(output, batch), rel=1e-4)


def test_pictures_without_boxes_are_all_background() -> None:
    output, batch = make_output(2), make_batch([make_target(0, 0), make_target(1, 0)])
    found = GroundingCriterion(CONFIG)(output, batch)
    background = focal_loss(output.token_logits, torch.zeros_like(output.token_logits), batch.attention_mask, 0.25, 2.0)
    assert found["loss_token"].item() == pytest.approx(0.7 * background.item())
    assert found["loss_box"].item() == 0
    assert found["loss_centerness"].item() == 0
    sum(found.values(), torch.zeros(())).backward()
    # Every parameter gets a gradient, if only of zeros: DistributedDataParallel waits for all of them.
    assert output.box_deltas.grad is not None
    assert output.centerness.grad is not None
    assert not output.box_deltas.grad.any()


def test_a_box_that_lost_its_phrase_still_trains_box_and_centerness() -> None:
    target = make_target(0, 1)
    silent = replace(target, positive_map=torch.zeros_like(target.positive_map))
    output = make_output(1)
    found = GroundingCriterion(CONFIG)(output, make_batch([silent]))
    everywhere = torch.ones(1, TOKENS, dtype=torch.bool)
    background = focal_loss(output.token_logits, torch.zeros_like(output.token_logits), everywhere, 0.25, 2.0)
    positives = int((match_anchors(ANCHORS, COUNTS, target.boxes_xyxy, CONFIG.atss_topk) >= 0).sum())
    assert positives > 0
    assert found["loss_token"].item() == pytest.approx(0.7 * background.item() / positives)
    assert found["loss_box"].item() > 0
    assert found["loss_centerness"].item() > 0


def test_masked_tokens_and_padding_take_no_part() -> None:
    """Token 2 is masked in the target of picture 0; picture 1 has padding from token 4 on."""
    token_mask = torch.ones(TOKENS, dtype=torch.bool)
    token_mask[2] = False
    targets = [replace(make_target(0, 2), token_mask=token_mask), make_target(1, 2)]
    batch, output = make_batch(targets, [TOKENS, 4]), make_output(2)
    before = GroundingCriterion(CONFIG)(output, batch)["loss_token"]
    disturbed = output.token_logits.detach().clone()
    disturbed[0, :, 2] = 50_000.0
    disturbed[1, :, 4:] = -50_000.0
    after = GroundingCriterion(CONFIG)(replace(output, token_logits=disturbed), batch)["loss_token"]
    assert after.item() == before.item()
    before.backward()
    assert output.token_logits.grad is not None
    assert not output.token_logits.grad[0, :, 2].any()
    assert not output.token_logits.grad[1, :, 4:].any()
    assert output.token_logits.grad[1, :, 2].any()
    assert batch.attention_mask[0].all()  # the batch's own mask is left as it was


def test_losses_are_float32_in_mixed_precision() -> None:
    batch, output = make_batch([make_target(0, 2)]), make_output(1)
    half = GLIPOutput(
        output.token_logits.detach().bfloat16(), output.box_deltas.detach().bfloat16(),
        output.centerness.detach().bfloat16(), LEVELS,
    )  # fmt: skip
    as_float = GLIPOutput(half.token_logits.float(), half.box_deltas.float(), half.centerness.float(), LEVELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = GroundingCriterion(CONFIG)(half, batch)
    expected = GroundingCriterion(CONFIG)(as_float, batch)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        assert loss.item() == expected[name].item()


def test_a_batch_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="has no targets"):
        GroundingCriterion(CONFIG)(make_output(1), make_batch(None))


def test_the_right_answer_costs_next_to_nothing() -> None:
    target = make_target(4, 2)
    batch = make_batch([target])
    match = match_anchors(ANCHORS, COUNTS, target.boxes_xyxy, CONFIG.atss_topk)
    positive = match >= 0
    logits = torch.full((1, len(ANCHORS), TOKENS), -12.0)
    logits[0, positive] = torch.where(target.positive_map[match[positive]], 12.0, -12.0)
    deltas = torch.zeros(1, len(ANCHORS), 4)
    deltas[0, positive] = losses.encode_boxes(target.boxes_xyxy[match[positive]], ANCHORS[positive])
    found = GroundingCriterion(CONFIG)(GLIPOutput(logits, deltas, torch.zeros(1, len(ANCHORS)), LEVELS), batch)
    assert found["loss_token"].item() < 1e-4
    assert found["loss_box"].item() < 1e-4


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_of_single_pairs(gamma: float) -> None:
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    for logit, wanted in ((-2.0, 1.0), (3.0, 1.0), (-2.0, 0.0), (3.0, 0.0)):
        probability = 1 / (1 + math.exp(-logit))
        alpha, miss = (0.25, 1 - probability) if wanted else (0.75, probability)
        found = focal_loss(torch.tensor([[[logit]]]), torch.tensor([[[wanted]]]), everywhere, 0.25, gamma)
        assert found.item() == pytest.approx(alpha * miss**gamma * binary_entropy(logit, wanted), rel=1e-5)


def test_centerness_is_one_in_the_middle_and_falls_to_the_sides() -> None:
    anchors = torch.tensor([[8.0, 8.0, 12.0, 12.0]]).expand(4, 4)  # centre (10, 10)
    boxes = torch.tensor(
        [[0.0, 5.0, 20.0, 15.0], [5.0, 0.0, 25.0, 20.0], [10.0, 0.0, 20.0, 20.0], [12.0, 0.0, 22.0, 20.0]]
    )
    assert centerness_of(anchors, boxes).tolist() == pytest.approx([1.0, math.sqrt(5 / 15), 0.0, 0.0])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_boxes_whose_shape_counts_less_count_less_in_the_losses_of_shape_alone(share: float) -> None:
    sure, doubted = make_target(0, 2), replace(make_target(9, 3), shape_weight=share)
    criterion, output = GroundingCriterion(CONFIG), make_output(2)
    plain = criterion(output, make_batch([sure, replace(doubted, shape_weight=1.0)]))
    found = criterion(output, make_batch([sure, doubted]))
    assert found["loss_token"] == plain["loss_token"]
    # Without the other's weights: as if every box of the second picture had this weight in all losses.
    weighed = criterion(output, make_batch([sure, replace(make_target(9, 3), box_weights=torch.full((3,), share))]))
    assert found["loss_box"].item() == pytest.approx(weighed["loss_box"].item(), rel=1e-6)
    assert found["loss_centerness"].item() == pytest.approx(weighed["loss_centerness"].item(), rel=1e-6)
    assert found["loss_box"] != plain["loss_box"]


class TwoRanks:
    """Stands for torch.distributed with two ranks of which one is played: the other's numbers are known."""

    def __init__(self, others: list[Tensor]) -> None:
        self._others = iter(others)
        self.seen: list[Tensor] = []

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, value: Tensor) -> None:
        self.seen.append(value.clone())
        value += next(self._others)


def test_ranks_together_compute_the_loss_of_the_whole_batch(monkeypatch: Any) -> None:
    """As DistributedDataParallel averages gradients, so the mean of the ranks' losses is that of one large batch."""
    targets = [make_target(0, 3), make_target(9, 1), make_target(0, 0)]
    output = make_output(3)
    whole = GroundingCriterion(CONFIG)(output, make_batch(targets))
    parts = [slice(0, 1), slice(1, 3)]

    def run(rank: int, others: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        ranks = TwoRanks(others)
        monkeypatch.setattr(losses, "dist", ranks)
        found = GroundingCriterion(CONFIG)(rows_of(output, parts[rank]), make_batch(targets[parts[rank]]))
        return found, ranks.seen

    own = [run(rank, [torch.zeros(())])[1] for rank in range(2)]
    assert not own[0][0].equal(own[1][0])  # the ranks differ in what they saw
    found = [run(rank, own[1 - rank])[0] for rank in range(2)]
    for name, loss in whole.items():
        assert ((found[0][name] + found[1][name]) / 2).item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("boxes", [(3, 0, 7), (0, 0)])
def test_empty_rows_as_of_a_gpu_change_neither_losses_nor_gradients(
    boxes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([make_target(i, count) for i, count in enumerate(boxes)])

    def run() -> list[Tensor]:
        output = make_output(len(boxes))
        found = GroundingCriterion(CONFIG)(output, batch)
        sum(found.values(), torch.zeros(())).backward()
        gradients = [output.token_logits.grad, output.box_deltas.grad, output.centerness.grad]
        return [*found.values(), *(torch.zeros(()) if each is None else each for each in gradients)]

    sizes: list[tuple[int, int]] = []

    def padded(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
        index = mask.nonzero_static(size=most, fill_value=len(mask)).squeeze(1)
        sizes.append((int(mask.sum()), most))
        return index, index < len(mask)

    expected = run()
    monkeypatch.setattr(losses, "positions", padded)
    for found, exact in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7)
    [(positives, most)] = sizes
    assert positives < most or most == 0
