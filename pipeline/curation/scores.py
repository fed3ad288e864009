"""What models of transformers say of pairs: CLIP and its like, and classifiers of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer

from glip_model.pretrained import resolve_folder
from pipeline.curation.settings import ScoreConfig
from pipeline.errors import ConfigError, MissingInputError

_NEEDED = {
    "caption": ("get_image_features", "get_text_features"),
    "prompts": ("get_image_features", "get_text_features"),
}


class PairScorer:
    """A model that scores pairs; see ``ScoreConfig.kind``.

    Args:
        config: which, and how.
        device: where it computes.

    Raises:
        MissingInputError: there is no such model, or it cannot be loaded.
        ConfigError: it does not do what ``kind`` asks for.
    """

    def __init__(self, config: ScoreConfig, device: str) -> None:
        self._config, self._device = config, device
        architecture: Any = AutoModelForImageClassification if config.kind == "label" else AutoModel
        try:
            folder = resolve_folder(config.model)
            model: Any = architecture.from_pretrained(folder, use_safetensors=True)
            self._images = AutoImageProcessor.from_pretrained(folder)
            self._tokenizer = None if config.kind == "label" else AutoTokenizer.from_pretrained(folder)
        except (ValueError, OSError, KeyError) as error:
            raise MissingInputError(f"curate.scores: {config.model}: not a usable model ({error})") from error
        lacking = [name for name in _NEEDED.get(config.kind, ()) if not hasattr(model, name)]
        if lacking:
            raise ConfigError(
                f"curate.scores: {config.model} is no model like CLIP: it has no {' and no '.join(lacking)}"
            )
        self._model = model.to(device).eval()
        if config.kind == "label":
            self._label = self._find_label()
        if config.kind == "prompts":
            self._prompts = self._embed_texts([*config.prompts, *config.against])

    @torch.inference_mode()
    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """Return the score of every pair.

        Args:
            images: RGB.
            captions: as many.
        """
        if not images:
            return []
        pixels = self._images(list(images), return_tensors="pt").to(self._device)
        if self._config.kind == "label":
            logits: Tensor = self._model(**pixels).logits
            return logits.float().softmax(-1)[:, self._label].tolist()
        found = _unit(self._model.get_image_features(**pixels))
        if self._config.kind == "caption":
            return (found * self._embed_texts(captions)).sum(-1).tolist()
        logits = self._model.logit_scale.float().exp() * found @ self._prompts.T  # (B, prompts)
        return logits.softmax(-1)[:, : len(self._config.prompts)].sum(-1).tolist()

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        assert self._tokenizer is not None
        longest = self._model.config.text_config.max_position_embeddings
        # To full length: SigLIP has learned its texts so, and to CLIP it is the same.
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        known = {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask") if name in tokens}
        return _unit(self._model.get_text_features(**known))

    def _find_label(self) -> int:
        labels = {str(name).lower(): int(number) for number, name in self._model.config.id2label.items()}
        if self._config.label.lower() not in labels:
            raise ConfigError(
                f"curate.scores: {self._config.model} has no label {self._config.label!r}; labels: {', '.join(labels)}"
            )
        return labels[self._config.label.lower()]


def _unit(features: Any) -> Tensor:
    """Return features (B, D) of length 1; newer models wrap them."""
    found: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(found.float(), dim=-1)
