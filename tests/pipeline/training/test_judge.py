"""Evaluations during training: what they find, what they leave alone, and what happens when they fail."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glip_model.glip import GLIP
from pipeline.errors import MissingInputError
from pipeline.training.batches import Worker
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.judge import Judge
from pipeline.training.loop import Trainer
from pipeline.training.progress import Progress
from pipeline.training.rows import make_sources
from pipeline.training.settings import RunConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., Trainer]


class Scripted:
    """Gives the scores that it is told, one evaluation after the other, and meddles with the model it is given."""

    def __init__(self, *scores: float | Exception | None) -> None:
        self.scores = list(scores)
        self.models: list[GLIP] = []

    def __call__(self, model: GLIP, tokenizer: Any, samples: Path) -> Mapping[str, float]:
        self.models.append(model)
        score = self.scores.pop(0)
        if isinstance(score, Exception):
            raise score
        samples.mkdir(parents=True, exist_ok=True)
        (samples / "detection-0-000.jpg").write_bytes(b"picture")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return {} if score is None else {"dev/AP": score}


@pytest.fixture
def make_trainer(
    human: Path, tokenizer: Any, train_config: TrainConfig, make_model: Callable[..., GLIP], tmp_path: Path
) -> Make:
    def make(
        validate: Scripted | None, steps: int = 4, every: int = 1, checkpoints: Path | None = None, **optim: Any
    ) -> Trainer:
        changed = replace(train_config.optim, warmup_steps=0, **optim)
        config = replace(train_config, optim=changed, evaluate_every=every, checkpoint_every=1)
        run = RunConfig(init="pretrained", steps=steps, mixture={"detection": 1.0})
        sources = make_sources(human, None, run.mixture, config.samples, tokenizer)
        judge = None if validate is None else Judge(validate, tokenizer, tmp_path / "out", Worker())
        kept = Checkpoints(checkpoints) if checkpoints else None
        return Trainer(make_model(), tokenizer, sources, config, run, 0, kept, judge=judge)

    return make


def reports_of(trainer: Trainer) -> list[Progress]:
    reports: list[Progress] = []
    trainer.run(reports.append)
    return reports


def test_scores_and_pictures_join_the_reports_and_training_is_left_alone(make_trainer: Make, tmp_path: Path) -> None:
    plain = reports_of(make_trainer(None, every=0))
    found = reports_of(make_trainer(Scripted(30.0, 20.0), every=2))
    assert [entry.losses for entry in found] == [entry.losses for entry in plain]
    assert [dict(entry.scores) for entry in found] == [{}, {"dev/AP": 30.0}, {}, {"dev/AP": 20.0}]
    assert [Path(entry.pictures[0]).parent.name for entry in found if entry.pictures] == [
        "step-00000002",
        "step-00000004",
    ]
    assert found[-1].seconds_left == 0 < found[0].seconds_left
    assert found[-1].memory_gb > 0


def test_the_best_model_is_kept(make_trainer: Make, tmp_path: Path) -> None:
    validate = Scripted(10.0, 30.0, 20.0)
    make_trainer(validate, steps=3).run()
    best = GLIP.from_pretrained(tmp_path / "out" / "best")
    judged = validate.models[1].state_dict()
    assert all(value.equal(judged[name]) for name, value in best.state_dict().items())


def test_the_average_is_judged_where_it_will_be_saved(make_trainer: Make) -> None:
    class Compare(Scripted):
        def __call__(self, model: GLIP, tokenizer: Any, samples: Path) -> Mapping[str, float]:
            self.models.append(model)
            return {}

    raw, average = Compare(), Compare()
    make_trainer(raw, steps=2).run()
    trainer = make_trainer(average, steps=2, ema_decay=0.9)
    trainer.run()
    assert not raw.models[-1].head.bias_lang.equal(average.models[-1].head.bias_lang)
    assert average.models[-1].head.bias_lang.equal(trainer.model.head.bias_lang)  # the average was taken in the end


@pytest.mark.parametrize("failure", [MissingInputError("dev: gone"), RuntimeError("out of memory"), OSError("full")])
def test_an_evaluation_that_fails_is_a_warning_without_a_score(
    make_trainer: Make, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    with caplog.at_level(logging.WARNING):
        reports = reports_of(make_trainer(Scripted(failure, None), steps=2))
    assert f"evaluation after step 1 failed, training goes on: {failure}" in caplog.text
    assert [dict(entry.scores) for entry in reports] == [{}, {}]


def test_rates_drop_and_training_ends_when_scores_get_no_better(
    make_trainer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    validate = Scripted(50.0, 40.0, math.nan, 30.0, 20.0, 10.0)
    trainer = make_trainer(validate, steps=9, schedule="plateau", plateau_patience=1, plateau_stop=3)
    with caplog.at_level(logging.INFO):
        reports = reports_of(trainer)
    rates = [entry.learning_rate for entry in reports]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-3, 2e-4, 2e-4])
    assert "stopping after step 5: evaluations get no better" in caplog.text


def test_a_resumed_training_goes_on_with_its_scores(make_trainer: Make, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 5, "schedule": "plateau", "plateau_patience": 1, "plateau_stop": 4}
    whole = reports_of(make_trainer(Scripted(50.0, 40.0, 45.0, 20.0, 10.0), **settings))

    class Stop(Exception):
        pass

    trainer = make_trainer(Scripted(50.0, 40.0, 45.0, Stop()), checkpoints=tmp_path / "c", **settings)
    with pytest.raises(Stop):
        trainer.run()
    # The two last ones and the best.
    manifests = [json.loads(path.read_text()) for path in sorted((tmp_path / "c").glob("step-*.json"))]
    assert [(manifest["step"], manifest["score"]) for manifest in manifests] == [(1, 50.0), (2, 40.0), (3, 45.0)]
    resumed = make_trainer(Scripted(20.0, 10.0), checkpoints=tmp_path / "c", **settings)
    found = reports_of(resumed)
    for name in ("step", "losses", "learning_rate", "scores"):
        assert [getattr(entry, name) for entry in found] == [getattr(entry, name) for entry in whole], name
    assert resumed._judge is not None
    assert resumed._judge.best == 50.0
