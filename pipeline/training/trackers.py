"""Experiment trackers that follow a training: TensorBoard, DVCLive, Weights & Biases, MLflow.

They run in the driver. What they keep lies in ``OUT/tracking``, also where that is in a store, with the names of the
runs and the last step: a resumed training continues the same runs and repeats no step. A tracker that fails is
disabled for the rest of the run, because training matters more than its log.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pipeline.errors import ConfigError, StorageError
from pipeline.store.atomic import write_json
from pipeline.store.folders import Mirror, local_files
from pipeline.store.storage import Place, remove_folder, to_place
from pipeline.training.progress import Progress

logger = logging.getLogger(__name__)

FOLDER = "tracking"
STATE_FILE = "state.json"
PROJECT = "glip"
"""Project of Weights & Biases, experiment of MLflow."""
_MLFLOW_BATCH = 100
"""Parameters that MLflow takes at a time."""
_MLFLOW_CHARS = 500
"""Characters that every MLflow server takes for a parameter."""


class Tracker(Protocol):
    """One experiment tracker."""

    run_id: str
    """The tracker's id of this run. A resumed training passes it back; it is empty for a new one."""

    def log(self, step: int, values: Mapping[str, float], pictures: Sequence[Path]) -> None:
        """Take in what a training reports after a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Trackers:
    """All trackers of a training.

    Args:
        names: see ``train.trackers``.
        out: folder of the model.
        name: of the run.
        settings: all settings by dotted names.
        is_resumed: the training resumes an interrupted one, if that had the same settings.

    Raises:
        ConfigError: a package is not installed, or its tracker does not start.
    """

    def __init__(
        self, names: Sequence[str], out: Place, name: str, settings: Mapping[str, Any], is_resumed: bool
    ) -> None:
        for each in names:
            if importlib.util.find_spec(each) is None:
                raise ConfigError(f"train.trackers names {each}, which is not installed; run: pip install {each}")
        self._trackers: dict[str, Tracker] = {}
        self._stack = ExitStack()
        if not names:
            remove_folder(out / FOLDER)
            return
        self._mirror = self._stack.enter_context(Mirror(out / FOLDER))
        folder = self._mirror.folder
        if is_resumed:
            self._mirror.fetch()
        self._state_file = folder / STATE_FILE
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        self._state = self._read_state() if is_resumed else {}
        if self._state.get("settings") != digest:
            remove_folder(folder)
            remove_folder(out / FOLDER)
            self._state = {"settings": digest, "step": -1, "runs": {}}
        for each in names:
            (folder / each).mkdir(parents=True, exist_ok=True)
            try:
                self._trackers[each] = _KINDS[each](folder / each, name, settings, self._state["runs"].get(each, ""))
            except Exception as error:  # a package's own, of any kind: nobody is logged in, or no server answers
                raise ConfigError(f"train.trackers names {each}, which does not start: {error}") from error
        self._write_state(self._state["step"])

    def log(self, entry: Progress) -> None:
        """Pass a report on; one that the trackers have had already, before training was resumed, is left out."""
        if not self._trackers or entry.step <= self._state["step"]:
            return
        values = {
            **{f"train/{name}": value for name, value in entry.losses.items()},
            "train/learning_rate": entry.learning_rate,
            "speed/images_per_s": entry.images_per_s,
            "speed/data_wait_share": entry.data_wait_share,
            "speed/memory_gb": entry.memory_gb,
            "train/skipped_steps": entry.skipped_steps,
            **entry.scores,
        }
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        with ExitStack() as stack:
            pictures: list[Path] = []
            try:
                pictures = stack.enter_context(local_files(map(to_place, entry.pictures)))
            except (OSError, StorageError) as error:
                logger.warning("trackers get no pictures of step %d: %s", entry.step, error)
            self._each("log", entry.step, finite, pictures)
        self._write_state(entry.step)

    def close(self) -> None:
        """Let all trackers write what is left."""
        if self._trackers:
            self._each("close")
            self._send()
        self._stack.close()

    def _each(self, call: str, *args: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                getattr(tracker, call)(*args)
            except Exception as error:  # a package's own, of any kind: its server or disk may be gone
                logger.warning("tracker %s failed and is left out from here on: %s", name, error)
                del self._trackers[name]

    def _read_state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state

    def _write_state(self, step: int) -> None:
        self._state |= {"step": step, "runs": {name: tracker.run_id for name, tracker in self._trackers.items()}}
        write_json(self._state_file, self._state)
        self._send()

    def _send(self) -> None:
        try:
            self._mirror.send()
        except StorageError as error:
            logger.warning("what the trackers wrote is not in the store yet: %s", error)


class TensorBoard:
    """Event files in the folder; see them with ``tensorboard --logdir OUT/tracking``."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run_id: str) -> None:
        self.run_id = name
        module: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder))
        if not run_id:
            lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())  # indented: as it is
            self._writer.add_text("settings", lines)

    def log(self, step: int, values: Mapping[str, float], pictures: Sequence[Path]) -> None:
        """Write and flush, so that a killed driver has lost nothing that it counts as logged."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        for path in pictures:
            self._writer.add_image(f"samples/{path.stem}", _pixels(path), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class DVCLive:
    """Files in the folder, for ``dvc plots`` and DVC's extension of VS Code."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run_id: str) -> None:
        self.run_id = name
        module: Any = importlib.import_module("dvclive")
        self._live = module.Live(
            dir=str(folder), resume=True, report=None, save_dvc_exp=False, dvcyaml=None, monitor_system=False
        )
        self._live.log_params({key: _plain(value) for key, value in settings.items()})

    def log(self, step: int, values: Mapping[str, float], pictures: Sequence[Path]) -> None:
        """Write the files of a step."""
        self._live.step = step
        for name, value in values.items():
            self._live.log_metric(name, value)
        for path in pictures:
            self._live.log_image(path.name, str(path))
        self._live.make_summary()

    def close(self) -> None:
        """End the run."""
        self._live.end()


