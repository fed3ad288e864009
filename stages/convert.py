"""Convert a published GLIP checkpoint to a folder that this project, its users and transformers load offline.

    glip convert hub:GLIPModel/GLIP models/glip_t --variant glip_t    # fetch it, check its hash, convert it
    glip convert hub:GLIPModel/GLIP --variant glip_t                  # the same, into the hub's cache
    glip convert glip_tiny_model_o365_goldg_cc_sbu.pth models/glip_t  # a file that you have
    python -c "from glip_model import GLIPPredictor; GLIPPredictor.from_pretrained('models/glip_t')"

The folder holds config.json, processor_config.json, model.safetensors and the tokenizer's files. Variants are glip_t_a,
glip_t_b, glip_t_c, glip_t and glip_l. The tokenizer comes from the hub or, out of its reach, from an installed package.

Every tensor must find its place: names that are missing, unknown or of another shape are listed, and nothing is
written. The file is read as tensors alone; code in it is never run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from glip_model.config import PRESETS
from pipeline.cli import run_if_program
from pipeline.errors import ConfigError, MissingInputError

FROM_HUB = "hub:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("checkpoint", help="published .pth file, or hub:OWNER/NAME")
    parser.add_argument("out", type=Path, nargs="?", help="folder to write (default, of the hub's: its cache)")
    parser.add_argument("--variant", choices=sorted(PRESETS), help="which of the hub's checkpoints")
    parser.add_argument("--revision", help="branch, tag or commit of the hub's (default: the newest)")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="model size (default: found by names and shapes)")
    parser.add_argument(
        "--tokenizer",
        help="folder, package:NAME/path or hub id of the bert-base-uncased tokenizer (default: the hub's, or else that "
        "of an installed package)",
    )


def run(args: argparse.Namespace) -> str:
    """Convert."""
    from_hub = args.checkpoint.startswith(FROM_HUB)
    if from_hub != (args.variant is not None):
        raise ConfigError("--variant says which checkpoint of hub:OWNER/NAME is meant; give both, or neither")
    if not from_hub and args.revision:
        raise ConfigError("--revision belongs to hub:OWNER/NAME; a file has none")
    if from_hub and args.preset:
        raise ConfigError("--preset belongs to a file; the size of the hub's follows from --variant")
    if not from_hub and args.out is None:
        raise ConfigError("name the folder to write: glip convert FILE FOLDER")
    if from_hub and args.out is None and args.tokenizer:
        raise ConfigError("--tokenizer needs a folder to write to: the cache holds models with their own")
    try:
        return _from_hub(args) if from_hub else _from_file(args)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _from_hub(args: argparse.Namespace) -> str:
    from glip_model.published_hub import convert, converted, fetch

    repository = args.checkpoint.removeprefix(FROM_HUB)
    if args.out is None:
        return f"convert: {args.variant} → {converted(repository, args.variant, args.revision)}"
    digest = convert(fetch(repository, args.variant, args.revision), args.variant, args.out, args.tokenizer)
    return f"convert: {args.variant}, SHA-256 {digest} → {args.out}"


def _from_file(args: argparse.Namespace) -> str:
    from glip_model.published import load_published
    from glip_model.published_hub import find_tokenizer

    path = Path(args.checkpoint)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file")
    model = load_published(path, PRESETS[args.preset]() if args.preset else None)
    model.save_pretrained(args.out, find_tokenizer(model.config.text.vocab_size, args.tokenizer))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"convert: {path.name}, {parameters:,} parameters → {args.out}"


run_if_program(__name__)
