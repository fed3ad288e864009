"""Convert a published GLIP checkpoint to a folder that this project and its users load offline.

The folder holds config.json, model.safetensors and the tokenizer's files:

    glip convert glip_tiny_model_o365_goldg_cc_sbu.pth models/glip_t
    python -c "from glip_model import GLIPPredictor; GLIPPredictor.from_pretrained('models/glip_t')"

Every tensor must find its place: names that are missing, unknown or of another shape are listed, and nothing is
written. The file is read as tensors alone; code in it is never run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from glip_model.config import PRESETS
from pipeline.cli import run_if_program
from pipeline.errors import ConfigError, MissingInputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("checkpoint", type=Path, help="published .pth file")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="model size (default: found by names and shapes)")
    parser.add_argument(
        "--tokenizer",
        default="bert-base-uncased",
        help="folder, package:NAME/path or hub id of the bert-base-uncased tokenizer (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> str:
    """Convert."""
    from glip_model.published import load_published
    from glip_model.text_encoder import load_tokenizer

    if not args.checkpoint.is_file():
        raise MissingInputError(f"{args.checkpoint}: no such file")
    try:
        model = load_published(args.checkpoint, PRESETS[args.preset]() if args.preset else None)
        tokenizer = load_tokenizer(args.tokenizer, model.config.text.vocab_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model.save_pretrained(args.out, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"convert: {args.checkpoint.name}, {parameters:,} parameters → {args.out}"


run_if_program(__name__)
