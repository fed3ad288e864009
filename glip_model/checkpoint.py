"""Models on disk: weights and config as one folder, and files of tensors from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glip_model.config import GLIPConfig
from glip_model.hugging_face.files import KEYS, PROCESSOR_FILE, config_entries, processor_entries
from glip_model.trained_on import TRAINED_ON, TrainedOn
from glip_model.whole_files import whole_file, whole_files

Model = TypeVar("Model", bound=nn.Module)
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")
"""Finds in torch's error about a pickle the object that it names beside tensors."""
NAMED_PROBLEMS = 20
"""Problems that a message names; a wholly different model would fill pages."""


def save_model(
    model: nn.Module,
    config: GLIPConfig,
    folder: str | Path,
    tokenizer: Any = None,
    trained_on: TrainedOn | None = None,
) -> None:
    """Write config, tokenizer and weights; a reader of the folder needs nothing else, and neither does transformers.

    They appear when all are written, the weights last.

    Raises:
        OSError: the folder cannot be written.
    """
    known = {} if trained_on is None else {TRAINED_ON: trained_on.to_dict()}
    entries = {CONFIG_FILE: config.to_dict() | config_entries() | known, PROCESSOR_FILE: processor_entries(config)}
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with whole_files(Path(folder), WEIGHTS_FILE) as aside:
        for name, values in entries.items():
            (aside / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        with whole_file(aside / WEIGHTS_FILE) as path:
            save_file(weights, path, metadata={"format": "pt"})


def load_model(build: Callable[[GLIPConfig], Model], folder: Path) -> Model:
    """Read a folder that ``save_model`` wrote.

    Args:
        build: makes the model of a config, with any weights.
        folder: that of the model.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        ValueError: a file is missing or broken, or names and shapes do not fit the config.
    """
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise ValueError(f"{folder}: no {file}; expected a folder written by save_pretrained")
    model = build(read_config(folder))
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: not readable as a model: {error}") from error
    load_strictly(model, weights, str(folder))
    return model.eval()


def read_config(folder: Path) -> GLIPConfig:
    """Read the settings of a model's folder; ValueError where they are none, or of no model that can be built."""
    with _config_of(folder) as values:
        is_ours = isinstance(values, Mapping)
        others = {*KEYS, TRAINED_ON}
        return GLIPConfig.from_dict({k: v for k, v in values.items() if k not in others} if is_ours else values)


def read_trained_on(folder: Path) -> TrainedOn | None:
    """Read the training data recorded in a model's folder; None where there is no record. Errors as ``read_config``."""
    with _config_of(folder) as values:
        recorded = values.get(TRAINED_ON)
        return None if recorded is None else TrainedOn.from_dict(recorded)


@contextmanager
def _config_of(folder: Path) -> Iterator[Any]:
    """Yield the values of config.json; turn every error about them into a ValueError."""
    try:
        yield json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder}: not readable as a model: {CONFIG_FILE}: {error}") from error


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load weights under our own names, or these with what other programs put before them.

    These are DistributedDataParallel, torch.compile, and transformers, whose model holds ours by the name ``glip``.

    Raises:
        ValueError: some are missing, unknown, of another shape, or not finite; the message names them.
    """
    expected = model.state_dict()
    weights = {
        name.replace("_orig_mod.", "").removeprefix("module.").removeprefix("glip."): value
        for name, value in weights.items()
    }
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        named = "; ".join(problems[:NAMED_PROBLEMS]) + ("; …" if len(problems) > NAMED_PROBLEMS else "")
        raise ValueError(f"{origin}: {len(problems)} tensors do not fit the model: {named}")
    check_finite(weights, origin)
    model.load_state_dict(dict(weights))


def check_finite(weights: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights that hold a NaN or an infinite number, of which a model makes scores that are none.

    Raises:
        ValueError: there are such weights; the message names some.
    """
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        named = ", ".join(broken[:NAMED_PROBLEMS]) + (", …" if len(broken) > NAMED_PROBLEMS else "")
        raise ValueError(
            f"{origin}: {len(broken)} of {len(weights)} tensors hold NaN or infinite numbers ({named}); the training "
            "diverged or the file is damaged: take an earlier checkpoint, or copy the file anew"
        )


def read_tensors(path: str | Path, kind: str) -> Any:
    """Read a ``.safetensors`` file, or one of torch as tensors and plain containers alone: a pickle must not run code.

    Raises:
        ValueError: it is not readable as ``kind``, which the message names.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader of pickles raises anything on what is none
        raise ValueError(f"{path}: not readable as {kind}: {_what_is_wrong(path, error)}") from error


def _what_is_wrong(path: str | Path, error: Exception) -> str:
    """Say what a file is that is none of tensors; torch's own advice is to let it run code, and is not passed on."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(512)
    except OSError:
        return _first_line(error)
    begins = f"; it begins with {head[:40]!r}"
    if not head:
        return "it is empty; fetch it again"
    if head.startswith(b"version https://git-lfs"):
        return f"it is a pointer of git-lfs, and not the file; run: git lfs pull{begins}"
    if head.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"<":
        return f"it is a web page, and not the file; fetch it again, by the address of the file itself{begins}"
    if not head.translate(None, bytes(range(32, 256)) + b"\t\r\n"):
        return f"it is a text{begins}"
    foreign = _FOREIGN.search(str(error))
    if foreign:
        return f"it holds {foreign[1]}, and may hold tensors and plain containers alone: anything else could run code"
    return ("it is damaged, or no such file" if "weights_only" in str(error) else _first_line(error)) + begins


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or repr(error)
