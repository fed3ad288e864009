"""Requests a second and their times through ``glip serve``, against the bare loop of the predictor.

Run: make bench, or: python tests/benchmarks/serve_speed.py --model models/round_2 --requests 200 --clients 8

The baseline opens and looks at the same pictures one after the other, in one process with as many threads as a copy of
the served model has. Then the same pictures go over loopback from several clients at a time, through Ray Serve. What is
wanted is at least 0.9 of the bare loop's pictures a second. In the end copies of the model are killed under load: every
request must get an answer, be it that there is no copy.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from glip_model.images import MAX_PIXELS, decode_image
from glip_model.predictor import GLIPPredictor
from pipeline.serving.answering import ModelPlace
from pipeline.serving.job import Scale, copies_of, serving
from pipeline.serving.limits import Limits
from pipeline.store.records import DetectionRecord
from pipeline.store.shards import list_shards, read_shard
from pipeline.store.storage import to_place

PORT = 8765


def bare(model: str, pictures: list[bytes], names: list[str], threads: int) -> float:
    """Return the seconds of the predictor's loop."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    predictor = GLIPPredictor.from_pretrained(model, "cpu")
    predictor.predict(decode_image(pictures[0], MAX_PIXELS), names)
    start = time.perf_counter()
    for data in pictures:
        predictor.predict(decode_image(data, MAX_PIXELS), names)
    taken = time.perf_counter() - start
    torch.set_num_threads(before)
    return taken


def load(url: str, pictures: list[bytes], names: list[str], clients: int) -> tuple[float, list[float], list[int]]:
    """Return the seconds of all requests, of each, and their statuses."""
    form = {"names": ", ".join(names), "min_score": "0.05"}
    with httpx.Client(base_url=url, timeout=300, limits=httpx.Limits(max_connections=clients)) as client:

        def ask(data: bytes) -> tuple[float, int]:
            start = time.perf_counter()
            answer = client.post("/predict", data=form, files={"image": data})
            return time.perf_counter() - start, answer.status_code

        ask(pictures[0])
        with ThreadPoolExecutor(clients) as pool:
            start = time.perf_counter()
            answers = list(pool.map(ask, pictures))
            taken = time.perf_counter() - start
    return taken, [seconds for seconds, _ in answers], [status for _, status in answers]


def main() -> None:
    """Measure both ways, then kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/round_2")
    parser.add_argument("--pictures", default="data/records/test/detection", help="shards of detection records")
    parser.add_argument("--names", default="a frog, a fire truck, a potato, a ferry, a cat")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each copy, and of the bare loop")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    names = [name.strip() for name in args.names.split(",")]
    shard = list_shards(to_place(args.pictures))[0]
    found = [record.image.bytes for record in read_shard(shard, DetectionRecord) if record.image.bytes]
    pictures = [found[i % len(found)] for i in range(args.requests)]
    alone = bare(args.model, pictures, names, args.threads)
    scale = Scale(replicas=args.replicas, cpus=0, batch=8)
    models = {"model": ModelPlace(args.model, "cpu", threads=args.threads)}
    with serving(models, scale, Limits(), "127.0.0.1", PORT) as url:
        taken, each, statuses = load(url, pictures, names, args.clients)
        assert set(statuses) == {200}, statuses
        with ThreadPoolExecutor(1) as pool:
            under_load = pool.submit(load, url, pictures, names, args.clients)
            time.sleep(taken / 4)
            killed = 0
            for kill in copies_of("model"):
                kill()
                killed += 1
            _, _, after = under_load.result()
    p50, p99 = np.percentile(each, [50, 99]).tolist()
    figures: dict[str, Any] = {
        "bare_per_s": len(pictures) / alone,
        "served_per_s": len(pictures) / taken,
        "ratio": alone / taken,
        "p50_s": p50,
        "p99_s": p99,
        "killed": killed,
        "answers": {str(status): after.count(status) for status in sorted(set(after))},
    }
    print(f"{len(pictures)} requests, {args.clients} clients, {args.replicas} copies of {args.threads} threads")
    print(f"  bare loop {figures['bare_per_s']:8.2f} pictures/s")
    print(f"  served    {figures['served_per_s']:8.2f} pictures/s  {figures['ratio']:5.2f} x   goal: 0.9")
    print(f"  a request takes {p50:.3f} s, one of a hundred {p99:.3f} s or more")
    print(
        f"  {killed} copies killed under load: {len(after)} of {len(pictures)} requests answered, {figures['answers']}"
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
