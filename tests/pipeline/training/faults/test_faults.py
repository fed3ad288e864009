"""Faults of a training on a cluster of several nodes on this machine; each ends as a training without any does."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from s3fs import S3FileSystem
from upath import UPath

from pipeline.settings import load, load_all, parse, to_yaml
from pipeline.store.storage import Place, exists, is_remote, list_below, list_files, read_text
from pipeline.training.settings import RunConfig, TrainConfig, TrainingSettings

ROOT = Path(__file__).resolve().parents[4]
STEPS, EVERY = 120, 10

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass
class Bench:
    """A cluster, data and settings of one training on two of its nodes."""

    cluster: Any
    human: Path
    params: Path
    store: Place
    """An empty bucket, but for the same data."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, out: Place, *words: str) -> subprocess.Popen[str]:
        """Start the stage."""
        human = self.store / "human" if is_remote(out) else self.human
        places = ["--human", str(human), "--out", str(out), "--log", str(out / "log.csv")]
        self.started.append(
            subprocess.Popen(
                [sys.executable, "-m", "stages.train", "tiny", "--params", str(self.params), *places, *words],
                cwd=self.params.parent,
                env=os.environ | {"RAY_ADDRESS": self.cluster.address, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self.started[-1]

    def end(self, process: subprocess.Popen[str], status: int = 0) -> str:
        """Wait for its end, a good one or that of a status; return what was printed."""
        try:
            _, errors = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
        assert process.returncode == status, errors
        return errors

    def replace_node(self) -> None:
        """End a node as a power cut would, its daemon and everything that it started, and add another."""
        node = next(iter(self.cluster.worker_nodes))
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.add_node(num_cpus=1)
        self.cluster.remove_node(node, allow_graceful=False)


def outcome(out: Place) -> tuple[list[tuple[str, str]], str]:
    """Return the losses by step, and the hash of the weights."""
    lines = (read_text(out / "log.csv") or "").splitlines()
    losses = [(row["step"], row["loss"]) for row in csv.DictReader(lines)]
    return losses, hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def checkpoint_after(step: int, checkpoints: Place, process: subprocess.Popen[str]) -> int:
    """Wait for a checkpoint of a later step and return its own."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        steps = [int(path.name.split("-")[1]) for path in list_files(checkpoints, "step-*.json")]
        if max(steps, default=0) > step:
            return max(steps)
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint after step {step}")


def workers() -> list[psutil.Process]:
    """Return the processes that train, all of which this test has started through its own cluster."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def bench(
    start_cluster: Callable[..., AbstractContextManager[Any]],
    tmp_path_factory: pytest.TempPathFactory,
    config: TrainingSettings,
    train_config: TrainConfig,
    tiny: SimpleNamespace,
    s3_variables: dict[str, str],
) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    names = list(tiny.COLOURS)
    rows = [tiny.detection_record(f"d{i}", [names[i % 6], names[(i + 1) % 6]], i) for i in range(8)]
    tiny.write_detection(folder / "human" / "detection", rows)
    run = RunConfig(init="pretrained", steps=STEPS, mixture={"detection": 1.0})
    optim = replace(train_config.optim, ema_decay=0.9)
    train = replace(
        train_config, optim=optim, runs={"tiny": run}, num_workers=2, checkpoint_every=EVERY, log_every=EVERY // 2
    )
    params = folder / "params.yaml"
    shipped = f"extends: {ROOT / 'params.yaml'}\n"
    params.write_text(shipped + to_yaml(replace(config, train=train)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in s3_variables.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        stack.callback(S3FileSystem.clear_instance_cache)
        bucket = UPath("s3://faults")
        bucket.fs.mkdir(bucket.path)
        tiny.write_detection(bucket / "human" / "detection", rows)
        bench = Bench(stack.enter_context(start_cluster(nodes=2)), folder / "human", params, bucket)
        yield bench
        for process in bench.started:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture(scope="module")
def undisturbed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[str, str]], str]:
    out = tmp_path_factory.mktemp("undisturbed")
    bench.end(bench.start(out))
    return outcome(out)


def test_worker_killed_and_then_a_node_with_its_worker(
    bench: Bench, undisturbed: tuple[list[tuple[str, str]], str], tmp_path: Path
) -> None:
    process = bench.start(tmp_path)
    step = checkpoint_after(0, tmp_path / "checkpoints", process)
    workers()[-1].kill()
    checkpoint_after(step, tmp_path / "checkpoints", process)
    bench.replace_node()
    printed = bench.end(process)
    assert printed.count("resuming after step") >= 2
    assert outcome(tmp_path) == undisturbed


def test_driver_killed_and_started_again_in_a_store(
    bench: Bench, undisturbed: tuple[list[tuple[str, str]], str]
) -> None:
    out = bench.store / "driver"
    process = bench.start(out)
    checkpoint_after(EVERY, out / "checkpoints", process)
    process.kill()
    process.communicate()
    assert not exists(out / "model.safetensors")
    [settings, *_] = list_files(out / "checkpoints", "step-*.yaml")
    assert parse(TrainingSettings, yaml.safe_load(read_text(settings) or ""), "") == load(
        bench.params, TrainingSettings
    )
    printed = bench.end(bench.start(out))
    assert "resuming after step" in printed
    assert outcome(out) == undisturbed
    assert not {path.parent.name for path in list_below(out)} & {"checkpoints", ".ray-train"}


def test_disk_full_when_a_checkpoint_is_written(bench: Bench, tmp_path: Path) -> None:
    """Whose process writes it makes no difference, so there are no workers."""
    config = load_all(bench.params)
    params = tmp_path / "params.yaml"
    params.write_text(to_yaml(replace(config, train=replace(config.train, num_workers=0))), encoding="utf-8")
    bench = replace(bench, params=params)
    bench.end(bench.start(tmp_path / "undisturbed"))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs rights that are missing here")
    try:
        printed = bench.end(bench.start(tmp_path / "out", "--checkpoints", str(disk / "checkpoints")))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "the checkpoint of step 10 could not be written" in printed
    assert outcome(tmp_path / "out") == outcome(tmp_path / "undisturbed")


def test_losses_that_are_no_numbers_end_the_training_and_name_the_rows(bench: Bench, tmp_path: Path) -> None:
    config = load_all(bench.params)
    optim = replace(config.train.optim, learning_rate=1e30, warmup_steps=0)
    params = tmp_path / "params.yaml"
    params.write_text(to_yaml(replace(config, train=replace(config.train, optim=optim))), encoding="utf-8")
    bench = replace(bench, params=params)
    printed = bench.end(bench.start(tmp_path / "out"), status=2)
    told = tmp_path / "out" / "diverged.json"
    assert "the gradient was not finite 10 steps in a row; lower train.optim.learning_rate" in printed
    assert f"look at the samples in {told}" in printed
    skipped = json.loads(told.read_text(encoding="utf-8"))["skipped"]
    assert [step["step"] for step in skipped] == list(range(2, 12))  # the first step is a good one, and one too large
    for step in skipped:
        assert [len(worker["keys"]) for worker in step["workers"]] == [2, 2]
        assert all(worker["losses"]["loss"] == "nan" for worker in step["workers"])
