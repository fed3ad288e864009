"""What a prompt may name although it is not in the picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings import load_all
from pipeline.training.negatives import choose_categories, has_head_in, word_forms
from pipeline.training.settings import SamplesConfig

ROOT = Path(__file__).resolve().parents[3]
CONFIG: SamplesConfig = replace(
    load_all(ROOT / "params.yaml").train.samples,
    short_sides=(64,),
    long_side=64,
    flip=0.0,
    max_prompt_tokens=40,
    detection_prompts="sampled",
    max_negatives=5,
    full_negatives=0.5,
    caption_negatives=0,
    caption_negatives_none=0.0,
    phrase_prompts=0.0,
    pseudo_phrase_prompts=None,
    ignore_unlocated=True,
)


def count_words(text: str) -> int:
    return len(text.split())


def draws_of(rng: np.random.Generator, config: SamplesConfig) -> int:
    """The number of draws, as the specification words it."""
    if rng.random() < config.full_negatives:
        return config.max_negatives
    return int(rng.integers(1, config.max_negatives + 1)) if config.max_negatives else 0


def slow_oracle(
    present: list[int], names: dict[int, str], rng: np.random.Generator, config: SamplesConfig
) -> tuple[set[int], set[int]]:
    """Positives and negatives by the published steps, one after the other, with sets and running totals."""
    limit = config.max_prompt_tokens - 2
    order = [present[i] for i in rng.permutation(len(present))]
    positives: list[int] = []
    for category in order:
        if sum(count_words(names[c]) + 1 for c in [*positives, category]) <= limit:
            positives.append(category)
    number = draws_of(rng, config)
    drawn = [list(names)[i] for i in rng.permutation(len(names))][:number]
    negatives: list[int] = []
    for category in drawn:
        if category in present:
            continue
        if sum(count_words(names[c]) + 1 for c in [*positives, *negatives, category]) <= limit:
            negatives.append(category)
    return set(positives), set(negatives)


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[dict[int, str], list[int]]:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    names = {10 * i + 3: " ".join(f"n{i}w{j}" for j in range(length)) for i, length in enumerate(lengths)}
    present = draw(st.lists(st.sampled_from(list(names)), unique=True, max_size=len(names)))
    return names, present


@settings(max_examples=200, deadline=None)
@given(vocabularies(), st.integers(0, 10_000), st.integers(8, 40), st.integers(0, 12), st.sampled_from([0.0, 0.5, 1.0]))
def test_published_procedure(
    vocabulary: tuple[dict[int, str], list[int]], seed: int, budget: int, most: int, full: float
) -> None:
    names, present = vocabulary
    config = replace(CONFIG, max_prompt_tokens=budget, max_negatives=most, full_negatives=full)
    shown = choose_categories(present, names, np.random.default_rng(seed), config, count_words)
    positives, negatives = slow_oracle(present, names, np.random.default_rng(seed), config)
    assert shown
    assert len(shown) == len(set(shown))
    if positives or negatives:
        assert set(shown) == positives | negatives
        assert sum(count_words(names[category]) + 1 for category in shown) <= budget - 2
    else:
        assert len(shown) == 1  # a prompt must ask for something


def test_positives_are_kept_and_negatives_are_absent() -> None:
    names = {i: f"name{i}" for i in range(30)}
    for seed in range(50):
        shown = choose_categories([4, 8], names, np.random.default_rng(seed), CONFIG, count_words)
        assert {4, 8} <= set(shown)
        assert len(shown) <= 2 + CONFIG.max_negatives


def test_order_is_random() -> None:
    names = {i: f"name{i}" for i in range(3)}
    config = replace(CONFIG, full_negatives=1.0, max_negatives=3)
    orders = Counter(
        tuple(choose_categories([0], names, np.random.default_rng(seed), config, count_words)) for seed in range(300)
    )
    assert len(orders) == 6
    assert min(orders.values()) > 20


def test_all_categories_are_asked_for_in_order_or_shuffled() -> None:
    names = {i: f"name{i}" for i in (7, 3, 9, 1)}
    config = replace(CONFIG, detection_prompts="all")
    shuffled = replace(CONFIG, detection_prompts="all_shuffled")
    orders = set()
    for seed in range(40):
        chance = np.random.default_rng(seed)
        assert choose_categories([3], names, chance, config, count_words) == [7, 3, 9, 1]
        orders.add(tuple(choose_categories([3], names, chance, shuffled, count_words)))
    assert len(orders) > 10
    assert {frozenset(order) for order in orders} == {frozenset(names)}


def test_a_vocabulary_beyond_the_budget_is_sampled_with_all_its_negatives() -> None:
    names = {i: f"name{i}" for i in range(100)}
    config = replace(CONFIG, detection_prompts="all", full_negatives=0.0, max_negatives=100)
    for seed in range(10):
        shown = choose_categories([4], names, np.random.default_rng(seed), config, count_words)
        assert 4 in shown
        assert len(shown) == 19  # two words each with the period, in a budget of 38


def test_no_negatives_when_none_are_asked_for() -> None:
    names = {i: f"name{i}" for i in range(5)}
    config = replace(CONFIG, max_negatives=0)
    for seed in range(20):
        assert choose_categories([2], names, np.random.default_rng(seed), config, count_words) == [2]


def test_another_id_with_a_present_name_is_no_negative() -> None:
    names = {1: "hot_dog", 2: "Hot dog", 3: "hot dog (food)", 4: "cat"}
    config = replace(CONFIG, full_negatives=1.0)
    for seed in range(20):
        assert set(choose_categories([1], names, np.random.default_rng(seed), config, count_words)) == {1, 4}


def test_crowds_are_no_negatives() -> None:
    names = {1: "cat", 2: "crowd of people", 3: "dog"}
    config = replace(CONFIG, full_negatives=1.0)
    for seed in range(20):
        shown = choose_categories([1], names, np.random.default_rng(seed), config, count_words, never=[2])
        assert set(shown) == {1, 3}
        assert 2 not in choose_categories([], names, np.random.default_rng(seed), config, count_words, never=[2])


@pytest.mark.parametrize(
    ("caption", "phrase", "expected"),
    [
        ("two dogs in the park", "a small dog", True),
        ("a dog", "three dogs", True),
        ("a hot dog", "the dog", True),
        ("a doghouse", "a dog", False),
        ("a red car", "a red apple", False),
        ("some cherries", "one cherry", True),
        ("a wine glass", "two glasses", True),
        ("brown gloves", "a glove", True),
        ("a wolf", "wolves", True),
        ("sharp knives", "a knife", True),
        ("cookies on a plate", "a cookie", True),
        ("two buses", "a bus", True),
        ("tomatoes", "a tomato", True),
        ("three mice", "the mouse", True),
        ("women walking", "a woman", True),
        ("people", "a person", True),
        ("A CAT.", "cats", True),
        ("a cat", "…", False),
        ("", "a cat", False),
    ],
)
def test_nouns_are_recognised_in_singular_and_plural(caption: str, phrase: str, expected: bool) -> None:
    assert has_head_in([phrase], word_forms(caption)) is expected


def test_one_known_head_is_enough() -> None:
    assert has_head_in(["a car", "two cats"], word_forms("a cat"))
    assert not has_head_in([], word_forms("a cat"))
