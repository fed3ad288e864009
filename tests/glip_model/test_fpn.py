"""The feature pyramid, written out level by level, and what DropBlock does to it in training."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glip_model.fpn import FPN

WIDTHS = (5, 6, 7)


def make_fpn(channels: int = 4, num_levels: int = 5, drop_block: float = 0.0) -> FPN:
    torch.manual_seed(0)
    fpn = FPN(WIDTHS, channels, num_levels, drop_block).double()
    with torch.no_grad():
        for name, parameter in fpn.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return fpn.eval()


def make_maps(height: int, width: int, batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    sides = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in (8, 16, 32)]
    return [torch.randn(batch, c, *s, dtype=torch.float64) for c, s in zip(WIDTHS, sides, strict=True)]


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge cell by cell."""
    height, width = x.shape[-2:]
    out = torch.empty(*x.shape[:2], *size, dtype=x.dtype)
    for row in range(size[0]):
        for column in range(size[1]):
            out[:, :, row, column] = x[:, :, row * height // size[0], column * width // size[1]]
    return out


def by_hand(fpn: FPN, maps: list[Tensor]) -> list[Tensor]:
    """Compute five levels one line each."""
    c3, c4, c5 = maps
    inner, layer, top = fpn.inner, fpn.layer, fpn.top
    merged5 = F.conv2d(c5, inner[2].weight, inner[2].bias)
    merged4 = F.conv2d(c4, inner[1].weight, inner[1].bias) + nearest(merged5, c4.shape[-2:])
    merged3 = F.conv2d(c3, inner[0].weight, inner[0].bias) + nearest(merged4, c3.shape[-2:])
    p3 = F.conv2d(merged3, layer[0].weight, layer[0].bias, padding=1)
    p4 = F.conv2d(merged4, layer[1].weight, layer[1].bias, padding=1)
    p5 = F.conv2d(merged5, layer[2].weight, layer[2].bias, padding=1)
    p6 = F.conv2d(p5, top[0].weight, top[0].bias, stride=2, padding=1)
    p7 = F.conv2d(p6.clamp(min=0), top[1].weight, top[1].bias, stride=2, padding=1)
    return [p3, p4, p5, p6, p7]


@pytest.mark.parametrize("size", [(64, 96), (72, 100), (8, 8), (200, 40)], ids=str)
def test_levels_are_those_written_out_by_hand(size: tuple[int, int]) -> None:
    fpn, maps = make_fpn(), make_maps(*size)
    with torch.no_grad():
        torch.testing.assert_close(fpn(maps), by_hand(fpn, maps))


@pytest.mark.parametrize("num_levels", [3, 4, 5])
def test_fewer_levels_are_the_first_of_five(num_levels: int) -> None:
    maps = make_maps(64, 96)
    full, cut = make_fpn(), make_fpn(num_levels=num_levels)
    cut.load_state_dict({name: value for name, value in full.state_dict().items() if name in cut.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(cut(maps), full(maps)[:num_levels])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 300), st.integers(1, 300))
def test_levels_have_strides_8_to_128_at_any_size(height: int, width: int) -> None:
    levels = make_fpn()(make_maps(height, width))
    strides = [8, 16, 32, 64, 128]
    assert [x.shape[-2:] for x in levels] == [(math.ceil(height / s), math.ceil(width / s)) for s in strides]
    assert all(x.shape[:2] == (2, 4) for x in levels)


# DropBlock


def test_dropblock_is_off_outside_of_training_and_at_probability_zero() -> None:
    maps = make_maps(64, 96)
    with torch.no_grad():
        plain = make_fpn(drop_block=0.0)(maps)
        torch.testing.assert_close(make_fpn(drop_block=0.9).eval()(maps), plain, rtol=0, atol=0)
        torch.testing.assert_close(make_fpn(drop_block=0.0).train()(maps), plain, rtol=0, atol=0)


def test_dropblock_changes_the_two_finest_levels_alone() -> None:
    maps = make_maps(128, 128)
    with torch.no_grad():
        plain, dropped = make_fpn()(maps), make_fpn(drop_block=0.9).train()(maps)
    assert not torch.equal(plain[0], dropped[0])
    assert not torch.equal(plain[1], dropped[1])
    torch.testing.assert_close(dropped[2:], plain[2:], rtol=0, atol=0)


def kept(fpn: FPN, batch: int, height: int, width: int, lateral: int = 0) -> Tensor:
    """Return what DropBlock multiplies a map of ones by, (batch, C, height, width), read off the finest level.

    One lateral gives ones, the others nothing; the output convolution passes its input on.
    """
    with torch.no_grad():
        for parameter in fpn.parameters():
            parameter.zero_()
        fpn.inner[lateral].bias.fill_(1.0)
        fpn.layer[0].weight[:, :, 1, 1] = torch.eye(4)
        maps = [torch.zeros(batch, c, *s) for c, s in zip(WIDTHS, [(height, width), (4, 4), (2, 2)], strict=True)]
        return fpn([x.double() for x in maps])[0]


def test_what_is_dropped_are_blocks_of_three_by_three_over_all_channels() -> None:
    torch.manual_seed(2)
    keep = kept(make_fpn(drop_block=0.05).train(), 20, 30, 40)
    is_dropped = keep == 0
    assert is_dropped.any()
    assert (is_dropped == is_dropped[:, :1]).all()  # one mask for all channels
    for picture in is_dropped[:, 0]:
        explained = torch.zeros_like(picture)
        for row in range(30):
            for column in range(40):
                block = (slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2))  # cut at the border
                if picture[block].all():
                    explained[block] = True
        assert torch.equal(explained, picture)


def test_pictures_of_a_batch_lose_different_blocks() -> None:
    torch.manual_seed(2)
    keep = kept(make_fpn(drop_block=0.3).train(), 2, 30, 40)
    assert not torch.equal(keep[0], keep[1])


def test_what_is_left_is_scaled_up_so_that_the_mean_stays() -> None:
    torch.manual_seed(3)
    fpn = make_fpn(drop_block=0.3).train()
    for _ in range(5):
        keep = kept(fpn, 4, 30, 40)
        assert keep.mean().item() == pytest.approx(1.0)
        assert len(keep.unique()) == 2  # 0 and one scale


@pytest.mark.parametrize("lateral", [1, 2])
def test_the_map_that_continues_downwards_stays_whole(lateral: int) -> None:
    torch.manual_seed(5)
    keep = kept(make_fpn(drop_block=0.9).train(), 4, 30, 40, lateral)
    # Were a coarser map dropped on its way, its scale would stand beside the finest map's own.
    assert keep.mean().item() == pytest.approx(1.0)


def test_blocks_start_with_a_ninth_of_the_probability() -> None:
    torch.manual_seed(4)
    keep = kept(make_fpn(drop_block=0.3).train(), 50, 40, 40)[:, :, 1:-1, 1:-1]
    # A cell away from the border stays when none of the nine cells around it starts a block.
    assert (keep > 0).double().mean().item() == pytest.approx((1 - 0.3 / 9) ** 9, abs=0.01)


def test_a_map_that_is_dropped_whole_gives_zeros_and_no_division_by_zero() -> None:
    keep = kept(make_fpn(drop_block=9.0).train(), 2, 3, 3)  # a block starts everywhere
    assert torch.equal(keep, torch.zeros_like(keep))
