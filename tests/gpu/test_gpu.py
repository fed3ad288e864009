"""On a real GPU: what tests/pipeline/training/test_pretended_gpu.py pretends, and numbers beside the CPU's.

Run where torch, torchvision, transformers and pytest alone are installed: pytest --noconftest -m gpu tests/gpu
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glip_model.deformable import deformable_conv2d
from glip_model.glip import GLIP
from glip_model.postprocess import KEPT, OPEN, postprocess, suppress, suppress_together
from glip_model.structures import Detections, GroundingBatch
from pipeline.training.update import Updater

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks/gpu_speed.py"


@pytest.fixture(scope="module")
def speed() -> Any:
    """Give the benchmark's module, which has a tiny model, batches and settings that need no reader."""
    spec = importlib.util.spec_from_file_location("gpu_speed", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Compute float32 products in float32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = before


@contextmanager
def waits_are_errors() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def count_waits(run: Any) -> int:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing CUDA operation") as found:
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in found)


def make(speed: Any, device: str, **settings: Any) -> tuple[Updater, GroundingBatch]:
    torch.manual_seed(0)
    model = GLIP(speed.tiny_config()).train()
    return Updater(model.to(device), speed.optim(**settings), 10**6), speed.make_batch(2, 128, 160, 16, 1000).to(device)


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-3), (True, 0.1)])
def test_losses_and_gradients_are_those_of_the_cpu(speed: Any, bf16: bool, tolerance: float) -> None:
    found = []
    for device, half in (("cpu", False), ("cuda", bf16)):
        updater, batch = make(speed, device, bf16=half)
        losses = updater.backward(batch)
        gradient = torch.cat([p.grad.flatten().cpu() for p in updater.model.parameters() if p.grad is not None])
        found.append((torch.stack(list(losses.values())).cpu(), gradient))
    (expected, cpu), (losses, gpu) = found
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0.0)
    assert (gpu - cpu).norm() < max(tolerance, 0.01) * cpu.norm()


def test_forward_and_losses_never_wait_and_a_step_waits_once(speed: Any) -> None:
    updater, batch = make(speed, "cuda")
    updater.step(batch, ["random"])
    with waits_are_errors():
        updater.backward(batch)
    assert count_waits(lambda: updater.step(batch, ["random"])) == 1


def test_compiled_steps_learn_as_plain_ones(speed: Any) -> None:
    plain = speed.tiny_losses("cuda", bf16=False)
    assert speed.tiny_losses("cuda", bf16=False, compiled=True) == pytest.approx(plain, rel=1e-3)


def test_deformable_kernel_equals_gather_and_product() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 8, 12, 10), (2, 18, 6, 5), (2, 9, 6, 5), (6, 8, 3, 3), (6,)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    results = []
    for device in ("cpu", "cuda"):
        x, *others = leaves = [each.detach().to(device).requires_grad_() for each in inputs]
        y = deformable_conv2d(x, *others, stride=2)
        y.square().sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves)])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-3, atol=1e-3)


def test_suppression_is_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 700, 2, generator=generator, dtype=torch.float64) * 200
    boxes = torch.cat((corners, corners + 10 + 60 * torch.rand(3, 700, 2, generator=generator)), -1)
    phrases = torch.randint(4, (3, 700), generator=generator)
    scores = torch.linspace(1, 0.1, 700)
    found = suppress_together(boxes.cuda(), phrases.cuda(), 0.5).cpu()
    for i in range(3):
        assert not (found[i] == OPEN).any()
        assert torch.equal(found[i], suppress(boxes[i], scores, phrases[i], 0.5))
        assert 0 < (found[i] == KEPT).sum() < 700


def test_detections_are_those_of_the_cpu_and_take_two_waits(speed: Any) -> None:
    config = replace(speed.tiny_config(), score_threshold=0.01)
    torch.manual_seed(0)
    model = GLIP(config).eval()
    batch = speed.make_batch(3, 128, 160, 16, 1000)
    maps = [torch.eye(16, dtype=torch.bool)[1:5] for _ in range(3)]

    def predict(device: str, pixels: Tensor) -> list[Detections]:
        with torch.inference_mode():
            output = model.to(device)(replace(batch.to(device), pixel_values=pixels.to(device)))
            return postprocess(output, batch.image_sizes, maps, batch.image_sizes, config)

    expected, found = (predict(device, batch.pixel_values) for device in ("cpu", "cuda"))
    for one, other in zip(expected, found, strict=True):
        assert len(one) > 0
        torch.testing.assert_close(other.scores, one.scores, rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        output = model(batch.to("cuda"))
    assert count_waits(lambda: postprocess(output, batch.image_sizes, maps, batch.image_sizes, config)) == 2
