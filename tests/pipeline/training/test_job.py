"""Training under Ray Train: without workers, with one or two; workers that fail, mistakes that reach the driver."""

from __future__ import annotations

import csv
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from glip_model.glip import GLIP
from glip_model.text_encoder import load_tokenizer
from pipeline.errors import MissingInputError, TrainingError
from pipeline.evaluation.dev_set import DevSet
from pipeline.settings import load_all
from pipeline.store.records import ImageRef
from pipeline.training.job import Paths, train
from pipeline.training.judge import Validate
from pipeline.training.settings import RunConfig, TrainConfig, TrainingSettings

Run = Callable[..., tuple[dict[str, Any], list[dict[str, str]]]]


@pytest.fixture
def run(config: TrainingSettings, train_config: TrainConfig, human: Path, tmp_path: Path) -> Run:
    def run_training(
        out: str = "model",
        workers: int = 0,
        steps: int = 4,
        folder: Path = human,
        mixture: dict[str, float] | None = None,
        teacher: Path | None = None,
        length: dict[str, float] | None = None,
        dev: Validate | None = None,
        **settings: Any,
    ) -> tuple[dict[str, Any], list[dict[str, str]]]:
        tiny_run = RunConfig(
            init="pretrained" if teacher is None else "teacher",
            mixture=mixture or {"detection": 1.0, "grounding": 1.0},
            **(length or {"steps": steps}),  # type: ignore[arg-type]
        )
        changed = replace(train_config, num_workers=workers, runs={"tiny": tiny_run}, **settings)
        paths = Paths(human=folder, pseudo_labels=None, teacher=teacher, out=tmp_path / out)
        metrics = train("tiny", replace(config, train=changed), paths, tmp_path / f"{out}.csv", dev)
        with (tmp_path / f"{out}.csv").open(encoding="utf-8") as file:
            return metrics, list(csv.DictReader(file))

    return run_training


needs_ray = pytest.mark.usefixtures("ray_running")
needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")


@pytest.mark.ray
@needs_ray
@needs_two_cores
def test_two_workers_with_loader_processes_learn_what_one_learns(run: Run, tmp_path: Path) -> None:
    metrics, log = run("one", workers=1)
    metrics_of_two, log_of_two = run("two", workers=2, loader_processes=1)
    assert [row["step"] for row in log] == ["1", "2", "3", "4"]
    for name in ("loss", "loss_token", "loss_box", "loss_centerness"):
        values = [[float(row[name]) for row in rows] for rows in (log, log_of_two)]
        assert values[1] == pytest.approx(values[0], rel=1e-3), name
        assert metrics_of_two["losses"][name] == pytest.approx(metrics["losses"][name], rel=1e-3)
    assert metrics["steps"] == 4
    assert metrics["skipped_steps"] == metrics["unreadable_pictures"] == 0
    for out in ("one", "two"):
        assert {path.name for path in (tmp_path / out).iterdir()} >= {"config.json", "model.safetensors"}
        assert not (tmp_path / out / "checkpoints").exists()
        assert not [path for path in (tmp_path / out).iterdir() if path.name.startswith(".")]
        assert GLIP.from_pretrained(tmp_path / out).config.channels == 32


def test_training_continues_from_a_teacher(run: Run, tmp_path: Path) -> None:
    run("teacher", steps=2)
    metrics, _ = run("student", steps=1, teacher=tmp_path / "teacher")
    assert metrics["steps"] == 1
    with pytest.raises(MissingInputError, match=r"init is teacher, but .*nowhere holds no model"):
        run(teacher=tmp_path / "nowhere")


def test_epochs_of_accumulated_steps_and_raw_weights_beside_their_average(
    run: Run, train_config: TrainConfig, tmp_path: Path
) -> None:
    optim = replace(train_config.optim, accumulate=2, ema_decay=0.9, saved_weights="raw")
    metrics, log = run("model", length={"epochs": 0.75}, optim=optim)
    assert metrics["steps"] == 3  # 0.75 of 16 rows in steps of 4
    assert [row["step"] for row in log] == ["1", "2", "3"]
    raw, average = (GLIP.from_pretrained(tmp_path / name) for name in ("model", "model/average"))
    assert not raw.head.bias_lang.equal(average.head.bias_lang)
    run("model", steps=1)
    assert not (tmp_path / "model/average").exists()


@pytest.mark.ray
@needs_ray
@needs_two_cores
def test_two_workers_that_share_weights_accumulate_as_one(run: Run, train_config: TrainConfig, tmp_path: Path) -> None:
    optim = replace(train_config.optim, batch_size=4, accumulate=2)
    _, log = run("accumulated", steps=2, workers=2, optim=optim, distribution="fsdp", checkpoint_every=1)
    assert GLIP.from_pretrained(tmp_path / "accumulated").config.channels == 32
    _, expected = run("alone", steps=2, optim=replace(optim, accumulate=4))
    # Two workers share the normalisers of a part; in the end the losses are nearly those of one.
    assert [float(row["loss"]) for row in log] == pytest.approx([float(row["loss"]) for row in expected], rel=0.3)


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_killed_worker_is_replaced_and_the_log_has_no_gap(run: Run, tmp_path: Path, caplog: Any) -> None:
    _, expected = run("whole", steps=40, workers=1)

    has_ended, killed = threading.Event(), []

    def kill_when_checkpoints_are_there() -> None:
        while not has_ended.wait(0.02):
            if len(list((tmp_path / "killed" / "checkpoints").glob("step-*.json"))) == 2:
                # Only a process that this test started through its own Ray.
                children = psutil.Process().children(recursive=True)
                killed.append(next(child for child in children if "RayTrainWorker" in " ".join(child.cmdline())))
                killed[0].kill()
                return

    killer = threading.Thread(target=kill_when_checkpoints_are_there, daemon=True)
    killer.start()
    try:
        metrics, found = run("killed", steps=40, workers=1)
    finally:
        has_ended.set()
        killer.join(10)
    assert len(killed) == 1
    assert metrics["steps"] == 40
    assert "resuming after step" in caplog.text
    assert [row["loss"] for row in found] == [row["loss"] for row in expected]


