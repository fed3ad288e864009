"""A training goes on where it was cut off: killed at any moment, with more or fewer workers, with data that streams."""

from __future__ import annotations

import json
import math
import multiprocessing
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.text_encoder import load_tokenizer
from pipeline.errors import TrainingError
from pipeline.training import update
from pipeline.training.batches import Worker
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.loop import Trainer
from pipeline.training.progress import Progress
from pipeline.training.rows import make_sources
from pipeline.training.settings import OptimConfig, RunConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")
WORKERS, STEPS = 2, 6


class Killed(Exception):
    """Stands for a process that dies."""


@dataclass
class Training:
    """What makes a training; it goes to other processes as it is."""

    human: Path
    model: GLIPConfig
    config: TrainConfig
    steps: int = STEPS
    labels: Path | None = None
    """Some of which people reviewed, in place of captions with human boxes."""

    def trainer(self, checkpoints: Path | None = None, rank: int = 0, workers: int = 1) -> Trainer:
        torch.manual_seed(7)
        model = GLIP(self.model)
        tokenizer = load_tokenizer(self.model.text.name, 30522)
        captions = {"grounding": 0.5} if self.labels is None else {"pseudo": 0.25, "reviewed": 0.25}
        run = RunConfig(init="pretrained", steps=self.steps, mixture={"detection": 0.5, **captions})
        sources = make_sources(self.human, self.labels, run.mixture, self.config.samples, tokenizer)
        kept = Checkpoints(checkpoints) if checkpoints else None
        diverged = checkpoints.parent / "diverged.json" if checkpoints else None
        return Trainer(model, tokenizer, sources, self.config, run, 0, kept, Worker(rank, workers), diverged=diverged)

    def run(
        self, checkpoints: Path | None = None, until: int | None = None, rank: int = 0, workers: int = 1
    ) -> tuple[dict[int, tuple[str, ...]], list[float], dict[str, torch.Tensor]]:
        """Return the keys that this worker showed by step, the losses of all steps and the weights."""
        trainer = self.trainer(checkpoints, rank, workers)
        shown: dict[int, tuple[str, ...]] = {}
        losses: list[float] = []
        step_of = trainer._updater.step

        def step(batch: Any, keys: tuple[str, ...]) -> Any:
            shown[trainer._updater._scheduler.last_epoch + 1] = keys
            return step_of(batch, keys)

        def report(entry: Progress) -> None:
            losses.append(entry.losses["loss"])
            if entry.step == until:
                raise Killed

        trainer._updater.step = step  # type: ignore[method-assign]
        try:
            trainer.run(report)
        except Killed:
            assert until is not None
        return shown, losses, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def written(folder: Path, tiny: SimpleNamespace) -> Path:
    names = list(tiny.COLOURS)
    pairs = [(names[i % 6], names[(i + 1) % 6]) for i in range(12)]
    rows = [tiny.detection_record(f"d{i}", pair, i) for i, pair in enumerate(pairs)]
    captioned = [tiny.grounding_record(f"g{i}", pair, i + 50) for i, pair in enumerate(pairs)]
    for shard in range(2):
        tiny.write_detection(folder / "detection", rows[6 * shard : 6 * shard + 6], number=shard)
        tiny.write_grounding(folder / "grounding", captioned[6 * shard : 6 * shard + 6], number=shard)
        labels = [replace(row, reviewed=i % 3 == shard) for i, row in enumerate(captioned[6 * shard : 6 * shard + 6])]
        tiny.write_grounding(folder / "labels", labels, number=shard)
    return folder


def streaming(config: TrainConfig, lanes: int = 2) -> TrainConfig:
    samples = replace(config.samples, shuffle_window=8, shuffle_lanes=lanes, group_by_orientation=True)
    return replace(config, samples=samples)


def train_and_wait_for_the_end(training: Training, checkpoints: Path) -> None:
    torch.set_num_threads(1)
    training.run(checkpoints)
    (checkpoints.parent / "finished").touch()


def test_killed_at_any_moment_it_repeats_an_uninterrupted_one_bit_by_bit(
    tmp_path: Path, tiny: SimpleNamespace, train_config: TrainConfig
) -> None:
    optim = replace(train_config.optim, ema_decay=0.9, fp16=True, schedule="steps")
    # Dropout is on, so that a random state that is not restored would show.
    model = tiny.model_config(frozen_text=False, dropout=0.2)
    training = Training(written(tmp_path / "human", tiny), model, streaming(replace(train_config, optim=optim)), 24)
    whole = training.run()
    checkpoints = tmp_path / "model" / "checkpoints"
    loading = replace(training, config=replace(training.config, loader_processes=1))
    process = multiprocessing.get_context("spawn").Process(
        target=train_and_wait_for_the_end, args=(loading, checkpoints)
    )
    process.start()
    end = time.monotonic() + 120
    while len(list(checkpoints.glob("step-*.json"))) != 2:
        assert process.is_alive()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.join(10)
    assert process.exitcode == -9
    assert not (checkpoints.parent / "finished").exists()
    shown, losses, weights = loading.run(checkpoints)
    assert 0 < len(shown) < 24
    assert {step: whole[0][step] for step in shown} == shown
    assert [repr(loss) for loss in losses] == [repr(loss) for loss in whole[1]]  # NaN where the scale was searched for
    assert all(torch.equal(value, weights[name]) for name, value in whole[2].items())


