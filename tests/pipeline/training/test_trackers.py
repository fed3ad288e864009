"""Trackers: what they keep can be read back, a resumed training repeats nothing, and none of them stops training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.store.folders import Mirror
from pipeline.store.storage import Place, is_folder, to_place
from pipeline.training.progress import Progress
from pipeline.training.trackers import Trackers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SETTINGS = {"seed": 0, "train.runs": {"tiny": 1}, "train.optim.schedule": "cosine"}


def entry(step: int, **more: Any) -> Progress:
    return Progress(
        step=step,
        losses={"loss": 10.0 - step, "loss_box": float("nan")},
        learning_rate=0.5,
        images_per_s=7.0,
        data_wait_share=0.25,
        skipped_steps=0,
        unreadable_pictures=0,
        **more,
    )


def track(folder: Place, names: list[str], entries: list[Progress], is_resumed: bool = False, **settings: Any) -> None:
    trackers = Trackers(names, folder, "teacher", SETTINGS | settings, is_resumed)
    for each in entries:
        trackers.log(each)
    trackers.close()


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "step-00000002" / "detection-0-000.jpg"
    path.parent.mkdir()
    Image.new("RGB", (8, 6), "red").save(path)
    return str(path)


def tensorboard_steps(folder: Path) -> Mapping[str, list[tuple[int, float]]]:
    module: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(folder / "tracking" / "tensorboard"))
    found.Reload()
    tags = found.Tags()
    assert tags["images"] in ([], ["samples/detection-0-000"])
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags["scalars"]}


def dvclive_steps(folder: Path) -> Mapping[str, list[tuple[int, float]]]:
    place = folder / "tracking" / "dvclive" / "plots" / "metrics"
    found = {}
    for path in place.rglob("*.tsv"):
        lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        found[path.relative_to(place).with_suffix("").as_posix()] = [(int(step), float(v)) for step, v in lines]
    return found


READERS = {"tensorboard": tensorboard_steps, "dvclive": dvclive_steps}


@pytest.mark.parametrize("name", READERS)
def test_numbers_are_read_back_and_a_resumed_training_repeats_no_step(name: str, tmp_path: Path, picture: str) -> None:
    track(tmp_path, [name], [entry(1), entry(2, scores={"dev/AP": 40.0}, pictures=(picture,))])
    track(tmp_path, [name], [entry(1), entry(2), entry(3)], is_resumed=True)
    found = READERS[name](tmp_path)
    assert found["train/loss"] == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert found["dev/AP"] == [(2, 40.0)]
    assert found["speed/data_wait_share"] == [(1, 0.25), (2, 0.25), (3, 0.25)]
    assert "train/loss_box" not in found  # never finite
    # Another training in the same folder begins anew.
    track(tmp_path, [name], [entry(1)], is_resumed=True, seed=1)
    assert READERS[name](tmp_path)["train/loss"] == [(1, 9.0)]


@pytest.mark.parametrize("name", READERS)
def test_what_trackers_keep_rests_in_a_store_and_is_gone_on_with(
    name: str, tmp_path: Path, picture: str, s3: Any, caplog: pytest.LogCaptureFixture
) -> None:
    out = to_place("s3://raw/model")
    shown = to_place("s3://raw/model/samples/step-00000002/detection-0-000.jpg")
    shown.write_bytes(Path(picture).read_bytes())
    track(out, [name], [entry(1), entry(2, pictures=(str(shown), "s3://raw/gone.jpg"))])
    track(out, [name], [entry(2, pictures=(str(shown),)), entry(3, pictures=(str(shown),))], is_resumed=True)
    assert "trackers get no pictures of step 2" in caplog.text
    with Mirror(out / "tracking") as mirror:
        mirror.fetch()
        (tmp_path / "tracking").symlink_to(mirror.folder)
        assert READERS[name](tmp_path)["train/loss"] == [(1, 9.0), (2, 8.0), (3, 7.0)]
    track(out, [name], [entry(1)], is_resumed=True, seed=1)
    with Mirror(out / "tracking") as mirror:
        mirror.fetch()
        (tmp_path / "tracking").unlink()
        (tmp_path / "tracking").symlink_to(mirror.folder)
        assert READERS[name](tmp_path)["train/loss"] == [(1, 9.0)]
    track(out, [], [])
    assert not is_folder(out / "tracking")


def test_pictures_are_kept_by_dvclive(tmp_path: Path, picture: str) -> None:
    track(tmp_path, ["dvclive"], [entry(2, pictures=(picture,))])
    assert [path.name for path in (tmp_path / "tracking/dvclive/plots/images").iterdir()] == ["detection-0-000.jpg"]
    params = (tmp_path / "tracking/dvclive/params.yaml").read_text(encoding="utf-8")
    assert "train.optim.schedule: cosine" in params


def test_packages_that_are_not_there_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"names wandb, which is not installed; run: pip install wandb"):
        Trackers(["wandb"], tmp_path, "teacher", SETTINGS, False)


def test_a_tracker_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("pipeline.training.trackers.TensorBoard.__init__", refuse)
    with pytest.raises(ConfigError, match=r"names tensorboard, which does not start: read-only file system"):
        Trackers(["tensorboard"], tmp_path, "teacher", SETTINGS, False)


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr("pipeline.training.trackers.TensorBoard.log", fail)
    with caplog.at_level(logging.WARNING):
        track(tmp_path, ["tensorboard", "dvclive"], [entry(1), entry(2)])
    assert caplog.text.count("tracker tensorboard failed and is left out from here on: the server is gone") == 1
    assert [step for step, _ in dvclive_steps(tmp_path)["train/loss"]] == [1, 2]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    track(tmp_path, [], [entry(1)])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the smallest package knows no data base
    return tmp_path


def test_weights_and_biases_writes_its_run_offline(offline: Path, picture: str) -> None:
    pytest.importorskip("wandb")
    track(offline, ["wandb"], [entry(1), entry(2, pictures=(picture,))])
    assert list(offline.glob("tracking/wandb/wandb/offline-run-*/run-*.wandb"))
    assert json.loads((offline / "tracking/state.json").read_text(encoding="utf-8"))["step"] == 2


def test_mlflow_takes_numbers_and_goes_on_with_the_same_run(offline: Path, picture: str) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    track(offline, ["mlflow"], [entry(1), entry(2, pictures=(picture,))])
    track(offline, ["mlflow"], [entry(2), entry(3)], is_resumed=True)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("glip").experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [
        (1, 9.0),
        (2, 8.0),
        (3, 7.0),
    ]
    assert run.info.status == "FINISHED"
