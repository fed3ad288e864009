"""Training batches from streamed shards and loader processes, against all rows in memory and one thread.

Run: make bench, or: python tests/benchmarks/loader_speed.py --json out.json

    memory    all rows in memory, batches made in one thread: the baseline of every ratio
    stream    the same rows streamed through a window, in one thread
    stream N  the same, in N loader processes
    memory N  all rows in memory, in N loader processes that each have a copy
    growth    peak memory over both with a quarter of the rows

Rows are captions with three boxes and JPEG pictures of 480 x 640 in the shards. Speed counts from the second batch on;
peak memory is that of the process and N times that of its largest loader process. Every figure is taken in a process of
its own; the best of several counts.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glip_model.text_encoder import load_tokenizer
from pipeline.settings import load_all
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import shard_name, write_shard
from pipeline.training.batches import BatchMaker, Worker
from pipeline.training.rows import make_sources
from pipeline.training.settings import RunConfig

ROOT = Path(__file__).resolve().parents[2]
ROWS_A_SHARD = 500
WINDOW, LANES = 1024, 2
NOUNS = ("dog", "lawn", "ball", "tree", "house", "car", "child", "bench")


def write_records(folder: Path, rows: int) -> None:
    """Write rows in shards, each with a picture of its own."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, ROWS_A_SHARD):
        records = (record(i, rng) for i in range(start, min(start + ROWS_A_SHARD, rows)))
        write_shard(folder / "grounding" / shard_name(start // ROWS_A_SHARD), records, GroundingRecord)


def record(number: int, rng: np.random.Generator) -> GroundingRecord:
    """Return a row with a picture of coarse noise, which is as large as a photograph's JPEG."""
    coarse = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    nouns = [NOUNS[int(i)] for i in rng.permutation(len(NOUNS))[:3]]
    caption = f"a {nouns[0]} and a {nouns[1]} near a {nouns[2]}, picture {number}"
    phrases = []
    for noun in nouns:
        start = caption.index(f"a {noun}")
        x, y = rng.uniform(0, 300, 2).tolist()
        box = ScoredBox(xyxy=(x, y, x + 150, y + 150))
        phrases.append(Phrase(text=f"a {noun}", char_spans=((start, start + len(noun) + 2),), boxes=(box,)))
    return GroundingRecord(
        key=f"{number:08d}",
        image=ImageRef(bytes=stream.getvalue()),
        height=480,
        width=640,
        caption=caption,
        source="bench",
        phrases=tuple(phrases),
    )


def measure(folder: Path, is_streamed: bool, processes: int, batch_size: int, steps: int) -> dict[str, float]:
    """Make batches as a training worker gets them; return pictures per second and the peak of memory in MB."""
    torch.set_num_threads(1)
    config = load_all(ROOT / "params.yaml")
    window = {"shuffle_window": WINDOW, "shuffle_lanes": LANES} if is_streamed else {}
    samples = replace(config.train.samples, short_sides=(480,), long_side=800, group_by_orientation=False, **window)
    optim = replace(config.train.optim, batch_size=batch_size)
    train = replace(config.train, samples=samples, optim=optim, loader_processes=processes)
    run = RunConfig(init="pretrained", steps=steps + 1, mixture={"grounding": 1.0})
    model = config.model.glip_config()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer cores than processes, for one
        tokenizer = load_tokenizer(model.text.name, 30522)
        begin = time.perf_counter()
        sources = make_sources(folder, None, run.mixture, samples, tokenizer)
        batches = BatchMaker(sources, train, run, model, tokenizer, 0, Worker()).ahead(0)
        next(batches)
        start = time.perf_counter()
        shown = sum(len(batch.keys) for batch in batches)
        end = time.perf_counter()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loader = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if processes else 0
    return {
        "rows_per_s": shown / (end - start),
        "first_batch_s": start - begin,
        "peak_mb": (own + processes * loader) / 1e3,
    }


def in_own_process(
    folder: Path, is_streamed: bool, processes: int, args: argparse.Namespace, repeats: int
) -> dict[str, float]:
    """Measure in fresh processes; return the best of each figure."""
    command = [sys.executable, __file__, "--only", str(folder), "--processes", str(processes)]
    command += ["--batch-size", str(args.batch_size), "--steps", str(args.steps), *["--streamed"] * is_streamed]
    found = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "rows_per_s": max(figures["rows_per_s"] for figures in found),
        "first_batch_s": min(figures["first_batch_s"] for figures in found),
        "peak_mb": min(figures["peak_mb"] for figures in found),
    }


def benchmarks(folder: Path, args: argparse.Namespace) -> Iterator[tuple[str, dict[str, float], str]]:
    """Yield a name, its figures, and what they are compared with."""
    whole, quarter = folder / "whole", folder / "quarter"
    write_records(whole, args.rows)
    write_records(quarter, args.rows // 4)
    base: dict[str, float] = {}
    for is_streamed, processes in ((False, 0), (True, 0), (False, 2), (True, 1), (True, 2)):
        figures = in_own_process(whole, is_streamed, processes, args, args.repeats)
        base = base or figures
        name = ("stream" if is_streamed else "memory") + (f" {processes}" if processes else "")
        ratios = [figures[key] / base[key] for key in ("rows_per_s", "peak_mb")]
        yield name, figures, f"{ratios[0]:.2f} × the speed and {ratios[1]:.2f} × the memory of memory"
        if processes == 0:
            small = in_own_process(quarter, is_streamed, processes, args, 1)
            ratio = figures["peak_mb"] / small["peak_mb"]
            yield f"{name}, quarter", small, f"growth: all rows take {ratio:.2f} × the memory of a quarter of them"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--streamed", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.streamed, args.processes, args.batch_size, args.steps)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, figures, remark in benchmarks(Path(folder), args):
            speed, first, peak = (figures[key] for key in ("rows_per_s", "first_batch_s", "peak_mb"))
            print(f"{name:16s} {speed:8,.1f} rows/s, first batch {first:5.1f} s {peak:6.0f} MB   {remark}", flush=True)
            results[name] = figures
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