@pytest.mark.ray
@needs_ray
@needs_two_cores
def test_mistake_in_one_of_two_workers_reaches_the_driver(
    run: Run, human: Path, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """The other worker would wait for it for half an hour."""
    bad = replace(tiny.detection_record("bad", ["apple"]), image=ImageRef(path=str(tmp_path / "gone.png")))
    tiny.write_detection(tmp_path / "detection", [bad])
    with pytest.raises(TrainingError, match="20 pictures of the detection data in a row cannot be read"):
        run(workers=2, folder=tmp_path, mixture={"detection": 1.0}, loader_processes=1)


def test_a_model_that_cannot_be_written_is_a_message_and_training_goes_on_later(run: Run, tmp_path: Path) -> None:
    blocked = tmp_path / "model" / "tokenizer.json" / "mine"
    blocked.mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"model: cannot be written .*Is a directory: .*run the same command again"):
        run(steps=2, checkpoint_every=1)
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert not list((tmp_path / "model").glob(".*"))
    blocked.rmdir()
    blocked.parent.rmdir()
    metrics, _ = run(steps=2, checkpoint_every=1)
    assert metrics["steps"] == 2


def test_pictures_that_cannot_be_read_are_reported(
    run: Run, tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [tiny.detection_record(f"d{i}", ["apple"], i) for i in range(4)]
    tiny.write_detection(tmp_path / "detection", [*rows, replace(rows[0], image=ImageRef(bytes=b"no picture"))])
    with caplog.at_level(logging.WARNING):
        metrics, _ = run(folder=tmp_path, mixture={"detection": 1.0})
    assert metrics["unreadable_pictures"] >= 3
    assert f"{metrics['unreadable_pictures']} pictures could not be read" in caplog.text


def test_a_dev_set_judges_the_model_while_it_trains(
    run: Run,
    human: Path,
    config: TrainingSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # a terminal keeps a bar's last state
    evaluate = load_all(Path(__file__).resolve().parents[3] / "params.yaml").evaluate
    dev = DevSet(human, replace(evaluate, max_detections=33), rows=5, pictures=2)
    metrics, log = run("judged", steps=3, dev=dev, evaluate_every=2, log_every=2, trackers=("dvclive", "tensorboard"))
    assert [row["step"] for row in log] == ["2", "3"]
    scores = {name: float(log[-1][name]) for name in ("human/detection/test/AP", "human/grounding/test/R@1")}
    assert metrics["scores"] == scores
    assert metrics["memory_gb"] > 0
    for step in ("step-00000002", "step-00000003"):
        names = sorted(path.name for path in (tmp_path / "judged/samples" / step).iterdir())
        assert names == [f"{kind}-00{i}.jpg" for kind in ("detection-0", "grounding-1") for i in (0, 1)]
    # The first five rows, judged once more by themselves, with the model that was saved.
    model = GLIP.from_pretrained(tmp_path / "judged")
    again = dev(model, load_tokenizer(tmp_path / "judged", 30522), tmp_path / "again")
    assert again == pytest.approx(scores)
    # Judging leaves no trace of its own limits: in the model that was judged, nor in what is saved of it.
    settings = config.model.glip_config()
    assert settings.max_detections != 33
    for folder in ("judged", "judged/best"):
        assert GLIP.from_pretrained(tmp_path / folder).config == settings
    assert model.config == settings
    assert list((tmp_path / "judged/tracking").glob("tensorboard/events*"))
    shown = capsys.readouterr().err
    assert [word for word in ("loss ", "images/s", "wait ", "GB", "rate ", "left") if word not in shown] == []
    with pytest.raises(TrainingError, match="pass --dev FOLDER"):
        run("judged", evaluate_every=2)
    with pytest.raises(TrainingError, match=r"set train\.evaluate_every or"):
        run("judged", dev=dev)


@pytest.mark.ray
@needs_ray
def test_more_workers_than_cores_is_an_error(run: Run, train_config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match=r"train.num_workers is 4096, but Ray has \d+ CPU cores"):
        run(workers=4096, optim=replace(train_config.optim, batch_size=4096))


def test_missing_data_is_found_before_any_worker_starts(run: Run, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such folder; run: dvc repro prepare"):
        run(folder=tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="pass --pseudo-labels FOLDER"):
        run(mixture={"pseudo": 1.0})


def test_batch_that_cannot_be_divided_is_reported_before_any_worker_starts(run: Run, train_config: TrainConfig) -> None:
    odd = replace(train_config.optim, batch_size=3)
    with pytest.raises(TrainingError, match=r"must be divisible by train\.num_workers"):
        run(workers=2, optim=odd)
