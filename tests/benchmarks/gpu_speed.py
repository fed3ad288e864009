"""Training steps and labelling of GLIP-T at its published size on GPUs, beside the paper's speed and a matrix product.

Run: make bench-gpu, or: python tests/benchmarks/gpu_speed.py --out gpu_speed.json

Needs torch, torchvision, transformers and an NVIDIA GPU, nothing else of what the project needs; without a GPU it says
so and ends with 2. With several, DDP and FSDP over all of them are measured as well.

Every case has random weights and the same random batch: pictures of 800×1333 padded to 800×1344, 256 tokens,
ten boxes each. Warm-up steps are not timed. FLOP are those that torch's counter sees in the plain step, forward and
backward: matrix products, convolutions and attention; deformable convolutions are not among what it knows and are
added by hand, elementwise work is not counted. Recomputed work does not count as achieved. Labelling is what follows
decoding and resizing: upload, forward pass, read-off with NMS, boxes on the host; prompts have 64 tokens and 12
phrases, and their states are computed anew each time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig, glip_t
from glip_model.deformable import TAPS
from glip_model.dyhead import DeformableConv
from glip_model.glip import GLIP
from glip_model.postprocess import postprocess
from glip_model.precision import FLOAT32_MATMUL, Precision, autocast, dtype_of
from glip_model.structures import GroundingBatch, GroundingTarget
from glip_model.transfer import send
from pipeline.training.update import Updater

PUBLISHED_IMAGES_PER_S = 1.62
"""GLIP-T on one V100, two pictures a step (Table 7 of the paper)."""
HEIGHT, WIDTH, TOKENS, BOXES = 800, 1333, 256, 10
WARMUP_STEPS, DISTRIBUTED_STEPS = 3, 10
TRAINING_SHARE = 0.6
"""Of the time that is given; the rest is for labelling, several GPUs and compiled layers."""
LABEL_TOKENS, LABEL_PHRASES = 64, 12
LABEL_BATCHES = (1, 8, 32)
MATMUL_SIDE = 8192
OPTIM = {
    "learning_rate": 1e-5,
    "text_learning_rate": 1e-6,
    "backbone_learning_rate": 1e-5,
    "weight_decay": 1e-4,
    "warmup_steps": 0,
    "warmup_from": None,
    "decay_at": (0.67, 0.89),
    "schedule": "steps",
    "weight_decay_drops": 0.0,
    "max_grad_norm": 1.0,
    "ema_decay": 0.999,
    "bf16": True,
    "fp16": False,
    "accumulate": 1,
    "saved_weights": "average",
}
"""What ``Updater`` reads of ``OptimConfig``, whose own reader may be missing here."""


def optim(**changes: Any) -> Any:
    """Return settings of the optimiser."""
    return SimpleNamespace(**OPTIM | changes)


@dataclass(frozen=True)
class Case:
    """One way of training GLIP-T on one GPU."""

    batch: int
    precision: Literal["bf16", "fp16", "float32"] = "bf16"
    compiled: bool = False
    checkpointed: bool = False
    channels_last: bool = False

    @property
    def name(self) -> str:
        """What sets it apart."""
        parts = [self.precision, f"batch {self.batch}"]
        parts += ["compiled"] * self.compiled + ["checkpointed"] * self.checkpointed
        return ", ".join(parts + ["channels last"] * self.channels_last)


CASES = (
    Case(4),
    Case(4, checkpointed=True),
    Case(4, compiled=True),
    Case(2),
    Case(8),
    Case(8, compiled=True),
    Case(8, checkpointed=True),
    Case(16, checkpointed=True),
    Case(4, compiled=True, checkpointed=True),
    Case(4, channels_last=True),
    Case(4, precision="float32"),
    Case(4, precision="fp16"),
    Case(16),
    Case(32, checkpointed=True),
)
"""The most telling first: time is short where a GPU is lent."""


def make_batch(size: int, height: int, width: int, tokens: int, vocabulary: int) -> GroundingBatch:
    """Return random pictures with random prompts and boxes, padded as training pads them."""
    generator = torch.Generator().manual_seed(0)
    padded = tuple(-(-side // 32) * 32 for side in (height, width))
    scale = torch.tensor([width, height])
    targets = []
    for _ in range(size):
        corner = torch.rand(BOXES, 2, generator=generator) * 0.7
        boxes = torch.cat([corner, corner + 0.05 + 0.25 * torch.rand(BOXES, 2, generator=generator)], 1)
        positive = torch.zeros(BOXES, tokens, dtype=torch.bool)
        positive[torch.arange(BOXES), 1 + torch.arange(BOXES) % (tokens - 2)] = True
        targets.append(GroundingTarget(boxes * scale.repeat(2), positive))
    return GroundingBatch(
        pixel_values=torch.randn(size, 3, *padded, generator=generator),
        image_sizes=((height, width),) * size,
        input_ids=torch.randint(1, vocabulary, (size, tokens), generator=generator),
        attention_mask=torch.ones(size, tokens, dtype=torch.bool),
        targets=tuple(targets),
    )


def tiny_config() -> GLIPConfig:
    """Return a model with every kind of layer, small enough to compare devices in seconds; nothing is random in it."""
    return GLIPConfig(
        backbone=BackboneConfig(
            swin=SwinConfig(embed_dim=16, depths=(1, 2, 2, 1), num_heads=(1, 2, 2, 4), window_size=4, drop_path=0.0)
        ),
        text=TextConfig(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=32, vocab_size=1000, dropout=0.0),
        fusion=FusionConfig(
            num_layers=1,
            embed_dim=32,
            num_heads=2,
            dropout=0.0,
            text_num_heads=2,
            text_intermediate_size=32,
            text_dropout=0.0,
        ),
        channels=32,
        drop_block=0.0,
    )


def tiny_losses(
    device: str, steps: int = 3, distribution: Literal["ddp", "fsdp"] = "ddp", compiled: bool = False, **settings: Any
) -> list[float]:
    """Train the tiny model and return the sum of the losses of every step that was not skipped."""
    torch.manual_seed(0)
    model = GLIP(tiny_config()).to(device).train()
    updater = Updater(model, optim(**settings), 10**6, distribution, compiled)
    batch = make_batch(2, 128, 160, 16, 1000).to(device)
    found = (updater.step(batch, ["random"]) for _ in range(steps))
    return [losses["loss"] for losses in found if losses is not None]


def checks(device: str, compiled: bool) -> dict[str, Any]:
    """Compare the device with float32 on the CPU, and see that every way of training takes steps on it."""
    found: dict[str, Any] = {}

    def check(name: str, run: Callable[[], Any]) -> None:
        try:
            found[name] = run()
        except Exception as error:  # the others still count
            found[name] = f"failed: {type(error).__name__}: {str(error)[:500]}"
        print(f"  {name}: {found[name]}", flush=True)

    expected = tiny_losses("cpu", bf16=False)

    def deviation(**settings: Any) -> float:
        losses = tiny_losses(device, **settings)
        assert len(losses) == len(expected), f"{len(expected) - len(losses)} steps were skipped"
        return max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))

    torch.set_float32_matmul_precision("highest")
    if compiled:
        check("float32 compiled, relative", lambda: deviation(bf16=False, compiled=True))
    else:
        check("float32 against the CPU, relative", lambda: deviation(bf16=False))
    torch.set_float32_matmul_precision(FLOAT32_MATMUL)
    if compiled:
        with process_group(device):
            check("FSDP compiled bf16, relative", lambda: deviation(distribution="fsdp", compiled=True))
        return found
    check("float32 with TF32, relative", lambda: deviation(bf16=False))
    check("bf16, relative", deviation)
    check("fp16: losses of 8 steps without skipped ones", lambda: tiny_losses(device, 8, fp16=True, bf16=False))
    with process_group(device):
        check("FSDP float32, relative", lambda: deviation(distribution="fsdp", bf16=False))
        check("FSDP bf16, relative", lambda: deviation(distribution="fsdp"))
        check("FSDP fp16: losses of 8 steps", lambda: tiny_losses(device, 8, "fsdp", fp16=True, bf16=False))
    return found


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Run torch.distributed with this process alone."""
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def matmul_flops(device: str, side: int) -> float:
    """Return the FLOP/s of a plain bfloat16 matrix product of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    return 20 * 2 * side**3 / timed(lambda: a @ b, 20, device)


def timed(run: Callable[[], Any], repeats: int, device: str) -> float:
    """Return the seconds of all repeats together."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def flops_of(updater: Updater, batch: GroundingBatch) -> float:
    """Return the floating-point operations of forward, losses and backward of the plain step."""
    deformable = 0

    def count(module: DeformableConv, args: tuple[Any, ...], y: torch.Tensor) -> None:
        nonlocal deformable
        if args[1] is not None:
            # Forward, gradient of the input and gradient of the weights: three products of this size.
            deformable += 3 * 2 * y.numel() * module.weight.shape[1] * TAPS

    hooks = [m.register_forward_hook(count) for m in updater.model.modules() if isinstance(m, DeformableConv)]
    on_gpu = batch.pixel_values.is_cuda  # elsewhere the products are plain ones, which the counter sees
    with FlopCounterMode(display=False) as counter:
        updater.backward(batch)
    updater.optimizer.zero_grad()
    for hook in hooks:
        hook.remove()
    return float(counter.get_total_flops() + (deformable if on_gpu else 0))


