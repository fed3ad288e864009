"""The benchmark of GPUs, tried out on the CPU, so that it runs when there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "tests/benchmarks/gpu_speed.py"
ABSENT = ("pydantic", "ray", "upath", "spacy", "dvc", "duckdb", "s3fs")
"""What a machine that measures need not have."""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is said to be missing')\n", encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(BENCHMARK), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


@pytest.mark.slow
def test_everything_is_measured_with_torch_and_transformers_alone(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = run(tmp_path, "--device", "cpu", "--tiny", "--seconds-a-case", "0.1", "--seconds", "1e6", "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text(encoding="utf-8"))
    measured = [*figures["cases"], *figures["labelling"], *figures["distributed"]]
    assert [entry["images_per_s"] > 0 for entry in measured] == [True] * 6, measured
    assert {entry["how"] for entry in figures["distributed"]} == {"ddp", "fsdp"}
    assert max(entry["boxes_a_picture"] for entry in figures["labelling"]) > 0
    assert not [name for name, value in figures["checks"].items() if "failed" in str(value)], figures["checks"]


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "no GPU here" in done.stderr
    assert not (tmp_path / "gpu_speed.json").exists()
