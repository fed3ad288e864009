"""The Slurm script: two real Ray nodes on loopback, with stand-ins for the commands of Slurm alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$SLURM_SUBMIT_DIR/scontrol.log"
"""
HOSTNAME = """#!/bin/bash
echo "127.0.0.1 "
"""
COUNT = """
import os, pathlib, ray
ray.init(logging_level="ERROR", log_to_driver=False)
print("NODES", sum(node["Alive"] for node in ray.nodes()), os.environ["RAY_AUTH_MODE"])
pathlib.Path("started").touch()
"""
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def start(folder: Path, program: str) -> subprocess.Popen[str]:
    programs = folder / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("hostname", HOSTNAME)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {
        "PATH": path,
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_JOB_ID": str(random.randrange(1, 9999)),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURMD_NODENAME": "first",
    }
    environment.pop("RAY_ADDRESS", None)
    command = ["bash", str(ROOT / "cluster/slurm.sbatch"), "python", "-c", program]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_job_runs_its_command_on_two_nodes_and_cleans_up(tmp_path: Path) -> None:
    job = start(tmp_path, COUNT)
    output, _ = job.communicate(timeout=150)
    assert job.returncode == 0, output
    assert "NODES 2 token" in output
    assert not list(tmp_path.glob(".ray-*"))
    assert not (tmp_path / "scontrol.log").exists()


def test_a_job_that_is_to_be_ended_queues_itself_again(tmp_path: Path) -> None:
    job = start(tmp_path, COUNT + "import time; time.sleep(600)")
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    assert "NODES 2" in output
    assert (tmp_path / "scontrol.log").read_text().startswith("requeue ")
    assert not list(tmp_path.glob(".ray-*"))