def build(case: Case, config: GLIPConfig, device: str, distribution: Literal["ddp", "fsdp"] = "ddp") -> Updater:
    """Return a training of a model with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GLIP(replace(config, activation_checkpointing=case.checkpointed)).train()
    model.to(device)
    if case.channels_last:
        model.to(memory_format=torch.channels_last)
    settings = optim(bf16=case.precision == "bf16", fp16=case.precision == "fp16")
    return Updater(model, settings, 10**6, distribution, case.compiled)


def measure(
    case: Case,
    config: GLIPConfig,
    size: tuple[int, int],
    device: str,
    seconds: float,
    distribution: Literal["ddp", "fsdp"] = "ddp",
    steps: tuple[int, int] = (WARMUP_STEPS, DISTRIBUTED_STEPS),
) -> dict[str, float]:
    """Train for so many seconds behind the warm-up; the batch crosses to the device anew in every step.

    ``steps`` are those of the warm-up, and those that several processes take at least.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    updater = build(case, config, device, distribution)
    batch = make_batch(case.batch, *size, TOKENS, config.text.vocab_size)
    batch = batch.pin_memory() if device == "cuda" else batch
    times: list[float] = []

    def step() -> None:
        updater.step(batch.to(device, non_blocking=True), ["random"])

    began = time.perf_counter()
    for _ in range(steps[0]):
        step()
    synchronize(device)
    warmup = time.perf_counter() - began
    if dist.is_initialized():  # all processes must make as many steps
        times += [timed(step, 1, device) for _ in range(steps[1])]
    while sum(times) < seconds or len(times) < 3:
        times.append(timed(step, 1, device))
    median = statistics.median(times)
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {
        "images_per_s": case.batch / median,
        "step_seconds": median,
        "slowest_step_seconds": max(times),
        "steps": len(times),
        "skipped": updater.skipped,
        "warmup_seconds": warmup,
        "peak_gb": memory,
    }


