"""Export a model to ONNX: any picture size, a fixed number of tokens.

    glip export models/round_2 --onnx student.onnx --tokens 64

Inputs: pixel_values (1, 3, H, W), normalised as config.json says and padded to multiples of 32; input_ids and
attention_mask (1, T). Models that encode names one by one take text_states (1, T, D) in place of input_ids. Outputs:
token_logits (1, A, T), boxes_xyxy (1, A, 4), centerness (1, A). Needs the packages of the extra "export".
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import run_if_program
from pipeline.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--onnx", type=Path, required=True, help="file to write")
    parser.add_argument("--tokens", type=int, default=64, help="length of every prompt (default: %(default)s)")


def run(args: argparse.Namespace) -> str:
    """Export."""
    from glip_model.export import export_onnx
    from glip_model.glip import GLIP

    try:
        model = GLIP.from_pretrained(args.model)
        export_onnx(model, args.onnx, args.tokens)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return f"export: {args.tokens} tokens → {args.onnx}"


run_if_program(__name__)
