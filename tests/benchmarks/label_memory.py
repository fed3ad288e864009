"""Memory and speed of ``glip label`` by the number of pictures, with a stand-in teacher: flat, or it is a bug.

Run: python tests/benchmarks/label_memory.py --pictures 10000 100000 --json out.json

Pictures are a few hundred small JPEGs, linked as often as it takes, so that reading, decoding, shards and Ray are what
is measured. The teacher finds a box for every name at once. Memory is what the processes hold alone or share in parts
(PSS): of the command, of the labelling process, and of all together with Ray; at the most, at half time of labelling
and at its end.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
DISTINCT, SIDE = 256, 64
POLL_S = 2.0


class NullTeacher:
    """Finds a box of every phrase in every picture without looking."""

    def ground(self, images: Sequence[Any], prompts: Sequence[Any]) -> list[Any]:
        """Answer at once."""
        import torch

        from glip_model.structures import Detections

        count = len(prompts[0].phrases)
        boxes = torch.tensor([[2.0 + 3 * i, 2.0, 20.0 + 3 * i, 40.0] for i in range(count)])
        return [
            Detections(boxes, torch.full((count,), 0.75), torch.arange(count), prompt.phrases) for prompt in prompts
        ]


def null_teacher(device: str) -> NullTeacher:
    """Return it."""
    return NullTeacher()


def write_pictures(folder: Path, count: int) -> None:
    """Write noisy pictures of several shapes, and link them under so many names, a thousand in a folder."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "0000").mkdir(parents=True)
    for i in range(count):
        path = folder / f"{i // 1000:04d}" / f"{i:07d}.jpg"
        path.parent.mkdir(exist_ok=True)
        if i < DISTINCT:
            data = io.BytesIO()
            shape = (SIDE, SIDE + 8 * (i % 4), 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize((96, 80)).save(data, "JPEG", quality=60)
            path.write_bytes(data.getvalue())
        else:
            os.link(folder / "0000" / f"{i % DISTINCT:07d}.jpg", path)


def memory_mb(process: psutil.Process) -> float:
    """Return the memory of a process, 0 where it has ended."""
    try:
        return float(process.memory_full_info().pss) / 1e6
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def measure(count: int, folder: Path, minutes: float) -> dict[str, float]:
    """Label so many pictures in a process of its own, and watch it."""
    write_pictures(folder / "pictures", count)
    words = ["label", str(folder / "pictures"), "--names", "cat, dog, bird", "--teacher", "label_memory:null_teacher"]
    start = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "stages.glip", *words, "--actors", "1", "--out", str(folder / "out"), "--reference"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)])},
    )
    root = psutil.Process(run.pid)
    seen: list[tuple[float, float, float, float]] = []
    while run.poll() is None:
        if time.monotonic() - start > 60 * minutes:
            below = root.children(recursive=True)
            for process in (root, *below):
                process.kill()
            raise SystemExit(f"{count} pictures take more than {minutes:g} minutes; nothing is told of them")
        below = root.children(recursive=True)
        labeller = sum(memory_mb(process) for process in below if "LabelActor" in _name(process))
        mine = memory_mb(root)
        seen.append((time.monotonic() - start, mine, labeller, mine + sum(map(memory_mb, below))))
        time.sleep(POLL_S)
    if run.returncode:
        raise SystemExit(f"glip label ended with {run.returncode}")
    seconds = time.monotonic() - start
    labelling = [row for row in seen if row[2]]
    metrics = json.loads((folder / "out/_label.json").read_text(encoding="utf-8"))["labels"]
    figures = {"pictures": metrics["rows"], "boxes": metrics["boxes"], "seconds": round(seconds, 1)}
    figures |= {"images_per_s": round(count / seconds, 1), "labelling_images_per_s": metrics["images_per_s"]}
    for place, name in ((1, "command"), (2, "labeller"), (3, "all")):
        figures[f"{name}_most_mb"] = round(max((row[place] for row in seen), default=0.0))
        half, last = (labelling[i] if labelling else (0.0,) * 4 for i in (len(labelling) // 2, -1))
        figures |= {f"{name}_half_mb": round(half[place]), f"{name}_end_mb": round(last[place])}
    return figures


def main() -> None:
    """Measure every number of pictures and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--minutes", type=float, default=30.0, help="for each number, at most (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    found = []
    for count in args.pictures:
        with tempfile.TemporaryDirectory(prefix="glip-label-memory-") as folder:
            found.append(measure(count, Path(folder), args.minutes))
        print("  ".join(f"{name} {value:,}" for name, value in found[-1].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
