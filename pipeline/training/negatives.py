"""What a prompt may name although it is not in the picture: sampled categories, and nouns that a caption leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from glip_model.prompts import clean_name
from pipeline.store.words import singulars, words_of
from pipeline.training.settings import SamplesConfig

TokenCount = Callable[[str], int]
"""Tokens of a string, without special ones."""
SPECIAL_TOKENS = 2
"""[CLS] and [SEP] of a prompt."""


class Budget:
    """Tokens that are left in a prompt."""

    def __init__(self, config: SamplesConfig, count_tokens: TokenCount) -> None:
        self.left, self._count_tokens = config.max_prompt_tokens - SPECIAL_TOKENS, count_tokens

    def takes(self, *texts: str) -> bool:
        """Subtract strings, each with a period, from the budget if they fit; return whether they do."""
        cost = sum(self._count_tokens(text) + 1 for text in texts)
        fits = cost <= self.left
        self.left -= cost if fits else 0
        return fits


def choose_categories(
    present: Sequence[int],
    names: Mapping[int, str],
    rng: np.random.Generator,
    config: SamplesConfig,
    count_tokens: TokenCount,
    never: Iterable[int] = (),
    rejected: Sequence[int] = (),
) -> list[int]:
    """Choose the categories of a detection prompt, as published.

    Where ``detection_prompts`` asks for all categories and they fit, those. Else, as for pre-training: the categories
    present come first into the token budget, in random order; with probability ``full_negatives`` ``max_negatives``
    draws are made from all categories, else a uniform number from 1 on; drawn positives are discarded and negatives
    kept while they fit; then everything is shuffled. One improvement: a negative that reads like something present
    (another data set's id for the same name) is discarded too.

    Args:
        present: ids in the picture.
        names: the vocabulary.
        rng: source of chance.
        config: numbers and budget.
        count_tokens: tokens of a name.
        never: ids that must not become negatives, for example of regions marked as crowds.
        rejected: ids of which a person said that they are not there; these negatives come before any that is drawn.

    Returns:
        Ids in prompt order; at least one. Categories that overflow the budget are left out with their boxes.
    """
    budget = Budget(config, count_tokens)
    if config.detection_prompts != "sampled":
        whole = list(names)
        if budget.takes(*(clean_name(names[category]) for category in whole)):
            return whole if config.detection_prompts == "all" else [whole[i] for i in rng.permutation(len(whole))]
    shown = [present[i] for i in rng.permutation(len(present)) if budget.takes(clean_name(names[present[i]]))]
    ids = list(names)
    taken = {_reading(names[category]) for category in (*present, *never) if category in names}
    for category in rejected:
        if _reading(names[category]) not in taken and budget.takes(clean_name(names[category])):
            shown.append(category)
            taken.add(_reading(names[category]))
    draws = _draws(rng, config)
    for i in rng.permutation(len(ids))[:draws]:
        reading = _reading(names[ids[i]])
        if reading not in taken and budget.takes(clean_name(names[ids[i]])):
            shown.append(ids[i])
            taken.add(reading)
    if not shown:  # a prompt must ask for something, even if nothing is present or fits
        free = [category for category in ids if _reading(names[category]) not in taken] or ids
        shown = [free[int(rng.integers(len(free)))]]
    return [shown[i] for i in rng.permutation(len(shown))]


def _draws(rng: np.random.Generator, config: SamplesConfig) -> int:
    always_full = config.detection_prompts != "sampled"
    if always_full or rng.random() < config.full_negatives or config.max_negatives == 0:
        return config.max_negatives
    return int(rng.integers(1, config.max_negatives + 1))


def _reading(name: str) -> str:
    return clean_name(name).lower()


def word_forms(caption: str) -> frozenset[str]:
    """Return the words of a caption in lower case, as they stand and in every singular that they may have."""
    return frozenset().union(*(singulars(word) for word in words_of(caption)))


def has_head_in(phrases: Iterable[str], forms: frozenset[str]) -> bool:
    """Tell whether the last word, the head noun, of one of the phrases is among ``word_forms`` of a caption."""
    words = (words_of(phrase) for phrase in phrases)
    return any(not forms.isdisjoint(singulars(phrase[-1])) for phrase in words if phrase)
