"""Deep fusion: the folded attention against the plain one, its mask, and the tower's text layer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_model.config import FusionConfig
from glip_model.fusion import BiDirectionalAttention, TowerTextLayer, VLFuse

PLAIN = Path(__file__).resolve().parents[1] / "benchmarks" / "plain_model.py"


def plain_attention() -> Any:
    spec = importlib.util.spec_from_file_location("plain_model", PLAIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.attend_both_ways


def make_attention(channels: int, text_size: int, heads: int, dropout: float = 0.0) -> BiDirectionalAttention:
    torch.manual_seed(channels + heads)
    config = FusionConfig(embed_dim=heads * 6, num_heads=heads, dropout=dropout)
    attention = BiDirectionalAttention(channels, text_size, config).double()
    for parameter in attention.parameters():  # biases too, which start at zero
        torch.nn.init.normal_(parameter)
    return attention


def make_inputs(cells: int, tokens: int, real: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = torch.arange(tokens) < torch.tensor([[tokens], [real]])
    return torch.randn(2, cells, 10).double(), torch.randn(2, tokens, 7).double(), mask


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.data())
def test_folding_changes_nothing(heads: int, cells: int, tokens: int, data: st.DataObject) -> None:
    attention = make_attention(10, 7, heads)
    visual, text, mask = make_inputs(cells, tokens, data.draw(st.integers(1, tokens)))
    for ours, theirs in zip(
        attention(visual, text, mask), plain_attention()(attention, visual, text, mask), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_folding_changes_nothing_where_dropout_leaves_rows_that_do_not_sum_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(F, "dropout", lambda x, *_: x * 0.3)
    attention = make_attention(10, 7, 2)
    inputs = make_inputs(8, 5, 3)
    for ours, theirs in zip(attention(*inputs), plain_attention()(attention, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_the_plain_attention() -> None:
    attention = make_attention(10, 7, 2)
    inputs = make_inputs(8, 5, 3)
    gradients = []
    for forward in (BiDirectionalAttention.forward, plain_attention()):
        to_visual, to_text = forward(attention, *inputs)
        loss = (to_visual**2).sum() + (to_text**3).sum()
        gradients.append(torch.autograd.grad(loss, list(attention.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_drops_in_training_alone() -> None:
    attention = make_attention(10, 7, 2, dropout=0.5)
    inputs = make_inputs(8, 5, 5)
    assert not torch.equal(attention(*inputs)[0], attention(*inputs)[0])
    attention.eval()
    assert torch.equal(attention(*inputs)[0], attention(*inputs)[0])


def test_padded_tokens_reach_no_cell_and_padded_cells_reach_every_token() -> None:
    attention = make_attention(10, 7, 2)
    visual, text, mask = make_inputs(8, 5, 3)
    changed_text = torch.where(mask.unsqueeze(-1), text, 1e3)
    torch.testing.assert_close(attention(visual, text, mask)[0], attention(visual, changed_text, mask)[0])
    changed_cell = visual.clone()
    changed_cell[:, -1] += 5
    assert not torch.allclose(attention(visual, text, mask)[1], attention(changed_cell, text, mask)[1])


def test_the_residual_starts_from_the_normed_tensor() -> None:
    fuse = VLFuse(10, 7, FusionConfig(embed_dim=12, num_heads=2, num_layers=4)).eval()
    assert fuse.gamma_v.unique().tolist() == [0.25]
    with torch.no_grad():
        fuse.gamma_v.zero_()
        fuse.gamma_l.zero_()
    levels, text = [torch.randn(2, 10, 3, 4), torch.randn(2, 10, 2, 2)], torch.randn(2, 5, 7)
    new_levels, new_text = fuse(levels, text, torch.ones(2, 5, dtype=torch.bool))
    for level, new in zip(levels, new_levels, strict=True):
        expected = F.layer_norm(level.permute(0, 2, 3, 1), (10,)).permute(0, 3, 1, 2)
        torch.testing.assert_close(new, expected)
    torch.testing.assert_close(new_text, F.layer_norm(text, (7,)))


def test_text_layer_is_one_bert_layer_and_ignores_padding() -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    torch.manual_seed(0)
    config = FusionConfig(text_num_heads=2, text_intermediate_size=20, text_dropout=0.1)
    layer = TowerTextLayer(8, config).eval()
    reference = BertLayer(
        BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=20, _attn_implementation="eager")
    ).eval()
    pairs = {
        "query": reference.attention.self.query,
        "key": reference.attention.self.key,
        "value": reference.attention.self.value,
        "attention_output": reference.attention.output.dense,
        "attention_norm": reference.attention.output.LayerNorm,
        "intermediate": reference.intermediate.dense,
        "output": reference.output.dense,
        "output_norm": reference.output.LayerNorm,
    }
    for name, module in pairs.items():
        layer.get_submodule(name).load_state_dict(module.state_dict())
    text, mask = torch.randn(2, 6, 8), torch.arange(6) < torch.tensor([[6], [4]])
    added = torch.zeros(2, 1, 1, 6).masked_fill(~mask[:, None, None], -torch.inf)
    expected = reference(text, attention_mask=added)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(layer(text, mask)[mask], expected[mask])
