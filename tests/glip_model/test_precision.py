"""What ``auto`` comes to, and that it is what layers compute in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.precision import Precision, allow_tf32, best_device, dtype_of, has_bf16, resolve_precision
from glip_model.predictor import GLIPPredictor


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let torch say that there is a GPU which computes in bfloat16, or one which emulates it."""

    def pretend(computes_in_bf16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: computes_in_bf16 or including_emulation
        )

    return pretend


def test_auto_is_bf16_on_gpus_that_compute_in_it_and_nowhere_else(gpu: Callable[[bool], None]) -> None:
    assert dtype_of("auto", "cpu") == torch.float32
    for computes_in_bf16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        gpu(computes_in_bf16)
        assert best_device() == "cuda"
        assert dtype_of("auto", "cuda:0") == dtype_of("auto", torch.device("cuda")) == expected
        assert dtype_of("auto", "cpu") == torch.float32
        for device in ("cpu", "cuda"):
            assert dtype_of("float32", device) == torch.float32
            assert dtype_of("bf16", device) == torch.bfloat16


def test_another_precision_is_refused(tiny_glip: GLIPConfig, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="precision is 'fp16'; expected one of auto, float32, bf16"):
        GLIPPredictor(GLIP(tiny_glip), tokenizer, "cpu", "fp16")  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [True, False])
def test_auto_is_settled_by_all_machines_and_what_was_chosen_asks_nobody(answer: bool) -> None:
    asked: list[Any] = []

    def everywhere(function: Callable[[], bool]) -> bool:
        asked.append(function)
        return answer

    assert resolve_precision("float32", everywhere) == "float32"
    assert resolve_precision("bf16", everywhere) == "bf16"
    assert asked == []
    assert resolve_precision("auto", everywhere) == ("bf16" if answer else "float32")
    assert asked == [has_bf16]


def test_float32_products_are_left_alone_without_a_gpu(gpu: Callable[[bool], None]) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        if best_device() == "cpu":
            allow_tf32()
            assert torch.get_float32_matmul_precision() == "highest"
        gpu(True)
        allow_tf32()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("precision", "expected"), [("float32", torch.float32), ("auto", torch.float32), ("bf16", torch.bfloat16)]
)
def test_layers_compute_in_it_and_what_is_found_has_all_digits(
    precision: Precision, expected: torch.dtype, tiny_glip: GLIPConfig, tokenizer: Any
) -> None:
    torch.manual_seed(0)
    predictor = GLIPPredictor(GLIP(replace(tiny_glip, score_threshold=0.0)), tokenizer, "cpu", precision)
    made: dict[str, torch.dtype] = {}
    layers = {
        "pyramid": predictor.model.fpn,
        "tokens": predictor.model.head.text_projection,
        "boxes": predictor.model.head.bbox_pred,
    }
    for name, layer in layers.items():

        def note(module: Any, inputs: Any, output: Tensor | list[Tensor], name: str = name) -> None:
            made[name] = output[0].dtype

        layer.register_forward_hook(note)
    (found,) = predictor.predict(Image.new("RGB", (64, 64), "red"), ["a dog", "a cat"])
    assert made == dict.fromkeys(layers, expected)
    assert len(found) > 0
    assert found.scores.dtype == found.boxes_xyxy.dtype == torch.float32
    assert {weight.dtype for weight in predictor.model.parameters()} == {torch.float32}
