"""The arithmetic of inference: the device, its precision, and TensorFloat-32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # settings name ``Precision``, and must not cost the seconds that torch takes to load
    import torch

Precision = Literal["auto", "float32", "bf16"]
"""``bf16`` runs under autocast; ``auto`` is that on a GPU which computes in bfloat16, otherwise float32."""
FLOAT32_MATMUL = "high"
"""TensorFloat-32 for float32 matrix products on a GPU; "highest" computes them in float32."""


def best_device() -> str:
    """Return the first GPU, or the CPU where there is none."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(device: str | torch.device) -> torch.device:
    """Return a torch device; ValueError where this machine has none of that name."""
    import torch

    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used here: {error}; expected cpu, cuda or cuda:N"
        ) from error
    return found


def has_bf16(device: str | torch.device = "cuda") -> bool:
    """Return whether a device is a GPU that computes in bfloat16 itself; emulating it is slower than float32."""
    import torch

    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def resolve_precision(precision: Precision, everywhere: Callable[[Callable[[], bool]], bool]) -> Precision:
    """Resolve ``auto`` on machines that share the work: all compute alike, or results would depend on the order.

    Args:
        precision: the setting; anything but ``auto`` stays.
        everywhere: calls a function on every machine with GPUs; returns whether there are some and all returned True.
    """
    if precision != "auto":
        return precision
    return "bf16" if everywhere(has_bf16) else "float32"


def dtype_of(precision: Precision, device: str | torch.device) -> torch.dtype:
    """Return the dtype of matrix products and convolutions on a device; ValueError where there is no such precision."""
    import torch

    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}")
    is_half = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.bfloat16 if is_half else torch.float32


def autocast(dtype: torch.dtype, device: str | torch.device) -> torch.autocast:
    """Compute in ``dtype`` for the length of a ``with`` block; weights, and what needs the digits, stay float32.

    Training does the same, so that inference computes as training did; casting the weights would round those, too.
    """
    import torch

    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


def allow_tf32() -> None:
    """Let float32 matrix products of this process use TensorFloat-32 on GPUs, which convolutions do by themselves."""
    import torch

    if torch.cuda.is_available():  # on a CPU nothing changes, whatever it could do
        torch.set_float32_matmul_precision(FLOAT32_MATMUL)