def work(rank: int, port: int, trainings: dict[str, Training], folder: Path) -> None:
    """Do everything that takes two processes: the first half of one training, the second half of another, NaN."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    found: dict[str, Any] = {}
    for name, training in trainings.items():
        found[f"{name} first"] = training.run(folder / name / "two to one", until=3, rank=rank, workers=WORKERS)
        found[f"{name} second"] = training.run(folder / name / "one to two", rank=rank, workers=WORKERS)
    found["NaN"] = diverge(next(iter(trainings.values())), folder / "diverged" / "checkpoints", rank)
    torch.save(found, folder / f"found-{rank}.pt")
    dist.destroy_process_group()


def diverge(training: Training, checkpoints: Path, rank: int) -> tuple[list[int], bool, str]:
    """Let the loss of the second worker be infinite from step 3 on, though its gradients are not."""
    update.MAX_SKIPPED_IN_A_ROW = 2
    trainer = training.trainer(checkpoints, rank, WORKERS)
    criterion, calls, skipped = trainer._updater.criterion, [], []

    def poisoned(*args: Any) -> dict[str, torch.Tensor]:
        losses: dict[str, torch.Tensor] = criterion(*args)
        calls.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        is_bad = rank == 1 and len(calls) > 2
        return {**losses, "loss_box": losses["loss_box"] + math.inf} if is_bad else losses

    trainer._updater.criterion = poisoned  # type: ignore[assignment]
    with pytest.raises(TrainingError) as raised:
        trainer.run(lambda entry: skipped.append(entry.skipped_steps))
    is_unmoved = all(torch.equal(calls[2][name], value) for name, value in trainer.model.state_dict().items())
    return skipped, is_unmoved, str(raised.value)


@pytest.fixture(scope="module")
def trainings(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: SimpleNamespace,
    train_config: TrainConfig,
    optim_config: OptimConfig,
) -> dict[str, Training]:
    human = written(tmp_path_factory.mktemp("data"), tiny)
    config = replace(train_config, optim=replace(optim_config, ema_decay=0.9))
    kinds = {"in memory": config, "streaming": streaming(config), "one lane": streaming(config, lanes=1)}
    made = {name: Training(human, tiny.model_config(), kind) for name, kind in kinds.items()}
    return made | {"reviewed": replace(made["streaming"], labels=human / "labels")}


@pytest.fixture(scope="module")
def found(trainings: dict[str, Training], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("workers")
    for name, training in trainings.items():
        training.run(folder / name / "one to two", until=3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(work, (port, trainings, folder), nprocs=WORKERS)
    by_rank = [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(WORKERS)]
    return SimpleNamespace(folder=folder, by_rank=by_rank)


def test_reviewed_rows_beside_streams_are_shown_again_bit_by_bit(
    trainings: dict[str, Training], tmp_path: Path
) -> None:
    shown, losses, weights = trainings["reviewed"].run()
    assert {key for keys in shown.values() for key in keys} & {"g0", "g3", "g7", "g10"}  # those that were reviewed
    trainings["reviewed"].run(tmp_path / "checkpoints", until=3)
    again = trainings["reviewed"].run(tmp_path / "checkpoints")
    assert again[0] == {step: keys for step, keys in shown.items() if step in again[0]}
    assert again[1] == losses
    assert all(torch.equal(value, again[2][name]) for name, value in weights.items())


@pytest.mark.parametrize("name", ["in memory", "streaming", "one lane", "reviewed"])
def test_other_number_of_workers_goes_on_at_the_right_sample(
    trainings: dict[str, Training], found: SimpleNamespace, name: str
) -> None:
    keys, losses, weights = trainings[name].run()

    def shown_by_both(part: str) -> dict[int, tuple[str, ...]]:
        first, second = (of_rank[f"{name} {part}"][0] for of_rank in found.by_rank)
        return {step: first[step] + second[step] for step in first}

    before, after = shown_by_both("first"), shown_by_both("second")
    assert before == {step: keys[step] for step in (1, 2, 3)}
    assert after == {step: keys[step] for step in (3, 4, 5, 6)}  # its checkpoint is that of step 2
    _, losses_of_two, weights_of_two = found.by_rank[0][f"{name} second"]
    resumed_keys, resumed, resumed_weights = trainings[name].run(found.folder / name / "two to one")
    assert resumed_keys == after
    assert losses_of_two == pytest.approx(losses, rel=1e-3)
    assert resumed == pytest.approx(losses, rel=1e-3)
    for other in (weights_of_two, resumed_weights):
        for key, value in weights.items():
            torch.testing.assert_close(other[key], value, rtol=1e-2, atol=1e-3, msg=key)


def test_loss_that_is_not_finite_on_one_worker_is_skipped_by_all_and_then_told(found: SimpleNamespace) -> None:
    path = found.folder / "diverged" / "diverged.json"
    for of_rank in found.by_rank:
        skipped, is_unmoved, message = of_rank["NaN"]
        assert skipped == [0, 0, 1]  # the report of step 4 is not reached
        assert is_unmoved
        assert "not finite 2 steps in a row" in message
        assert f"look at the samples in {path}" in message
    steps = json.loads(path.read_text())["skipped"]
    assert [step["step"] for step in steps] == [3, 4]
    assert steps[0]["learning_rate"] > 0
    assert [worker["losses"]["loss_box"] == "inf" for worker in steps[0]["workers"]] == [False, True]
    keys = [list(of_rank["in memory first"][0][3]) for of_rank in found.by_rank]
    assert [worker["keys"] for worker in steps[0]["workers"]] == keys
