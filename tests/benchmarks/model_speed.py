"""GLIP-T against a plain path of itself and against Grounding DINO, each in a process of its own.

Run: make bench, or: python tests/benchmarks/model_speed.py --sizes 480x640 800x1333 --repeats 3 --json out.json

Every model has random weights, sees the same picture and a prompt of as many tokens. Forward passes alone are timed;
the best of several counts, because other work on the machine only ever adds. Peak memory is that of the whole process
(on a GPU: of the tensors). Ratios are over Grounding DINO in its tiny configuration, the model that one would take
instead.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from plain_model import plain_paths

from glip_model.config import GLIPConfig, glip_t
from glip_model.glip import GLIP
from glip_model.losses import GroundingCriterion
from glip_model.structures import GroundingBatch, GroundingTarget

BASELINE = "grounding_dino"
FORWARD = {
    "plain": "GLIP-T, plain float32: whole 256 tokens, every cell projected to heads, torchvision's deformable kernel",
    "float32": "GLIP-T, this project",
    "bfloat16": "GLIP-T, this project under bfloat16 autocast",
    "compiled": "GLIP-T, this project, torch.compile",
    "grounding_dino": "Grounding DINO tiny of transformers, float32",
    "grounding_dino_bfloat16": "Grounding DINO tiny of transformers under bfloat16 autocast",
}
TRAINING = {
    "step": "GLIP-T training step (forward, losses, backward), float32",
    "step_checkpointed": "the same with activation checkpointing",
}


def make_batch(height: int, width: int, tokens: int, device: str, targets: bool = False) -> GroundingBatch:
    """Return one random picture, padded as the predictor pads it, and one prompt."""
    generator = torch.Generator().manual_seed(0)
    padded = tuple(-(-side // 32) * 32 for side in (height, width))
    positive = torch.zeros(2, tokens, dtype=torch.bool)
    positive[0, 1:3] = positive[1, 4] = True
    boxes = torch.tensor([[50.0, 60.0, 250.0, 300.0], [200.0, 100.0, 420.0, 330.0]])
    return GroundingBatch(
        pixel_values=torch.randn(1, 3, *padded, generator=generator),
        image_sizes=((height, width),),
        input_ids=torch.randint(1000, 20000, (1, tokens), generator=generator),
        attention_mask=torch.ones(1, tokens, dtype=torch.bool),
        targets=(GroundingTarget(boxes, positive),) if targets else None,
    ).to(device)


def glip_forward(variant: str, height: int, width: int, tokens: int, device: str) -> Callable[[], Any]:
    """Return a call that runs one picture through GLIP-T."""
    model = GLIP(glip_t()).to(device).eval()
    batch = make_batch(height, width, tokens, device)
    if variant == "plain":
        padding = 256 - tokens
        batch = replace(
            batch,
            input_ids=torch.nn.functional.pad(batch.input_ids, (0, padding)),
            attention_mask=torch.nn.functional.pad(batch.attention_mask, (0, padding)),
        )
    else:
        model = model.to(memory_format=torch.channels_last)
    forward = torch.compile(model, dynamic=False) if variant == "compiled" else model
    precision = torch.autocast(device, torch.bfloat16) if variant == "bfloat16" else nullcontext()

    def run() -> Any:
        with torch.inference_mode(), precision, plain_paths() if variant == "plain" else nullcontext():
            return forward(batch)

    return run


def grounding_dino_forward(variant: str, height: int, width: int, tokens: int, device: str) -> Callable[[], Any]:
    """Return a call that runs the same picture through Grounding DINO."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    model = GroundingDinoForObjectDetection(GroundingDinoConfig()).to(device).eval()
    batch = make_batch(height, width, tokens, device)
    precision = torch.autocast(device, torch.bfloat16) if variant.endswith("bfloat16") else nullcontext()

    def run() -> Any:
        with torch.inference_mode(), precision:
            return model(pixel_values=batch.pixel_values, input_ids=batch.input_ids)

    return run


def training_step(variant: str, height: int, width: int, tokens: int, device: str) -> Callable[[], Any]:
    """Return a call that computes the gradients of one picture."""
    config: GLIPConfig = replace(glip_t(), activation_checkpointing=variant == "step_checkpointed")
    model = GLIP(config).to(device).to(memory_format=torch.channels_last).train()
    batch = make_batch(height, width, tokens, device, targets=True)
    criterion = GroundingCriterion(config)

    def run() -> None:
        model.zero_grad()
        torch.stack(list(criterion(model(batch), batch).values())).sum().backward()

    return run


def measure(variant: str, height: int, width: int, tokens: int, repeats: int, device: str) -> dict[str, float]:
    """Time one variant in this process; return the best seconds and the peak of memory in MB."""
    maker = training_step if variant in TRAINING else glip_forward if variant in FORWARD else None
    if variant.startswith(BASELINE):
        maker = grounding_dino_forward
    assert maker is not None
    torch.manual_seed(0)
    run = maker(variant, height, width, tokens, device)
    run()  # allocations and, where there is one, compilation
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e6
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": min(seconds), "peak_mb": peak}


def in_own_process(variant: str, size: str, args: argparse.Namespace) -> dict[str, float] | None:
    """Run ``measure`` in a fresh process; None when it failed."""
    command = [sys.executable, __file__, "--only", variant, "--sizes", size, "--tokens", str(args.tokens)]
    command += ["--repeats", str(args.repeats), "--device", args.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  {variant:26s} failed: {done.stderr.strip().splitlines()[-1][:150] if done.stderr else '?'}")
        return None
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure every variant at every size and print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["480x640", "800x1333"], help="height x width")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of the prompt; 32 are about ten names")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--variants", nargs="+", choices=[*FORWARD, *TRAINING], default=[*FORWARD, *TRAINING])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        height, width = map(int, args.sizes[0].split("x"))
        print(json.dumps(measure(args.only, height, width, args.tokens, args.repeats, args.device)))
        return
    figures: dict[str, Any] = {}
    for size in args.sizes:
        print(
            f"{size}, {args.tokens} tokens, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        rows = {variant: in_own_process(variant, size, args) for variant in args.variants}
        figures[size] = rows
        base = rows.get(BASELINE)
        for variant, row in rows.items():
            if row is None:
                continue
            ratio = f"{base['seconds'] / row['seconds']:6.2f} ×" if base and variant in FORWARD else ""
            print(f"  {variant:26s} {1 / row['seconds']:7.3f} images/s {row['peak_mb']:8.0f} MB  {ratio}")
    for name, meaning in {**FORWARD, **TRAINING}.items():
        print(f"{name}: {meaning}")
    print(f"×: speed over {BASELINE}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
