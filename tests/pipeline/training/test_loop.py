"""The loop: it learns, it resumes exactly, and it survives gradients that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glip_model.glip import GLIP
from pipeline.errors import TrainingError
from pipeline.training import update
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.loop import Trainer
from pipeline.training.progress import Progress
from pipeline.training.rows import make_sources
from pipeline.training.settings import RunConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., Trainer]


@pytest.fixture
def make_trainer(human: Path, tokenizer: Any, train_config: TrainConfig, make_model: Callable[..., GLIP]) -> Make:
    def make(
        steps: int = 6,
        mixture: dict[str, float] | None = None,
        seed: int = 0,
        checkpoints: Path | None = None,
        folder: Path = human,
        model: GLIP | None = None,
        config: TrainConfig = train_config,
        **optim: Any,
    ) -> Trainer:
        config = replace(config, optim=replace(config.optim, **optim))
        run = RunConfig(init="pretrained", steps=steps, mixture=mixture or {"detection": 0.5, "grounding": 0.5})
        sources = make_sources(folder, None, run.mixture, config.samples, tokenizer)
        kept = Checkpoints(checkpoints) if checkpoints else None
        return Trainer(model or make_model(), tokenizer, sources, config, run, seed, kept)

    return make


def losses_of(trainer: Trainer) -> list[float]:
    reports: list[Progress] = []
    trainer.run(reports.append)
    return [entry.losses["loss"] for entry in reports]


def test_two_samples_are_learnt(
    make_trainer: Make, tmp_path: Path, tiny: SimpleNamespace, train_config: TrainConfig
) -> None:
    folder = tmp_path / "two"
    tiny.write_detection(
        folder / "detection", [tiny.detection_record("a", ["apple"]), tiny.detection_record("b", ["sea", "lemon"])]
    )
    samples = replace(train_config.samples, flip=0.0)
    config = replace(train_config, samples=samples)
    trainer = make_trainer(80, {"detection": 1.0}, folder=folder, config=config, batch_size=2, learning_rate=5e-3)
    reports: list[Progress] = []
    trainer.run(reports.append)
    # Centerness is left out: the entropy of its soft targets stays.
    losses = [entry.losses["loss_token"] + entry.losses["loss_box"] for entry in reports]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_report_names_every_loss_and_their_sum(make_trainer: Make) -> None:
    reports: list[Progress] = []
    make_trainer(3).run(reports.append)
    assert [entry.step for entry in reports] == [1, 2, 3]
    parts = reports[0].losses
    assert set(parts) == {"loss_token", "loss_box", "loss_centerness", "loss"}
    assert parts["loss"] == pytest.approx(parts["loss_token"] + parts["loss_box"] + parts["loss_centerness"])
    assert reports[0].images_per_s > 0
    assert 0 <= reports[0].data_wait_share <= 1


def test_reports_average_the_steps_since_the_last(make_trainer: Make, train_config: TrainConfig) -> None:
    each = losses_of(make_trainer(5))
    grouped = losses_of(make_trainer(5, config=replace(train_config, log_every=2)))
    assert grouped == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2, each[4]])


class Killed(Exception):
    """Stands for a process that dies."""


def run_until(trainer: Trainer, step: int) -> list[float]:
    losses: list[float] = []

    def report(entry: Progress) -> None:
        losses.append(entry.losses["loss"])
        if entry.step == step:
            raise Killed

    with pytest.raises(Killed):
        trainer.run(report)
    return losses


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9}, {"schedule": "steps"}], ids=str)
def test_resumed_training_repeats_an_uninterrupted_one_bit_by_bit(
    make_trainer: Make, make_model: Callable[..., GLIP], tmp_path: Path, settings: dict[str, Any]
) -> None:
    # Dropout is on, so that a random state that is not restored would show.
    whole_model, resumed_model = make_model(dropout=0.2), make_model(dropout=0.2)
    whole = losses_of(make_trainer(model=whole_model, **settings))
    folder = tmp_path / "checkpoints"
    before = run_until(make_trainer(model=make_model(dropout=0.2), checkpoints=folder, **settings), step=5)
    resumed = losses_of(make_trainer(model=resumed_model, checkpoints=folder, **settings))
    assert before == whole[:5]
    assert resumed == whole  # the reports of steps 1 to 4 come from the checkpoint
    for (name, expected), found in zip(
        whole_model.state_dict().items(), resumed_model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, found), name


def test_resumed_training_does_not_repeat_finished_steps(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_until(make_trainer(checkpoints=tmp_path), step=5)
    trainer = make_trainer(checkpoints=tmp_path)
    steps: list[int] = []
    original = trainer._batches.try_make
    monkeypatch.setattr(trainer._batches, "try_make", lambda step: steps.append(step) or original(step))
    with caplog.at_level(logging.INFO):
        trainer.run()
    assert steps == [4, 5]  # counted from 0: the steps after the checkpoint of step 4
    assert "resuming after step 4 of 6" in caplog.text


@pytest.mark.parametrize("change", ["seed", "learning_rate", "data", "weights", "mixture"])
def test_checkpoint_of_another_training_is_not_continued(
    make_trainer: Make,
    make_model: Callable[..., GLIP],
    tiny: SimpleNamespace,
    human: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    folder = tmp_path / "checkpoints"
    run_until(make_trainer(checkpoints=folder), step=5)
    settings: dict[str, Any] = {}
    if change == "seed":
        settings["seed"] = 1
    elif change == "learning_rate":
        settings["learning_rate"] = 1e-3
    elif change == "mixture":
        settings["mixture"] = {"detection": 1.0}
    elif change == "weights":
        settings["model"] = make_model()
        with torch.no_grad():
            settings["model"].head.bias0 += 1
    else:  # as many rows as before, other captions
        names = list(tiny.COLOURS)[:2]
        rows = [tiny.grounding_record(f"g{i}", names, template="look, {}") for i in range(8)]
        tiny.write_grounding(human / "grounding", rows)
    reports: list[Progress] = []
    make_trainer(checkpoints=folder, **settings).run(reports.append)
    assert "other settings, data or starting weights" in caplog.text
    assert len(reports) == 6
    assert "resuming" not in caplog.text


def test_step_with_a_bad_gradient_is_skipped_and_counted(
    make_trainer: Make, make_model: Callable[..., GLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    trainer = make_trainer(3, model=model)
    criterion, calls = trainer._updater.criterion, []

    def poisoned(*args: Any) -> dict[str, torch.Tensor]:
        calls.append({name: value.clone() for name, value in model.state_dict().items()})
        losses = criterion(*args)
        return {**losses, "loss_box": losses["loss_box"] * float("nan")} if len(calls) == 1 else losses

    monkeypatch.setattr(trainer._updater, "criterion", poisoned)
    reports: list[Progress] = []
    trainer.run(reports.append)
    assert [entry.skipped_steps for entry in reports] == [1, 1, 1]
    assert all(torch.equal(calls[0][name], calls[1][name]) for name in calls[0])  # nothing moved
    assert any(not torch.equal(calls[1][name], calls[2][name]) for name in calls[1])
    assert reports[0].losses["loss"] != reports[0].losses["loss"]  # NaN: there was no good step to report
    assert reports[1].losses["loss"] == reports[1].losses["loss"]


def test_bad_gradients_in_a_row_stop_training_and_name_the_samples(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "MAX_SKIPPED_IN_A_ROW", 3)
    trainer = make_trainer(20)
    criterion = trainer._updater.criterion
    monkeypatch.setattr(trainer._updater, "criterion", lambda *args: {k: v / 0 for k, v in criterion(*args).items()})
    with pytest.raises(TrainingError, match=r"not finite 3 steps in a row; .*learning_rate.* samples: [dg]\d, [dg]\d"):
        trainer.run()


def test_every_trained_parameter_gets_a_gradient_even_without_boxes(
    make_trainer: Make, tmp_path: Path, tiny: SimpleNamespace, make_model: Callable[..., GLIP]
) -> None:
    """DistributedDataParallel would wait for ever for one that gets none."""
    folder = tmp_path / "empty"
    tiny.write_detection(folder / "detection", [tiny.detection_record("a", [])])
    for frozen in (True, False):
        model = make_model(frozen_text=frozen)
        trainer = make_trainer(1, {"detection": 1.0}, folder=folder, model=model)
        made = trainer._batches.make(0)
        losses = trainer._updater.step(trainer._inputs(made), made.keys)
        assert losses is not None
        assert losses["loss_box"] == losses["loss_centerness"] == 0
        assert losses["loss_token"] > 0
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []


def test_frozen_text_encoder_does_not_run_for_known_strings(
    make_trainer: Make, make_model: Callable[..., GLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    trainer = make_trainer(1, model=model)
    made = trainer._batches.make(0)
    trainer._inputs(made)
    monkeypatch.setattr(model.text_encoder, "forward", None)
    batch = trainer._inputs(made)
    assert batch.text_states is not None
    assert batch.text_states.shape[:2] == batch.input_ids.shape


def test_moving_average_is_what_remains(make_trainer: Make, make_model: Callable[..., GLIP]) -> None:
    model = make_model()
    trainer = make_trainer(3, model=model, ema_decay=0.99)
    trainer.run()
    assert trainer._updater._average is not None
    for name, value in trainer._updater._average.shadow.items():
        assert torch.equal(model.get_parameter(name), value)


def test_raw_weights_stay_until_the_average_is_taken(make_trainer: Make, make_model: Callable[..., GLIP]) -> None:
    raw, averaged = make_model(), make_model()
    make_trainer(3, model=raw).run()
    trainer = make_trainer(3, model=averaged, ema_decay=0.99, saved_weights="raw")
    trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(raw.parameters(), averaged.parameters(), strict=True))
    assert trainer.load_average()
    assert not torch.equal(raw.head.bias_lang, averaged.head.bias_lang)
    assert not make_trainer(1).load_average()


def test_parts_of_a_step_add_up_to_the_mean_of_their_gradients(
    make_trainer: Make, make_model: Callable[..., GLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, alone = make_model(), make_model()
    trainer, other = make_trainer(1, model=model, accumulate=2), make_trainer(1, model=alone)
    batch = other._inputs(other._batches.make(0))
    losses = trainer._updater.backward(batch)
    expected: dict[str, float] = {}
    for part in batch.split(2):
        for name, value in other._updater.backward(part).items():  # gradients add up
            expected[name] = expected.get(name, 0) + float(value) / 2
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected)
    for (name, found), wanted in zip(model.named_parameters(), alone.parameters(), strict=True):
        if found.grad is not None:
            torch.testing.assert_close(2 * found.grad, wanted.grad, msg=name)


def test_parts_must_divide_the_batch(make_trainer: Make) -> None:
    with pytest.raises(TrainingError, match=r"train\.num_workers \(=1\) times accumulate \(=3\)"):
        make_trainer(accumulate=3)


def test_weight_decay_follows_its_schedule(make_trainer: Make) -> None:
    trainer = make_trainer(6, schedule="steps", decay_at=(0.5, 1.0), weight_decay_drops=0.667)
    found: list[float] = []
    groups = trainer._updater.optimizer.param_groups
    trainer.run(lambda entry: found.append(max(group["weight_decay"] for group in groups)))
    assert found == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_bf16_trains(make_trainer: Make) -> None:
    losses = losses_of(make_trainer(3, bf16=True))
    assert all(loss < 20 for loss in losses)


def test_frozen_text_encoder_is_left_out_of_checkpoints(
    make_trainer: Make, make_model: Callable[..., GLIP], tmp_path: Path
) -> None:
    run_until(make_trainer(checkpoints=tmp_path), step=3)
    [path] = tmp_path.glob("step-*.pt")
    names = torch.load(path, weights_only=True)["trained"]["model"]
    assert names
    assert not any(name.startswith("text_encoder.") for name in names)
