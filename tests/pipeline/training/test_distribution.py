"""Several processes train as one does, whatever they share; compiled layers too, and losses that are scaled."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.structures import GroundingBatch, GroundingTarget
from pipeline.errors import TrainingError
from pipeline.training.distribution import compile_layers
from pipeline.training.settings import OptimConfig
from pipeline.training.update import MAX_SKIPPED_IN_A_ROW, Updater

STEPS, WORKERS, TOKENS = 4, 2, 8
BOXES = (2, 1, 0, 0)
"""Of the pictures of a step: the second worker has none."""


def make_batch(step: int) -> GroundingBatch:
    generator = torch.Generator().manual_seed(step)
    targets = []
    for number in BOXES:
        corner = torch.rand(number, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 12 + 20 * torch.rand(number, 2, generator=generator)], 1)
        positive = torch.zeros(number, TOKENS, dtype=torch.bool)
        positive[:, 1 + step % 3] = True
        targets.append(GroundingTarget(boxes, positive))
    return GroundingBatch(
        pixel_values=torch.randn(len(BOXES), 3, 64, 64, generator=generator),
        image_sizes=((64, 64),) * len(BOXES),
        input_ids=torch.randint(1000, 2000, (len(BOXES), TOKENS), generator=generator),
        attention_mask=torch.ones(len(BOXES), TOKENS, dtype=torch.bool),
        targets=tuple(targets),
    )


def make_model(config: GLIPConfig) -> GLIP:
    torch.manual_seed(7)
    return GLIP(config).train()


def train(updater: Updater, steps: range, rank: int = 0, workers: int = 1) -> list[list[float]]:
    """Return the losses of every step, means over the workers."""
    rows = []
    for step in steps:
        losses = updater.step(make_batch(step).split(workers)[rank], ["key"])
        assert losses is not None
        row = torch.tensor(list(losses.values()))
        if workers > 1:
            dist.all_reduce(row)
        rows.append((row / workers).tolist())
    return rows


def work(rank: int, port: int, config: GLIPConfig, optim: OptimConfig, folder: Path) -> None:
    """Run every two-process case in one pair of processes; the first one writes down what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    found: dict[str, Any] = {}

    def run(name: str, how: Literal["ddp", "fsdp"], model_config: GLIPConfig = config, **settings: Any) -> Updater:
        updater = Updater(make_model(model_config), replace(optim, **settings), STEPS, how)
        losses = train(updater, range(STEPS), rank, WORKERS)
        whole = updater.whole_model()
        found[name] = losses, None if whole is None else whole.state_dict()
        return updater

    def resume(name: str, before: Literal["ddp", "fsdp"], after: Literal["ddp", "fsdp"]) -> None:
        first = Updater(make_model(config), optim, STEPS, before)
        train(first, range(2), rank, WORKERS)
        states = [first.state_dict()]
        dist.broadcast_object_list(states)
        second = Updater(make_model(config), optim, STEPS, after)
        second.load_state_dict(states[0])
        losses = train(second, range(2, STEPS), rank, WORKERS)
        second.load_average()
        whole = second.whole_model()
        found[name] = losses, None if whole is None else whole.state_dict()

    checkpointed = replace(config, activation_checkpointing=True)
    hows: tuple[Literal["ddp", "fsdp"], ...] = ("ddp", "fsdp")
    for how in hows:
        run(f"{how} accumulated", how, accumulate=2)
        run(f"{how} checkpointed", how, checkpointed)
        run(f"{how} bf16", how, bf16=True)
        run(f"{how} fp16", how, fp16=True)
    run("ddp", "ddp")
    sharded = run("fsdp", "fsdp").model
    shares = [parameter.to_local().numel() for parameter in sharded.parameters()]
    found["share"] = sum(shares) / sum(parameter.numel() for parameter in sharded.parameters())
    resume("ddp to fsdp", "ddp", "fsdp")
    resume("fsdp to ddp", "fsdp", "ddp")
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def setting(tiny: SimpleNamespace, optim_config: OptimConfig) -> tuple[GLIPConfig, OptimConfig]:
    return tiny.model_config(frozen_text=False), replace(optim_config, ema_decay=0.9)


