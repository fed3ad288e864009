"""Settings of section ``curate``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.settings import Amount, Count, Natural, Share, section

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


@section
class ScoreConfig:
    """One entry of ``curate.scores``: what a model of transformers says of every pair, and what is too little or much.

    Models stay loaded from safetensors alone; a change of ``min`` or ``max`` asks none again.
    """

    model: Annotated[str, Field(min_length=1)]
    """Folder or hub id: CLIP, SigLIP and their like, for ``label`` any classifier of pictures."""
    kind: Literal["caption", "prompts", "label"] = "caption"
    """``caption``: cosine of picture and caption. ``prompts``: share, of all prompts, of those in ``prompts`` as the
    picture's text. ``label``: a classifier's probability of ``label``."""
    prompts: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    """What ``prompts`` are held against."""
    label: str = ""
    min: float | None = None
    """Pairs that score less are rejected."""
    max: float | None = None
    """Pairs that score more are rejected."""

    def __post_init__(self) -> None:
        """Check that the kind has what it needs."""
        if self.kind == "prompts" and not (self.prompts and self.against):
            raise ConfigError("kind is prompts; expected some prompts, and some in against")
        if self.kind == "label" and not self.label:
            raise ConfigError("kind is label; expected the label of the model that counts, such as label: nsfw")


@section
class CurateConfig:
    """Section ``curate``: which web pairs are worth a teacher's time. A filter that is 0, empty or off rejects none."""

    duplicates: Literal["off", "exact", "near"]
    """Of pictures with the same bytes, or of those that look alike as well, the first pair stays."""
    min_side: Natural
    """Pixels of the shorter side."""
    max_aspect: Amount
    """Longer side over the shorter one."""
    min_contrast: Amount
    """Standard deviation of grey values, 0 to 255: blank pictures have none."""
    min_words: Natural
    max_words: Natural
    max_caption_repeats: Natural
    """Captions that come more often, but for case, digits and punctuation, are boilerplate; all with them go."""
    languages: tuple[str, ...]
    """Of captions, as two letters of ISO 639-1; py3langid (extra ``curate``) tells them."""
    min_language_score: Share
    """Probability from which on a language counts as told; captions of none are kept."""
    blocked_words: tuple[str, ...]
    """Words or phrases whose captions are rejected, whatever the case."""
    blocked_words_file: str | None
    """More of them, one a line: a path or URL."""
    scores: Mapping[str, ScoreConfig]
    """What models say, by a name that becomes a column."""
    batch_size: Count
    """Pairs that a model looks at together."""
    num_actors: Count
    """Processes with a model, at most."""

    def __post_init__(self) -> None:
        """Check what depends on another setting."""
        if self.max_words and self.max_words < self.min_words:
            raise ConfigError(f"max_words is {self.max_words}; expected 0 or at least min_words = {self.min_words}")
        for name in self.scores:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"scores.{name}: expected a name of small letters, digits and _ for a column")