@torch.inference_mode()
def label(
    size: int,
    precision: Precision,
    compiled: bool,
    config: GLIPConfig,
    picture: tuple[int, int],
    device: str,
    seconds: float,
) -> dict[str, float]:
    """Label random pictures for so many seconds behind the warm-up."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GLIP(config).eval()
    # Random weights find nothing: with this bias about as much passes the threshold as of a trained model.
    model.head.bias0.data.fill_(-3.0)
    model.to(memory_format=torch.channels_last)
    features, ground = model.features, model.ground
    if compiled:
        features, ground = torch.compile(features, dynamic=False), torch.compile(ground, dynamic=False)
    batch = make_batch(size, *picture, LABEL_TOKENS, config.text.vocab_size)
    maps = [torch.zeros(LABEL_PHRASES, LABEL_TOKENS, dtype=torch.bool) for _ in range(size)]
    for each in maps:
        each[torch.arange(LABEL_PHRASES), 1 + 4 * torch.arange(LABEL_PHRASES)] = True
    place, found = torch.device(device), 0

    def run() -> None:
        nonlocal found
        with autocast(dtype_of(precision, device), device):
            output = ground(
                features(send(batch.pixel_values, place)),
                send(batch.input_ids, place),
                send(batch.attention_mask, place),
            )
            answers = postprocess(output, batch.image_sizes, maps, batch.image_sizes, config)
        found = sum(map(len, answers))

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARMUP_STEPS):
        run()
    times = [timed(run, 1, device)]
    while sum(times) < seconds:
        times.append(timed(run, 1, device))
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {"images_per_s": size / statistics.median(times), "peak_gb": memory, "boxes_a_picture": found / size}


def work(rank: int, processes: int, device: str, train: Callable[[], dict[str, float]], store: str, out: str) -> None:
    """Train in one of several processes, each with a device; the first one writes down what came out."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.set_float32_matmul_precision(FLOAT32_MATMUL)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=processes)
    found = train()
    found["images_per_s"] *= processes
    if rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def spread(processes: int, device: str, train: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what so many processes reach together that each train so."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/found.json"
        mp.spawn(work, (processes, device, train, f"{folder}/store", out), nprocs=processes)
        found: dict[str, float] = json.loads(Path(out).read_text(encoding="utf-8"))
    return found


def profiled(config: GLIPConfig, size: tuple[int, int], device: str) -> list[dict[str, Any]]:
    """Return the operations of one bf16 step that take the most time of the device themselves."""
    updater = build(Case(4), config, device)
    batch = make_batch(4, *size, TOKENS, config.text.vocab_size).to(device)
    for _ in range(2):
        updater.step(batch, ["random"])
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        updater.step(batch, ["random"])
        synchronize(device)
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: getattr(row, own), reverse=True)
    total = sum(getattr(row, own) for row in rows if not (device == "cuda" and row.key.startswith("ProfilerStep")))
    return [
        {"name": row.key[:90], "ms": getattr(row, own) / 1e3, "share": getattr(row, own) / total, "calls": row.count}
        for row in rows[:30]
    ]


