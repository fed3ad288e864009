"""What it costs to start the commands of the graph: CPU seconds and wall time of each on a handful of rows.

Run: make bench, or: python tests/benchmarks/startup_cost.py --stages phrases train --json out.json

On so few rows nearly all of it is imports and Ray: of the command, of Ray's services, and of the processes that Ray
starts for the work. CPU seconds are those of all of them, looked at until they end. The baseline is a process that
imports PyTorch and nothing else, in the same run; ratios are what to compare between machines.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
LOOK_S = 0.1
"""Time between two looks at the processes, which take time themselves: what one computes after the last is missed."""
COMMANDS = {
    "prepare": "stages.prepare --out data/records --metrics metrics/prepare.json",
    "train": "stages.train_only teacher --human data/records/human --out models/teacher --metrics metrics/train.json",
    "phrases": "stages.phrases --records data/records/web --out data/phrases --metrics metrics/phrases.json",
    "pseudo_label": "stages.pseudo_label --records data/records/web --phrases data/phrases --teacher models/teacher "
    "--out data/pseudo_labels --metrics metrics/pseudo_label.json",
    "calibrate": "stages.calibrate --records data/records/dev/grounding --teacher models/teacher "
    "--out plots/calibration.csv --metrics metrics/calibration.json",
    "evaluate": "stages.evaluate --model models/teacher --records data/records --out data/predictions/teacher "
    "--metrics metrics/teacher.json --table plots/benchmarks.csv",
}
"""In the order in which each makes what the next ones need; all but prepare, train and phrases may be left out."""


def write_params(folder: Path) -> None:
    """Write the settings of the embedded run, for a few rows and one step."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"]["rows_per_shard"] = 4
    params["prepare"]["embedded"].update(human_detection=8, human_grounding=8, web=8, dev=4, test=4)
    params["train"]["num_workers"] = 1
    params["train"]["optim"]["batch_size"] = 4
    for run in params["train"]["runs"].values():
        run["steps"] = 1
    params["pseudo_label"]["min_score"] = 0.05
    params["evaluate"]["num_actors"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def cost_of(words: list[str], folder: Path) -> tuple[float, float, int]:
    """Run a command; return its CPU seconds with those of all that it starts, its wall time and the processes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    log = folder / "output.log"
    with log.open("w") as output:
        process = psutil.Popen(words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    known: dict[int, psutil.Process] = {process.pid: process}
    spent: dict[int, float] = {}
    while process.poll() is None:
        time.sleep(LOOK_S)
        with suppress(psutil.NoSuchProcess):
            known |= {child.pid: child for child in process.children(recursive=True)}
        for pid, each in list(known.items()):
            try:
                times = each.cpu_times()
                spent[pid] = times.user + times.system
            except psutil.NoSuchProcess:
                del known[pid]
    wall = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{shlex.join(words)}: ended with {process.returncode}\n{log.read_text(errors='replace')}")
    psutil.wait_procs(known.values(), timeout=10)  # Ray's services end after the command
    return sum(spent.values()), wall, len(spent)


def main() -> None:
    """Measure the baseline and the commands, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--repeats", type=int, default=3, help="of the baseline, whose median counts")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_params(folder)
        alone = [cost_of([sys.executable, "-c", "import torch"], folder) for _ in range(args.repeats)]
        base_cpu, base_wall = (statistics.median(column) for column in list(zip(*alone, strict=True))[:2])
        print(f"import torch: {base_cpu:.1f} CPU-s, {base_wall:.1f} s")
        for stage in COMMANDS:
            if stage not in args.stages and stage not in ("prepare", "train", "phrases"):
                continue
            cpu, wall, processes = cost_of([sys.executable, "-m", *shlex.split(COMMANDS[stage])], folder)
            figures[stage] = {"cpu": cpu / base_cpu, "wall": wall / base_wall, "processes": processes}
            print(f"{stage:>12}: {cpu:5.1f} CPU-s, {cpu / base_cpu:4.1f} × import torch; ", end="")
            print(f"{wall:5.1f} s, {wall / base_wall:4.1f} ×; {processes} processes", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
