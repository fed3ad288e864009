"""Weighted box fusion against the algorithm as the paper tells it, box by box in plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_model.boxes import iou
from glip_model.structures import Detections
from pipeline.pseudo_labels.fusion import FusedDetections, fuse, merge_detections

Found = tuple[int, tuple[float, float, float, float], float]
LEFT, NEAR, RIGHT = (0.0, 0.0, 40.0, 40.0), (4.0, 0.0, 44.0, 40.0), (100.0, 0.0, 140.0, 40.0)


def answer(*found: Found) -> Detections:
    ordered = sorted(found, key=lambda each: -each[2])
    return Detections(
        torch.tensor([box for _, box, _ in ordered], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for *_, score in ordered], dtype=torch.float32),
        torch.tensor([phrase for phrase, *_ in ordered], dtype=torch.int64),
        ("cat", "dog"),
    )


def slow_fusion(answers: Sequence[Sequence[Found]], threshold: float, nms: float) -> list[Any]:
    """Fuse as the paper does, recomputing each result from its members whenever one joins."""
    candidates = []
    for teacher, found in enumerate(answers):
        kept: list[Found] = []
        for each in sorted(found, key=lambda each: -each[2]):
            if not any(mine[0] == each[0] and iou(mine[1], each[1]) > nms for mine in kept):
                kept.append(each)
        candidates += [(*each, teacher) for each in kept]
    clusters: list[list[Any]] = []

    def mean(cluster: list[Any]) -> list[float]:
        weight = sum(score for _, _, score, _ in cluster)
        return [sum(box[side] * score for _, box, score, _ in cluster) / weight for side in range(4)]

    for each in sorted(candidates, key=lambda each: -each[2]):
        options = [
            (iou(mean(cluster), each[1]), -number, cluster)
            for number, cluster in enumerate(clusters)
            if cluster[0][0] == each[0] and each[3] not in [member[3] for member in cluster]
        ]
        best = max(options, key=lambda option: option[:2], default=None)
        if best is not None and best[0] > threshold:
            best[2].append(each)
        else:
            clusters.append([each])
    results = [
        (cluster[0][0], mean(cluster), sum(m[2] for m in cluster) / len(answers), {m[3] for m in cluster})
        for cluster in clusters
    ]
    return sorted(results, key=lambda each: (each[0], -each[2], each[1]))


def as_rows(fused: FusedDetections) -> list[Any]:
    rows = [
        (phrase, box, score, {i for i, vote in enumerate(votes) if vote})
        for phrase, box, score, votes in zip(
            fused.phrase_index.tolist(), fused.boxes_xyxy.tolist(), fused.scores.tolist(), fused.votes, strict=True
        )
    ]
    return sorted(rows, key=lambda each: (each[0], -round(each[2], 5), each[1]))


corners = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(8, 40), st.integers(8, 40))
found_boxes = st.lists(st.tuples(st.integers(0, 1), corners), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(found_boxes, min_size=2, max_size=3), st.randoms(use_true_random=False), st.sampled_from([0.3, 0.55]))
def test_fusion_is_the_papers(found: list[Any], chance: Any, threshold: float) -> None:
    # Scores all differ: which of two equal ones goes first is nobody's business.
    scores = [(number + 1) / 32 for number in range(24)]
    chance.shuffle(scores)
    pool = iter(scores)
    answers = [
        [(phrase, (float(x), float(y), float(x + w), float(y + h)), next(pool)) for phrase, (x, y, w, h) in boxes]
        for boxes in found
    ]
    mine = as_rows(fuse([answer(*each) for each in answers], ["a", "b", "c"][: len(found)], threshold, 0.6))
    truth = slow_fusion(answers, threshold, 0.6)
    assert len(mine) == len(truth)
    for one, other in zip(mine, sorted(truth, key=lambda each: (each[0], -round(each[2], 5), each[1])), strict=True):
        assert (one[0], one[3]) == (other[0], other[3])
        assert one[1] == pytest.approx(other[1], abs=1e-4)
        assert one[2] == pytest.approx(other[2], abs=1e-6)


def test_two_teachers_make_one_box_that_both_answer_for() -> None:
    fused = fuse([answer((0, LEFT, 0.9)), answer((0, NEAR, 0.3), (1, RIGHT, 0.8))], ["a", "b"], 0.5, 0.5)
    assert fused.phrases == ("cat", "dog")
    assert fused.phrase_index.tolist() == [0, 1]
    assert fused.scores.tolist() == pytest.approx([0.6, 0.4])
    assert fused.boxes_xyxy[0].tolist() == pytest.approx([1, 0, 41, 40])
    assert fused.votes == ((True, True), (False, True))


def test_a_teacher_has_one_vote_and_nothing_is_found_of_nothing() -> None:
    fused = fuse([answer((0, LEFT, 0.9), (0, NEAR, 0.8)), answer()], ["a", "b"], 0.5, 0.5)
    assert fused.scores.tolist() == pytest.approx([0.45])
    assert len(fuse([answer(), answer()], ["a", "b"], 0.5, 0.5)) == 0
    zero = fuse([answer((0, LEFT, 0.0)), answer((0, LEFT, 0.0))], ["a", "b"], 0.5, 0.5)
    assert (zero.scores.tolist(), zero.votes) == ([0.0], ((True, True),))


def test_looks_are_put_together_with_their_votes() -> None:
    parts = [
        fuse([answer((phrase, LEFT, score)), answer()], ["a", "b"], 0.5, 0.5) for phrase, score in ((1, 0.2), (0, 0.9))
    ]
    whole = merge_detections(parts)
    assert isinstance(whole, FusedDetections)
    assert whole.phrase_index.tolist() == [0, 1]
    assert whole.votes == ((True, False), (True, False))
    assert merge_detections([answer((1, LEFT, 0.2)), answer((0, LEFT, 0.9))]).phrase_index.tolist() == [0, 1]
