"""Settings of section ``recaption``."""

from __future__ import annotations

from typing import Literal

from glip_model.precision import Precision
from pipeline.settings import Count, Share, section


@section
class RecaptionConfig:
    """Section ``recaption``: captions by a model, of ``glip recaption``; the graph of dvc.yaml has no such stage."""

    how: Literal["replace", "append"]
    """The model's caption stands in place of the pair's own, or behind it."""
    question: str
    """What a model behind an endpoint is asked for; models of transformers caption without being asked."""
    max_tokens: Count
    """Of a caption by a model of transformers."""
    batch_size: Count
    num_actors: Count
    """Captioning processes at most."""
    max_reject_share: Share
    """The stage stops when a larger share of pictures gets no caption, 0 to 1."""
    precision: Precision
    """Of a model of transformers, as for ``pseudo_label``."""
