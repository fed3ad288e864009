"""Models as ONNX graphs: a fixed number of tokens, any picture size."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from glip_model.anchors import anchor_grid
from glip_model.boxes import decode_boxes
from glip_model.glip import GLIP
from glip_model.structures import GroundingBatch
from glip_model.whole_files import whole_files

OPSET = 19
"""The first with deformable convolution."""
OUTPUTS = ("token_logits", "boxes_xyxy", "centerness")


class ExportedGLIP(nn.Module):
    """What the graph computes: everything between pixels with tokens and boxes with logits.

    Left to the caller, being cheap and full of choices: resizing and normalisation before it (``preprocess``), phrase
    scores, thresholds and NMS behind it (``postprocess``).
    """

    def __init__(self, model: GLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, text: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run one picture.

        Args:
            pixel_values: (1, 3, H, W) float32, normalised, padded to multiples of 32.
            text: (1, T) int64 tokens; T is fixed at export. Of a model that encodes segment by segment, whose encoder
                stays outside of the graph, the states (1, T, D) float32.
            attention_mask: (1, T) bool, False on padding.

        Returns:
            Token logits (1, A, T), boxes (1, A, 4) as corners in pixels of ``pixel_values``, the far ones as the model
            has them (see ``GLIPConfig.inclusive_corners``), and centerness (1, A)
            before the sigmoid.
        """
        has_states = self.model.config.text.encoding == "segments"
        batch = GroundingBatch(
            pixel_values=pixel_values,
            image_sizes=(),
            input_ids=attention_mask.long() if has_states else text,
            attention_mask=attention_mask,
            text_states=text if has_states else None,
        )
        output = self.model(batch)
        config = self.model.config
        anchors = anchor_grid(output.level_sizes, config.strides, config.anchor_scale, pixel_values.device)
        return output.token_logits, decode_boxes(output.box_deltas, anchors), output.centerness


def export_onnx(model: GLIP, path: str | Path, num_tokens: int) -> None:
    """Write a model as ONNX; weights beyond 2 GB go into a file beside it.

    Args:
        model: in eval mode, on the CPU.
        path: file to write.
        num_tokens: length T of every prompt; shorter prompts are padded and masked.

    Raises:
        ValueError: the model reads fewer tokens.
        ImportError: onnx is not installed.
        OSError: the file cannot be written.
    """
    config = model.config
    if not 3 <= num_tokens <= config.text.max_tokens:
        raise ValueError(f"a prompt has 3 to {config.text.max_tokens} tokens, got {num_tokens}")
    has_states = config.text.encoding == "segments"
    text = torch.randn(1, num_tokens, config.text.hidden_size) if has_states else torch.full((1, num_tokens), 1000)
    example = (torch.randn(1, 3, 320, 480), text, torch.ones(1, num_tokens, dtype=torch.bool))
    path = Path(path)
    with warnings.catch_warnings(), whole_files(path.parent, path.name) as folder:
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            ExportedGLIP(model).eval(),
            example,
            str(folder / path.name),
            # torch.export reasons about every size as a symbol: minutes for a small model, no end for a published one.
            dynamo=False,
            opset_version=OPSET,
            input_names=["pixel_values", "text_states" if has_states else "input_ids", "attention_mask"],
            output_names=list(OUTPUTS),
            dynamic_axes={
                "pixel_values": {2: "height", 3: "width"},
                **{name: {1: "anchors"} for name in OUTPUTS},
            },
        )
