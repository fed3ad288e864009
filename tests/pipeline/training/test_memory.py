"""Memory of activations: worked out without computing equals what a real forward pass keeps, and decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from glip_model.activations import activation_bytes
from glip_model.glip import GLIP
from glip_model.structures import GroundingBatch
from pipeline.training.memory import STATES, USED_SHARE, recompute_where_needed, step_bytes
from pipeline.training.settings import TrainConfig

PICTURES, SIZE, TOKENS = 2, (64, 96), 12


def kept_for_real(model: GLIP) -> int:
    """Return the bytes that a real forward pass keeps, storages counted once and parameters not at all."""
    sizes: dict[int, int] = {}
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    batch = GroundingBatch(
        pixel_values=torch.rand(PICTURES, 3, *SIZE),
        image_sizes=(SIZE,) * PICTURES,
        input_ids=torch.zeros(PICTURES, TOKENS, dtype=torch.int64),
        attention_mask=torch.ones(PICTURES, TOKENS, dtype=torch.bool),
        text_states=torch.rand(PICTURES, TOKENS, model.config.text.hidden_size) if model.config.text.frozen else None,
    )
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(batch)
    assert output.token_logits.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("frozen_text", [True, False])
@pytest.mark.parametrize("is_recomputed", [True, False])
def test_what_is_worked_out_is_what_is_kept(
    make_model: Callable[..., GLIP], frozen_text: bool, is_recomputed: bool
) -> None:
    model = make_model(frozen_text=frozen_text)
    if is_recomputed:
        model.recompute_activations()
    worked_out = activation_bytes(model, PICTURES, SIZE, TOKENS)
    assert worked_out == pytest.approx(kept_for_real(model), rel=0.02)
    assert activation_bytes(model, 2 * PICTURES, SIZE, TOKENS) == pytest.approx(2 * worked_out, rel=0.05)


def test_recomputing_keeps_less_and_finds_the_same(make_model: Callable[..., GLIP]) -> None:
    model = make_model()
    kept = activation_bytes(model, PICTURES, SIZE, TOKENS)
    model.recompute_activations()
    assert activation_bytes(model, PICTURES, SIZE, TOKENS) < kept
    assert model.config.activation_checkpointing


@pytest.mark.parametrize(
    ("setting", "spare", "expected"), [("memory", -1, True), ("memory", 9, False), ("model", -1, False)]
)
def test_memory_decides_where_the_settings_say_so(
    make_model: Callable[..., GLIP], train_config: TrainConfig, setting: Any, spare: int, expected: bool
) -> None:
    model, config = make_model(), replace(train_config, recompute_activations=setting)
    needed = step_bytes(model, config, 1)
    states = STATES * sum(4 * each.numel() for each in model.parameters() if each.requires_grad)
    recompute_where_needed(model, config, 1, states + round(needed / USED_SHARE) + spare)
    assert model.config.activation_checkpointing is expected
    assert step_bytes(make_model(), config, 2) < needed  # a worker has half of the batch
