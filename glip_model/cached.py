"""Tensors that depend on sizes alone, kept from call to call."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")
SIZES_KEPT = 64
_caches: list[Any] = []


def cached_by_size(compute: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Keep the last results of a function of hashable arguments; while a graph is recorded, compute anew.

    In a graph the sizes may be symbols or traced values, and a kept tensor would become a constant.
    """

    @lru_cache(maxsize=SIZES_KEPT)
    def kept(*args: Any, **kwargs: Any) -> Tensor:
        with torch.inference_mode(False):  # what is kept serves training too, whoever asked first
            return compute(*args, **kwargs)

    _caches.append(kept)

    @wraps(compute)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return compute(*args, **kwargs)
        return kept(*args, **kwargs)  # type: ignore[arg-type]

    return call


def forget() -> None:
    """Drop all that is kept, as after a FakeTensorMode, whose tensors are of no use outside of it."""
    for kept in _caches:
        kept.cache_clear()
