"""Evaluation on custom images: category boxes of a few names, all of them in one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.evaluation.benchmark import Benchmark
from pipeline.evaluation.job import predict_benchmarks
from pipeline.evaluation.results import score_predictions
from pipeline.evaluation.scoring import ALL
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.store.storage import Place


def own_settings(base: EvaluateConfig, workers: int) -> EvaluateConfig:
    """Return settings that judge a model by what was held out, with as many names in a prompt as in training."""
    return replace(
        base,
        splits=("dev",),
        num_actors=workers,
        max_prompt_categories=1000,  # as many as fit
        one_prompt_categories=0,
        max_prompt_categories_by_source={},
    )


def judge_own(
    config: EvaluateConfig, model: Place, records: Place, out: Place, allowed: Sequence[str]
) -> tuple[dict[str, float], Benchmark]:
    """Return COCO's measures of a model on the detection set of a folder, in percent, and the set; Ray must be running.

    Args:
        config: see ``own_settings``.
        model: its folder.
        records: folder of dev/detection.
        out: folder of predictions.
        allowed: where pictures may be besides ``records``, see ``allowed_roots``.
    """
    [benchmark] = predict_benchmarks(config, model, records, out, allowed)
    return dict(score_predictions(benchmark, out).metrics.get(ALL, {})), benchmark