@pytest.fixture(scope="module")
def found(setting: tuple[GLIPConfig, OptimConfig], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("distribution")
    mp.spawn(work, (free_port(), *setting, folder), nprocs=WORKERS)
    outcome: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    return outcome


@pytest.fixture(scope="module")
def alone(setting: tuple[GLIPConfig, OptimConfig]) -> SimpleNamespace:
    updater = Updater(make_model(setting[0]), setting[1], STEPS)
    losses = train(updater, range(STEPS))
    weights = {name: value.clone() for name, value in updater.model.state_dict().items()}
    updater.load_average()
    return SimpleNamespace(losses=losses, weights=weights, average=updater.model.state_dict())


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp checkpointed", "fsdp checkpointed"])
def test_two_workers_train_as_one_does_though_one_sees_no_boxes(
    found: dict[str, Any], alone: SimpleNamespace, name: str
) -> None:
    losses, weights = found[name]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(alone.losses), rtol=1e-4, atol=1e-5)
    assert_close(weights, alone.weights)


def test_each_worker_holds_its_part_alone(found: dict[str, Any]) -> None:
    assert found["share"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("how", ["accumulated", "bf16", "fp16"])
def test_both_distributions_train_alike(found: dict[str, Any], how: str) -> None:
    (losses, weights), (expected, expected_weights) = found[f"fsdp {how}"], found[f"ddp {how}"]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    if how == "accumulated":  # in half precision AdamW makes whole steps out of gradients that are mere rounding
        assert_close(weights, expected_weights)


@pytest.mark.parametrize("name", ["ddp to fsdp", "fsdp to ddp"])
def test_checkpoint_of_one_distribution_continues_with_the_other(
    found: dict[str, Any], alone: SimpleNamespace, name: str
) -> None:
    losses, average = found[name]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(alone.losses[2:]), rtol=1e-4, atol=1e-5)
    assert_close(average, alone.average)


def test_compiled_layers_train_alike_under_the_same_names(
    setting: tuple[GLIPConfig, OptimConfig], alone: SimpleNamespace
) -> None:
    model = make_model(setting[0])
    compile_layers(model, backend="aot_eager")  # traces forward and backward, but needs no minutes for kernels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        losses = train(Updater(model, setting[1], STEPS), range(STEPS))
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(alone.losses), rtol=1e-4, atol=1e-5)
    assert_close(model.state_dict(), alone.weights)


def scaled(setting: tuple[GLIPConfig, OptimConfig], scale: float) -> Updater:
    updater = Updater(make_model(setting[0]), replace(setting[1], fp16=True), 100)
    state = updater.state_dict()
    updater.load_state_dict({**state, "scaler": {**state["scaler"], "scale": scale}})
    return updater


def test_search_for_the_loss_scale_may_skip_many_steps(setting: tuple[GLIPConfig, OptimConfig]) -> None:
    updater = scaled(setting, 2.0**40)
    while updater.step(make_batch(0), ["key"]) is None:
        assert updater.skipped < 40
    assert updater.skipped > MAX_SKIPPED_IN_A_ROW
    assert updater.state_dict()["scaler"]["scale"] == 2.0 ** (40 - updater.skipped)


def test_search_for_the_loss_scale_ends(
    setting: tuple[GLIPConfig, OptimConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = scaled(setting, 4.0)
    criterion: Callable[..., dict[str, torch.Tensor]] = updater.criterion
    monkeypatch.setattr(updater, "criterion", lambda *args: {k: v * torch.nan for k, v in criterion(*args).items()})
    # Two steps bring the scale down to 1; those after it count.
    for _ in range(2 + MAX_SKIPPED_IN_A_ROW - 1):
        assert updater.step(make_batch(0), ["key"]) is None
    with pytest.raises(TrainingError, match="not finite 10 steps in a row"):
        updater.step(make_batch(0), ["key"])
