"""ONNX detectors in fewer bits: float16 for GPUs, int8 for processors, dynamic or calibrated on pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glip_model.onnx_detector import INPUT, POSTPROCESS
from glip_model.whole_files import whole_file

_EXACT = ("DeformConv", "GridSample", "Resize", "NonMaxSuppression", "TopK", "GroupNormalization")
"""Operators that stay in float32: positions lose whole cells in half precision, thresholds their ties."""
FIRST_EXACT = 3
"""Convolutions of the backbone that stay in float32: of EfficientNet the stem and the block at its size."""


def to_half(path: Path, out: Path) -> None:
    """Write a detector whose weights and most operators are float16; inputs and outputs keep their types.

    Args:
        path: of ``export_detector``.
        out: file to write; may be ``path``.

    Raises:
        OSError: it cannot be written.
    """
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with _folded(path) as ready:
        model = onnx.load(ready)
    exact = [*DEFAULT_OP_BLOCK_LIST, *_EXACT]
    half = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=exact, node_block_list=_deciding_nodes(model)
    )
    with whole_file(out) as aside:
        onnx.save(half, aside)


def to_int8(path: Path, out: Path, pictures: Sequence[NDArray[np.uint8]] = ()) -> None:
    """Write a detector that multiplies in 8 bits, weights with a scale for every channel.

    Args:
        path: of ``export_detector``, in float32.
        out: file to write; may be ``path``.
        pictures: (H, W, 3) uint8 RGB, resized, whose activations decide on their scales once and for all; without any,
            every call finds the scales of its own, of matrix products alone: those of convolutions cost more time than
            they save.

    Raises:
        OSError: it cannot be written.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    with _folded(path) as ready, whole_file(out) as aside:
        model = onnx.load(ready)
        options: dict[str, Any] = {
            "nodes_to_exclude": [*_deciding_nodes(model), *_products_of_stacks(model)],
            "per_channel": True,
            "weight_type": QuantType.QInt8,
            "extra_options": {"MatMulConstBOnly": True},
        }
        if pictures:
            options |= {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8}
            options["nodes_to_exclude"] += _first_convolutions(model)
            operators = ["Conv", "MatMul"]
            quantize_static(ready, aside, _Pictures(pictures), op_types_to_quantize=operators, **options)
        else:
            quantize_dynamic(ready, aside, op_types_to_quantize=["MatMul"], **options)


@contextmanager
def _folded(path: Path) -> Iterator[Path]:
    """Give a file with the same graph, its shapes inferred and what does not depend on pictures computed."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / path.name
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        yield ready


def _deciding_nodes(model: Any) -> list[str]:
    """Return the names of the nodes that decide what is found: those of the head and behind it."""
    return [node.name for node in model.graph.node if f"/{POSTPROCESS}/" in node.name or "/head/" in node.name]


def _first_convolutions(model: Any) -> list[str]:
    """Return the names of the convolutions that see the picture first, for which 8 bits are too few.

    In the small model of the repository they cost seven AP of 66, all others together none.
    """
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv" and "/backbone/" in node.name]
    return convolutions[:FIRST_EXACT]


def _products_of_stacks(model: Any) -> list[str]:
    """Return the names of products with constants of more than two dimensions: onnxruntime has no int8 for them."""
    stacks = {each.name for each in model.graph.initializer if len(each.dims) > 2}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in stacks]


class _Pictures:
    """Pictures as onnxruntime's calibration asks for them, one by one."""

    def __init__(self, pictures: Sequence[NDArray[np.uint8]]) -> None:
        self._rest: Iterator[NDArray[np.uint8]] = iter(pictures)

    def get_next(self) -> dict[str, Any] | None:
        """Return the inputs of the next call; None behind the last."""
        picture = next(self._rest, None)
        return None if picture is None else {INPUT: picture[None]}