def run(args: argparse.Namespace) -> None:
    """Measure every case, writing down each at once."""
    device = args.device
    config, size = (tiny_config(), (128, 160)) if args.tiny else (glip_t(), (HEIGHT, WIDTH))
    cases = [Case(2), Case(2, checkpointed=True)] if args.tiny else list(CASES)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    began = time.monotonic()
    figures: dict[str, Any] = {"device": name, "torch": torch.__version__, "picture": size, "tokens": TOKENS}

    def keep(key: str, value: Any) -> None:
        figures[key] = value
        args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    print(f"{name}, torch {torch.__version__}", flush=True)
    torch.set_float32_matmul_precision(FLOAT32_MATMUL)
    keep("matmul_tflops", matmul_flops(device, 256 if args.tiny else MATMUL_SIDE) / 1e12)
    print(f"plain bf16 matrix product: {figures['matmul_tflops']:.1f} TFLOP/s", flush=True)
    updater = build(Case(1), config, device)
    flops = flops_of(updater, make_batch(1, *size, TOKENS, config.text.vocab_size).to(device))
    del updater
    keep("tflop_per_image", flops / 1e12)
    print(f"one picture forward and backward: {flops / 1e12:.3f} TFLOP", flush=True)
    keep("cases", [])
    for number, case in enumerate(cases):
        if time.monotonic() - began > TRAINING_SHARE * args.seconds:
            print(f"out of time: {len(cases) - number} cases are left out", flush=True)
            break
        if number == 1:  # behind the most important figure, before what may run out of memory
            keep("checks", checks(device, compiled=False))
            keep("profile", profiled(config, size, device))
            for row in figures["profile"][:15]:
                print(f"  {row['ms']:9.2f} ms {row['share']:6.1%} {row['calls']:5d} × {row['name']}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        entry: dict[str, Any] = {"name": case.name, **asdict(case)}
        try:
            entry |= measure(case, config, size, device, args.seconds_a_case)
            achieved = entry["images_per_s"] * flops / 1e12
            entry |= {
                "achieved_tflops": achieved,
                "share_of_matmul": achieved / figures["matmul_tflops"],
                "times_published": entry["images_per_s"] / PUBLISHED_IMAGES_PER_S,
            }
            line = (
                f"{entry['images_per_s']:7.2f} images/s {entry['peak_gb']:6.1f} GB {achieved:7.1f} TFLOP/s "
                f"{entry['share_of_matmul']:6.1%} of the product {entry['times_published']:6.1f} × published"
            )
        except torch.cuda.OutOfMemoryError:
            line = entry["failed"] = "out of memory"
        except Exception as error:  # the other cases still count
            line = entry["failed"] = f"{type(error).__name__}: {str(error)[:500]}"
        keep("cases", [*figures["cases"], entry])
        print(f"{case.name:36s} {line}", flush=True)
        torch.compiler.reset()
    keep("labelling", [])
    for number, (precision, compiled) in enumerate((("bf16", False), ("float32", False), ("bf16", True))):
        for pictures in (2,) if args.tiny else LABEL_BATCHES if number == 0 else LABEL_BATCHES[1:2]:
            if time.monotonic() - began > args.seconds or (args.tiny and compiled):
                continue
            entry = {"batch": pictures, "precision": precision, "compiled": compiled}
            try:
                entry |= label(pictures, precision, compiled, config, size, device, args.seconds_a_case)
                line = f"{entry['images_per_s']:7.2f} images/s {entry['peak_gb']:6.1f} GB"
            except Exception as error:  # out of memory, too: the other cases still count
                line = entry["failed"] = f"{type(error).__name__}: {str(error)[:500]}"
            keep("labelling", [*figures["labelling"], entry])
            print(f"labelling, {precision}, batch {pictures}{', compiled' * compiled:12s} {line}", flush=True)
    keep("distributed", [])
    processes = torch.cuda.device_count() if device == "cuda" else 2
    for how in ("ddp", "fsdp") if processes > 1 else ():
        entry = {"how": how, "processes": processes}
        try:
            steps = (1, 1) if args.tiny else (WARMUP_STEPS, DISTRIBUTED_STEPS)
            entry |= spread(processes, device, partial(measure, cases[0], config, size, device, 0.0, how, steps))
            line = f"{entry['images_per_s']:7.2f} images/s {entry['peak_gb']:6.1f} GB a GPU"
        except Exception as error:  # a process that failed raises one of many kinds
            line = entry["failed"] = f"{type(error).__name__}: {str(error)[:500]}"
        keep("distributed", [*figures["distributed"], entry])
        print(f"{how} over {processes}, {cases[0].name:28s} {line}", flush=True)
    if not args.tiny and time.monotonic() - began <= args.seconds:
        keep("compiled_checks", checks(device, compiled=True))
    keep("seconds", time.monotonic() - began)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the program out")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the program out")
    parser.add_argument("--out", type=Path, default=Path("gpu_speed.json"), help="file for the figures")
    parser.add_argument("--seconds-a-case", type=float, default=6.0, help="timed steps go on for so long")
    parser.add_argument("--seconds", type=float, default=420.0, help="no further case starts behind so many")
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: torch.cuda.is_available() is False; nothing is measured", file=sys.stderr)
        sys.exit(2)
    run(args)


if __name__ == "__main__":
    main()
