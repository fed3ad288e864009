"""Settings of section ``phrases``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.settings import Count, Natural, section


@section
class PhrasesConfig:
    """Section ``phrases``: noun phrases of captions."""

    ADDED: ClassVar[tuple[str, ...]] = (
        "extractor",
        "endpoint",
        "abstract_heads",
        "merge_repeats",
        "max_per_phrase",
    )

    spacy_model: str
    """Importable spaCy pipeline package."""
    extractor: Literal["noun_chunks", "tagged_chunks", "grammar", "llm"]
    """``noun_chunks``: spaCy's, cleaned. ``tagged_chunks``: by part-of-speech tags alone, cleaned alike; faster.
    ``grammar``: the one of GLIP's published demo, as it is, to compare with. ``llm``: what a language model behind
    ``endpoint`` says, as far as it stands in the caption."""
    endpoint: str
    """YAML file of an endpoint of OpenAI's style, for ``llm``; see pipeline/pseudo_labels/README.md."""
    batch_size: Count
    max_caption_chars: Count
    """Longer captions are rejected as ``caption_too_long``."""
    max_words: Count
    """Longer phrases are left out."""
    stop_heads: tuple[str, ...]
    """Head nouns that name a medium or nothing to point at, in lower case; they are cut off a phrase."""
    abstract_heads: tuple[str, ...]
    """Head nouns that nobody can draw a box around, in lower case; phrases that end in one are left out."""
    merge_repeats: bool
    """Make one phrase with several spans of those that differ by case, hyphens or number alone."""
    max_per_phrase: Natural
    """About how many pairs are labelled for a phrase that more say, chosen as MetaCLIP chooses captions; pairs without
    a chosen phrase are rejected as ``phrases_common``. 0 labels all."""
