"""``glip label`` killed in its midst and started again: the same shards as without a fault, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from pipeline.store.provenance import file_sha256

ROOT = Path(__file__).resolve().parents[2]
PICTURES, SECONDS = 8, 240.0
TEACHER = """
import os, time
from pathlib import Path
import torch
from glip_model.structures import Detections

FOLDER = Path(os.environ["KILLED"])

class Teacher:
    def ground(self, images, prompts):
        with (FOLDER / "log").open("a") as log:
            log.write("x")
        # The first shards are labelled at once, the others when they may be.
        while (FOLDER / "hold").exists() and (FOLDER / "log").stat().st_size > 2:
            time.sleep(0.05)
        boxes = torch.tensor([[2.0 + i, 2.0, 30.0, 20.0] for i in range(len(prompts[0].phrases))])
        scores, index = torch.full((len(boxes),), 0.75), torch.arange(len(boxes))
        return [Detections(boxes, scores, index, prompt.phrases) for prompt in prompts]

def make(device):
    return Teacher()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Eight pictures, settings for shards of two, a teacher that waits while there is a file ``hold``."""
    (tmp_path / "photos").mkdir()
    for i in range(PICTURES):
        noise = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"photos/{i}.png")
    params = {"extends": str(ROOT / "params.yaml"), "prepare": {"rows_per_shard": 2}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (tmp_path / "waiting_teacher.py").write_text(TEACHER, encoding="utf-8")
    return tmp_path


def start(place: Path, out: str) -> subprocess.Popen[str]:
    words = ["label", "photos", "--names", "cat, dog", "--teacher", "waiting_teacher:make", "--out", out]
    paths = os.pathsep.join([str(place), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", "stages.glip", *words, "--actors", "1", "--batch-size", "2"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": paths, "KILLED": str(place)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def killed_in_the_end(run: subprocess.Popen[str]) -> Iterator[None]:
    """End a command, and the Ray that it started, as a power cut would."""
    try:
        yield
    finally:
        below = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        run.communicate()
        for process in below:
            if process.is_running():
                process.kill()
        psutil.wait_procs(below)


def shards(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.glob("part-*.parquet"))}


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_shards(place: Path) -> None:
    whole = start(place, "whole")
    _, errors = whole.communicate(timeout=SECONDS)
    assert whole.returncode == 0, errors
    expected = shards(place / "whole")
    assert len(expected) == PICTURES / 2

    (place / "log").unlink()
    (place / "hold").touch()
    run = start(place, "killed")
    with killed_in_the_end(run):
        end = time.monotonic() + SECONDS
        while not shards(place / "killed"):
            assert run.poll() is None, run.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.05)
    finished = shards(place / "killed")
    assert 0 < len(finished) < len(expected)
    assert not (place / "killed/_manifest.json").exists()  # the folder says that it is not complete
    times = {name: (place / "killed" / name).stat().st_mtime_ns for name in finished}

    (place / "hold").unlink()
    again = start(place, "killed")
    _, errors = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, errors
    assert shards(place / "killed") == expected
    assert {name: (place / "killed" / name).stat().st_mtime_ns for name in finished} == times
