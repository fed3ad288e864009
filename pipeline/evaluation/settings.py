"""Settings of section ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from glip_model.precision import Precision
from pipeline.settings import Count, Natural, section


@section
class EvaluateConfig:
    """Section ``evaluate``."""

    ADDED: ClassVar[tuple[str, ...]] = ("max_prompt_categories_by_source", "one_prompt_categories", "precision")

    splits: tuple[Literal["dev", "test"], ...]
    batch_size: Count
    num_actors: Count
    max_prompt_categories: Count
    """Category names in one prompt at most, 40 as published for LVIS; prompts are also cut at the token limit."""
    one_prompt_categories: Natural
    """A vocabulary of so many names or fewer is asked in one prompt, as COCO's 80 names were."""
    max_detections: Count
    """Most boxes of a picture; 100 as published."""
    max_detections_lvis: Count
    """Most boxes of a picture and prompt under LVIS's protocol; 300 as published."""
    referring_target: Literal["expression", "phrase"]
    """What of a referring expression names its object: ``expression``, all of it, or ``phrase``, what the data marks in
    it, such as the head that MDETR's files name."""
    max_prompt_categories_by_source: Mapping[str, Count]
    """Values that replace these two for single data sets, by the names of their sources."""
    precision: Precision
    """Precision of the model's matrix products and convolutions: ``float32`` (TensorFloat-32 on a GPU), ``bf16``, or
    ``auto``: bf16 where all GPUs compute in it, otherwise float32. Predictions of another precision are
    computed again."""

    def names_a_prompt(self, source: str, num_names: int) -> int:
        """Return how many of the category names of a data set go into one prompt at most."""
        is_short = 0 < num_names <= self.one_prompt_categories
        return self.max_prompt_categories_by_source.get(source, num_names if is_short else self.max_prompt_categories)