class WandB:
    """A run of Weights & Biases, which finds its key and mode in the environment."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run_id: str) -> None:
        self._module: Any = importlib.import_module("wandb")
        self._run = self._module.init(
            project=PROJECT,
            name=name,
            id=run_id or None,
            resume="allow",
            dir=str(folder),
            config={key: _plain(value) for key, value in settings.items()},
        )
        self.run_id = self._run.id

    def log(self, step: int, values: Mapping[str, float], pictures: Sequence[Path]) -> None:
        """Send numbers and pictures of a step."""
        images = {f"samples/{path.stem}": self._module.Image(str(path)) for path in pictures}
        self._run.log({**values, **images}, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MLflow:
    """A run of the MLflow server that the environment names, or of its files."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], run_id: str) -> None:
        module: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client = module.MlflowClient()
        self.run_id = run_id
        if run_id:
            self._client.update_run(run_id, "RUNNING")
            return
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        self.run_id = self._client.create_run(number, run_name=name).info.run_id
        params = [self._entities.Param(key, str(_plain(value))[:_MLFLOW_CHARS]) for key, value in settings.items()]
        for start in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + _MLFLOW_BATCH])

    def log(self, step: int, values: Mapping[str, float], pictures: Sequence[Path]) -> None:
        """Send numbers and pictures of a step."""
        now = time.time_ns() // 1_000_000
        metrics = [self._entities.Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)
        for path in pictures:
            self._client.log_artifact(self.run_id, str(path), f"samples/{path.parent.name}")

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id)


_KINDS: dict[str, Callable[[Path, str, Mapping[str, Any], str], Tracker]] = {
    "tensorboard": TensorBoard,
    "dvclive": DVCLive,
    "wandb": WandB,
    "mlflow": MLflow,
}


def _plain(value: Any) -> Any:
    """Return a setting as something that every tracker can write."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)


def _pixels(path: Path) -> Any:
    """Return (H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
