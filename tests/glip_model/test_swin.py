"""GLIP's Swin against loops over windows and cells, and what training changes about it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glip_model.config import SwinConfig
from glip_model.swin import CROSS_REGION, PatchEmbed, PatchMerging, SwinBlock, SwinTransformer, WindowAttention

TINY = SwinConfig(embed_dim=4, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=3, drop_path=0.0)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter, norms and biases too, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)


def make_block(dim: int, heads: int, window: int, shift: int, drop_path: float = 0.0) -> SwinBlock:
    block = SwinBlock(dim, heads, window, shift, drop_path).double()
    randomise(block)
    return block.eval()


def make_swin(config: SwinConfig = TINY, activation_checkpointing: bool = False) -> SwinTransformer:
    swin = SwinTransformer(config, activation_checkpointing).double()
    randomise(swin)
    return swin.eval()


def attend_by_loops(attention: WindowAttention, cells: Tensor, window: int, shift: int) -> Tensor:
    """Attend within one map (H, W, C): pad, shift, then every cell looks at its window, one key after the other."""
    height, width, dim = cells.shape
    padded_height, padded_width = math.ceil(height / window) * window, math.ceil(width / window) * window
    padded = torch.zeros(padded_height, padded_width, dim, dtype=cells.dtype)
    padded[:height, :width] = cells
    heads, size = attention.num_heads, dim // attention.num_heads
    q, k, v = attention.qkv(padded).view(padded_height, padded_width, 3, heads, size).unbind(2)
    out = torch.zeros_like(padded)
    places = list(itertools.product(range(padded_height), range(padded_width)))  # of the shifted map
    for row, column in places:
        came_from = (row + shift) % padded_height, (column + shift) % padded_width
        has_wrapped = row + shift >= padded_height, column + shift >= padded_width
        logits, values = [], []
        for key_row, key_column in places:
            if (key_row // window, key_column // window) != (row // window, column // window):
                continue
            key_from = (key_row + shift) % padded_height, (key_column + shift) % padded_width
            entry = (row - key_row + window - 1) * (2 * window - 1) + column - key_column + window - 1
            logit = (q[came_from] * k[key_from]).sum(-1) / math.sqrt(size)
            logit = logit + attention.relative_position_bias_table[entry]
            if (key_row + shift >= padded_height, key_column + shift >= padded_width) != has_wrapped:
                logit = logit + CROSS_REGION
            logits.append(logit)
            values.append(v[key_from])
        weights = torch.stack(logits).softmax(0)  # (n, h)
        out[came_from] = attention.proj((weights.unsqueeze(-1) * torch.stack(values)).sum(0).flatten())
    return out[:height, :width]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(6, 6), (5, 7), (3, 3), (2, 1), (4, 8)], ids=str)
def test_a_block_is_what_loops_over_windows_and_cells_compute(size: tuple[int, int], shift: int) -> None:
    block = make_block(6, 2, 3, shift)
    x = torch.randn(2, *size, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        attended = torch.stack([attend_by_loops(block.attn, block.norm1(cells), 3, shift) for cells in x])
        between = x + attended
        expected = between + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(between))))
        torch.testing.assert_close(block(x), expected)


def who_sees_whom(block: SwinBlock, length: int) -> list[set[int]]:
    """Return for every row of a map one column wide which rows change it."""
    dim = block.attn.proj.out_features
    x = torch.randn(1, length, 1, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen = []
    for row in range(length):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(block(leaf)[0, row].sum(), leaf)
        seen.append({i for i in range(length) if gradient[0, i].abs().max() > 1e-12})
    return seen


def test_padding_is_added_before_the_shift() -> None:
    # Five rows and three of padding, moved up by two: the windows are rows 2 to 5, and 6, 7 beside 0, 1.
    # Moved before they are padded, rows 2, 3, 4 would stand with row 0.
    assert who_sees_whom(make_block(4, 1, 4, 2), 5) == [{0, 1}] * 2 + [{2, 3, 4}] * 3


def test_cells_that_the_shift_made_neighbours_do_not_see_each_other() -> None:
    assert who_sees_whom(make_block(4, 1, 4, 2), 8) == [{0, 1}] * 2 + [{2, 3, 4, 5}] * 4 + [{6, 7}] * 2


def test_a_map_of_one_window_is_shifted_all_the_same() -> None:
    assert who_sees_whom(make_block(4, 1, 4, 2), 4) == [{0, 1}] * 2 + [{2, 3}] * 2


def test_padding_is_seen_as_keys() -> None:
    block = make_block(4, 1, 4, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.norm1.weight.fill_(1.0)
        block.attn.qkv.weight[8:] = torch.eye(4)  # values are the cells, every key alike
        block.attn.qkv.bias[8:] = 3.0
        block.attn.proj.weight.copy_(torch.eye(4))
        x = torch.randn(1, 3, 2, 4, dtype=torch.float64)
        # Sixteen keys, ten of them padding, whose value is the bias.
        mean = block.norm1(x).sum((1, 2), keepdim=True) / 16 + 3.0
        torch.testing.assert_close(block(x), x + mean)


def test_merging_puts_the_corners_of_a_square_in_the_published_order() -> None:
    merging = PatchMerging(2).double()
    randomise(merging)
    x = torch.randn(1, 5, 3, 2, dtype=torch.float64)
    padded = torch.zeros(1, 6, 4, 2, dtype=torch.float64)
    padded[:, :5, :3] = x
    expected = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        for row, column in itertools.product(range(3), range(2)):
            corners = [
                padded[:, 2 * row + down, 2 * column + right] for down, right in ((0, 0), (1, 0), (0, 1), (1, 1))
            ]
            expected[:, row, column] = merging.reduction(merging.norm(torch.cat(corners, -1)))
        torch.testing.assert_close(merging(x), expected)


def test_pictures_of_any_size_are_padded_to_whole_patches() -> None:
    embed = PatchEmbed(3).double()
    randomise(embed)
    x = torch.randn(1, 3, 6, 9, dtype=torch.float64)
    padded = torch.zeros(1, 3, 8, 12, dtype=torch.float64)
    padded[:, :, :6, :9] = x
    with torch.no_grad():
        assert embed(x).shape == (1, 2, 3, 3)
        for row, column in itertools.product(range(2), range(3)):
            patch = padded[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            cell = (embed.proj.weight * patch).sum((1, 2, 3)) + embed.proj.bias
            torch.testing.assert_close(embed(x)[0, row, column], embed.norm(cell))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 100), st.integers(1, 100))
def test_maps_have_strides_8_16_and_32_at_any_size(height: int, width: int) -> None:
    swin = SwinTransformer(TINY).eval()
    with torch.no_grad():
        maps = swin(torch.zeros(1, 3, height, width))
    sides = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in (8, 16, 32)]
    assert [tuple(m.shape) for m in maps] == [(1, c, *s) for c, s in zip((8, 16, 32), sides, strict=True)]
    assert swin.channels == (8, 16, 32)


def test_maps_are_normed_and_merging_takes_them_before_their_norm() -> None:
    swin = make_swin()
    x = torch.randn(1, 3, 70, 90, dtype=torch.float64)
    with torch.no_grad():
        before = swin(x)
        swin.norm1.weight.copy_(torch.ones(8))
        swin.norm1.bias.zero_()
        after = swin(x)
    torch.testing.assert_close(after[0].mean(1), torch.zeros_like(after[0][:, 0]))
    torch.testing.assert_close(
        after[0].var(1, unbiased=False), torch.ones_like(after[0][:, 0]), rtol=0, atol=1e-3
    )  # the norm's epsilon
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(left, right) for left, right in zip(before[1:], after[1:], strict=True))


def test_a_picture_does_not_depend_on_those_beside_it() -> None:
    swin = make_swin()
    x = torch.randn(3, 3, 50, 70, dtype=torch.float64)
    with torch.no_grad():
        together = swin(x)
        for i in range(3):
            for whole, alone in zip(together, swin(x[i : i + 1]), strict=True):
                torch.testing.assert_close(whole[i : i + 1], alone)


def test_every_second_block_is_shifted_by_half_a_window() -> None:
    swin = make_swin(SwinConfig(embed_dim=4, depths=(3, 2), num_heads=(1, 1), window_size=4))
    plain = [{0, 1, 2, 3}] * 4 + [{4, 5, 6, 7}] * 4
    shifted = [{0, 1}] * 2 + [{2, 3, 4, 5}] * 4 + [{6, 7}] * 2
    first, second = ([who_sees_whom(block, 8) for block in stage.blocks] for stage in swin.layers)
    assert first == [plain, shifted, plain]
    assert second == [plain, shifted]


# Training


def test_stochastic_depth_drops_a_branch_for_a_whole_picture_or_scales_it_up() -> None:
    block = make_block(4, 1, 2, 0, drop_path=0.4)
    with torch.no_grad():
        block.mlp.fc2.weight.zero_()  # so that attention is the only branch
        block.mlp.fc2.bias.zero_()
        torch.manual_seed(0)
        x = torch.randn(1, 2, 3, 4, dtype=torch.float64).repeat(2000, 1, 1, 1)
        branch = block(x[:1]) - x[:1]
        dropped = block.train()(x) - x
    is_kept = dropped.flatten(1).abs().amax(1) > 0
    torch.testing.assert_close(dropped[is_kept], (branch / 0.6).expand_as(dropped[is_kept]))
    assert is_kept.double().mean().item() == pytest.approx(0.6, abs=0.05)


def test_stochastic_depth_is_off_outside_of_training() -> None:
    x = torch.randn(8, 2, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(make_block(4, 1, 2, 1, drop_path=0.9)(x), make_block(4, 1, 2, 1)(x))


def test_stochastic_depth_rises_evenly_over_all_blocks() -> None:
    swin = SwinTransformer(SwinConfig(embed_dim=4, depths=(2, 2, 1), num_heads=(1, 1, 1), drop_path=0.2))
    drops = [block.drop_path for stage in swin.layers for block in stage.blocks]
    assert drops == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_a_single_block_has_no_stochastic_depth() -> None:
    swin = SwinTransformer(SwinConfig(embed_dim=4, depths=(1,), num_heads=(1,), drop_path=0.2))
    assert swin.layers[0].blocks[0].drop_path == 0.0


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_recomputed_activations_give_equal_maps_and_gradients(drop_path: float) -> None:
    config = SwinConfig(embed_dim=4, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4), window_size=3, drop_path=drop_path)
    x = torch.randn(4, 3, 40, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    maps, gradients = [], []
    for activation_checkpointing in (False, True):
        swin = make_swin(config, activation_checkpointing).train()
        torch.manual_seed(5)  # for what is dropped
        found = swin(x)
        sum(m.pow(2).sum() for m in found).backward()
        maps.append([m.detach() for m in found])
        gradients.append({name: p.grad for name, p in swin.named_parameters()})
    torch.testing.assert_close(maps[0], maps[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_every_parameter_gets_a_gradient() -> None:
    swin = make_swin().train()
    sum(m.pow(2).sum() for m in swin(torch.randn(1, 3, 100, 130, dtype=torch.float64))).backward()
    assert [name for name, p in swin.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_size_that_inference_saw_first_can_be_trained_on() -> None:
    swin = SwinTransformer(TINY)
    x = torch.randn(1, 3, 37 * 4, 41 * 4)  # sizes that no other test has
    with torch.inference_mode():
        swin(x)
    sum(m.sum() for m in swin(x)).backward()
