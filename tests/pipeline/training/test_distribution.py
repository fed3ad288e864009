"""Several processes train as one does, whatever they share; compiled layers too."""

from __future__ import annotations

import socket
import sys
import warnings
from collections.abc import Callable, Iterator
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
from pipeline.config import OptimConfig
from pipeline.training.update import Updater

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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' own, while they build
        return GLIP(config).train()


def train(updater: Updater, steps: range, rank: int = 0, workers: int = 1) -> list[dict[str, float] | None]:
    return [updater.step(make_batch(step).split(workers)[rank], ["key"]) for step in steps]


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
        if rank == 0 and before == "fsdp":
            torch.save(states[0], folder / "checkpoint.pt")
        second = Updater(make_model(config), optim, STEPS, after)
        second.load_state_dict(states[0])
        losses = train(second, range(2, STEPS), rank, WORKERS)
        second.take_average()
        whole = second.whole_model()
        found[name] = losses, None if whole is None else whole.state_dict()

    checkpointed = replace(config, activation_checkpointing=True)
    for how in ("ddp", "fsdp"):
        run(how, how)
        run(f"{how} accumulated", how, accumulate=2)
        run(f"{how} checkpointed", how, checkpointed)
    sharded = run("fsdp fp16", "fsdp", fp16=True)
    found["scale"] = sharded.state_dict()["scaler"]["scale"]
    run("fsdp bf16", "fsdp", bf16=True)
    run("ddp bf16", "ddp", bf16=True)
    shares = [parameter.to_local().numel() for parameter in sharded.model.parameters()]  # type: ignore[operator]
    found["share"] = sum(shares) / sum(parameter.numel() for parameter in sharded.model.parameters())
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
    # AdamW makes steps of equal size out of gradients that are nearly nothing; a larger epsilon keeps rounding small.
    return tiny.model_config(frozen_text=False), replace(optim_config, ema_decay=0.9)


@pytest.fixture(scope="module")
def outcome(
    setting: tuple[GLIPConfig, OptimConfig], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], Path]]:
    folder = tmp_path_factory.mktemp("distribution")
    mp.spawn(work, (free_port(), *setting, folder), nprocs=WORKERS)
    yield torch.load(folder / "found.pt", weights_only=True), folder


@pytest.fixture(scope="module")
def alone(setting: tuple[GLIPConfig, OptimConfig]) -> tuple[list[dict[str, float] | None], dict[str, torch.Tensor]]:
    updater = Updater(make_model(setting[0]), setting[1], STEPS)
    return train(updater, range(STEPS)), updater.model.state_dict()
