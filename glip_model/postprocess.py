"""Raw predictions to detections, in the published order: threshold, centerness, top-k, NMS per phrase, top-k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glip_model.alignment import phrase_scores
from glip_model.anchors import anchor_grid
from glip_model.boxes import clip_boxes, decode_boxes, pairwise_iou, to_exclusive
from glip_model.config import GLIPConfig
from glip_model.structures import Detections, GLIPOutput
from glip_model.transfer import send

DROPPED, KEPT, OPEN = 0, 1, 2
"""Fates of a candidate; open where its picture has yet to be suppressed box after box."""
ROUNDS = 24
"""Most rounds of ``suppress_together``."""
PAIRS_AT_ONCE = 1 << 23
"""Pairs of boxes that it compares at a time; a pair takes some hundred bytes."""


def postprocess(
    output: GLIPOutput,
    sizes: Sequence[tuple[int, int]],
    positive_maps: Sequence[Tensor],
    original_sizes: Sequence[tuple[int, int]],
    config: GLIPConfig,
) -> list[Detections]:
    """Turn a batch's raw predictions into detections.

    Args:
        output: predictions for B pictures.
        sizes: per picture (height, width) as the model saw it, without padding.
        positive_maps: per picture (P, T') bool, T' at most T.
        original_sizes: (height, width) that the boxes are scaled to.
        config: thresholds and limits.

    Returns:
        Per picture the best ``max_detections`` over all phrases, best first; ties at the last score stay, so there
        may be more. Far corners are the model's own, see ``GLIPConfig.inclusive_corners``. Pictures of a batch are read
        off independently of one another.
    """
    device = output.box_deltas.device
    anchors = anchor_grid(output.level_sizes, config.strides, config.anchor_scale, device)
    maps = send(_pad_maps(positive_maps, output.token_logits.shape[2]), device)
    ranked = [
        _rank(output, i, maps[i : i + 1, : len(positive_map)], config) for i, positive_map in enumerate(positive_maps)
    ]
    # Here a GPU is waited for the first time: how many candidates have each picture.
    counts = torch.stack([(scores >= 0).sum() for scores, _ in ranked]).tolist()
    boxes, scores, phrases = [], [], []
    for i, ((score, index), count, size) in enumerate(zip(ranked, counts, sizes, strict=True)):
        num_phrases = max(len(positive_maps[i]), 1)
        anchor = index[:count] // num_phrases
        decoded = decode_boxes(output.box_deltas[i].float()[anchor], anchors[anchor])
        boxes.append(clip_boxes(decoded, size, config.inclusive_corners))
        scores.append(score[:count].sqrt())
        phrases.append(index[:count] % num_phrases)
    fates = _suppress(boxes, scores, phrases, config)
    columns = [torch.cat(boxes), torch.cat(scores)[:, None], torch.cat(phrases)[:, None], torch.cat(fates)[:, None]]
    # And here the second time, for all that was found at once; doubles hold every float and every phrase.
    rows = torch.split(torch.cat([column.double() for column in columns], 1).cpu(), counts)
    return [_detections(*each, config) for each in zip(rows, sizes, original_sizes, strict=True)]


def _pad_maps(positive_maps: Sequence[Tensor], tokens: int) -> Tensor:
    """Return maps (P, T') of the pictures as (B, P, T) bool."""
    padded = torch.zeros(len(positive_maps), max(map(len, positive_maps)), tokens, dtype=torch.bool)
    for i, positive_map in enumerate(positive_maps):
        padded[i, : positive_map.shape[0], : positive_map.shape[1]] = positive_map
    return padded


def _rank(output: GLIPOutput, i: int, positive_map: Tensor, config: GLIPConfig) -> tuple[Tensor, Tensor]:
    """Return each level's best (anchor, phrase) pairs of picture ``i``, best first, as many as there may be at most.

    Returns:
        Squared scores (K,), -1 behind those that pass the threshold, and indices (K,) into the pairs (A, P).
    """
    scores = phrase_scores(output.token_logits[i : i + 1], positive_map)[0]  # (A, P)
    passing = scores > config.score_threshold  # before centerness, as published
    ranked = torch.where(passing, scores * output.centerness[i].float().sigmoid()[:, None], -1.0)
    values, indices, start = [], [], 0
    for level in torch.split(ranked, [height * width for height, width in output.level_sizes]):
        best = level.flatten().topk(min(level.numel(), config.pre_nms_topk))
        values.append(best.values)
        indices.append(best.indices + start)
        start += level.numel()
    best_of_all = torch.cat(values).sort(descending=True, stable=True)
    return best_of_all.values, torch.cat(indices)[best_of_all.indices]


def _suppress(boxes: list[Tensor], scores: list[Tensor], phrases: list[Tensor], config: GLIPConfig) -> list[Tensor]:
    """Return per picture the fates (M,) of its candidates, which come best first."""
    # With one pixel added at the far side, plain IoU is the published "+1" IoU of inclusive corners.
    exact = [(to_exclusive(each) if config.inclusive_corners else each).double() for each in boxes]
    if exact[0].device.type == "cpu":
        return [suppress(*each, config.nms_threshold) for each in zip(exact, scores, phrases, strict=True)]
    fates: list[Tensor] = []
    longest = max(map(len, boxes))
    together = max(1, PAIRS_AT_ONCE // max(longest, 1) ** 2)
    for start in range(0, len(exact), together):
        rows = slice(start, start + together)
        padded = suppress_together(
            pad_sequence(exact[rows], batch_first=True),
            pad_sequence(phrases[rows], batch_first=True, padding_value=-1),
            config.nms_threshold,
        )
        fates += [fate[: len(each)] for fate, each in zip(padded, exact[rows], strict=True)]
    return fates


def suppress(boxes: Tensor, scores: Tensor, phrases: Tensor, threshold: float) -> Tensor:
    """Return (M,) int64 ``KEPT`` or ``DROPPED`` of the boxes (M, 4) float64 of one picture, by NMS within phrases."""
    from torchvision.ops import batched_nms  # takes as long to import as all else

    # It moves phrases far apart; in single precision that would round the boxes of later phrases.
    kept = batched_nms(boxes, scores.double(), phrases, threshold)
    return torch.full_like(phrases, DROPPED).index_fill(0, kept, KEPT)


def suppress_together(boxes: Tensor, phrases: Tensor, threshold: float) -> Tensor:
    """Suppress within the phrases of several pictures as ``suppress`` does, without waiting for a GPU.

    A box is kept when no better one is that overlaps it too much. From all kept, applying this again and again settles
    the box of a chain of such rivals by its place in the chain, and what does not change any more is what NMS finds,
    box after box. After ``ROUNDS`` the few pictures with longer chains are left open.

    Args:
        boxes: (B, M, 4) float64, best first.
        phrases: (B, M) int64; padding has a number of its own.
        threshold: IoU above which the better box alone stays.

    Returns:
        (B, M) int64: ``KEPT``, ``DROPPED``, or ``OPEN`` throughout a picture.
    """
    rivals = (pairwise_iou(boxes, boxes) > threshold) & (phrases[:, :, None] == phrases[:, None, :])
    beats = rivals.triu(1)  # (B, better, worse)
    before = kept = torch.ones_like(phrases, dtype=torch.bool)
    for _ in range(ROUNDS):
        before, kept = kept, ~(beats & kept[:, :, None]).any(1)
    settled = (before == kept).all(1, keepdim=True)
    return torch.where(settled, kept.long(), OPEN)


def _detections(rows: Tensor, size: tuple[int, int], original: tuple[int, int], config: GLIPConfig) -> Detections:
    """Return what is left of a picture's candidates: boxes, score, phrase and fate (M, 7), best first, on the CPU."""
    boxes, scores, phrases, fates = rows[:, :4].float(), rows[:, 4].float(), rows[:, 5].long(), rows[:, 6].long()
    if (fates == OPEN).any():
        [fates] = _suppress([boxes], [scores], [phrases], config)
    kept = (fates == KEPT).nonzero().squeeze(1)
    if len(kept) > config.max_detections:
        kept = kept[scores[kept] >= scores[kept[config.max_detections - 1]]]
    scale = boxes.new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
    return Detections(boxes[kept] * scale, scores[kept], phrases[kept])
