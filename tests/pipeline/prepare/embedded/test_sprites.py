"""The emoji art that ships with the code, and which of it is base and which novel."""

from __future__ import annotations

from collections import Counter

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.prepare.embedded.pack_sprites import CONCEPTS_FILE, read_concepts
from pipeline.prepare.embedded.sprites import SPRITES_FILE, SPRITES_SCHEMA, STYLES, load_concepts, split_concepts


def test_the_file_is_small_and_has_its_licences_beside_it() -> None:
    assert SPRITES_FILE.stat().st_size <= 6_000_000
    licences = SPRITES_FILE.parent / "licenses"
    notice = (licences / "README.txt").read_text(encoding="utf-8")
    for name in ("Noto Emoji", "Apache License 2.0", "Twemoji", "creativecommons.org/licenses/by/4.0", "MIT License"):
        assert name in notice
    assert "Apache License" in (licences / "NOTO-EMOJI-APACHE-2.0.txt").read_text(encoding="utf-8")
    assert "Permission is hereby granted" in (licences / "EMOJI-DATASOURCE-MIT.txt").read_text(encoding="utf-8")


def test_there_are_300_concepts_with_names_of_their_own_in_two_styles() -> None:
    concepts = load_concepts()
    assert len(concepts) >= 300
    assert list(concepts) == sorted(concepts)
    # Singular and plural of different concepts differ too, or a caption would not say what it shows.
    words = Counter(word for concept in concepts.values() for word in {concept.name, concept.plural})
    assert [word for word, count in words.items() if count > 1] == []
    for name, concept in concepts.items():
        assert concept.name == name == name.strip().lower()
        assert concept.plural
        assert len(concept.sprites) == len(STYLES) == 2


def test_no_two_concepts_share_their_art() -> None:
    art = Counter(sprite.tobytes() for concept in load_concepts().values() for sprite in concept.sprites)
    assert art.most_common(1)[0][1] == 1


def test_sprites_are_cropped_to_something_visible() -> None:
    for concept in load_concepts().values():
        for sprite in concept.sprites:
            assert sprite.mode == "RGBA"
            assert max(sprite.size) <= 64
            assert max(sprite.size) >= 40, concept.name
            assert sprite.getchannel("A").getbbox() is not None


def test_the_file_holds_what_the_list_of_concepts_says() -> None:
    table = pq.read_table(SPRITES_FILE)
    assert table.schema.equals(SPRITES_SCHEMA)
    listed = {concept["name"]: (concept["plural"], concept["group"]) for concept in read_concepts(CONCEPTS_FILE)}
    packed = {row["name"]: (row["plural"], row["group"]) for row in table.drop([*STYLES]).to_pylist()}
    assert packed == listed


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 250), st.integers(1, 200))
def test_the_split_has_the_asked_sizes_and_no_concept_twice(num_base: int, num_novel: int) -> None:
    base, novel = split_concepts(num_base, num_novel)
    assert (len(base), len(novel)) == (num_base, num_novel)
    assert len({*base, *novel}) == num_base + num_novel
    assert {*base, *novel} <= load_concepts().keys()
    assert (base, novel) == split_concepts(num_base, num_novel)


@pytest.mark.parametrize(("num_base", "num_novel"), [(60, 24), (100, 60), (240, 120)])
def test_base_and_novel_are_spread_over_the_groups_alike(num_base: int, num_novel: int) -> None:
    concepts = load_concepts()
    everything = Counter(concept.group for concept in concepts.values())
    for names in split_concepts(num_base, num_novel):
        groups = Counter(concepts[name].group for name in names)
        for group, count in everything.items():
            expected = len(names) * count / len(concepts)
            assert abs(groups[group] - expected) <= max(3.5, 0.5 * expected), (group, groups)


def test_the_split_is_the_one_of_the_published_numbers() -> None:
    # A change of the salt or of the order would silently make results incomparable.
    base, novel = split_concepts(4, 2)
    assert (base, novel) == (["cherry", "lion", "picture frame", "pill"], ["lipstick", "seat"])


def test_more_concepts_than_there_are_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"asks for 400 base and 200 novel concepts; there are \d+"):
        split_concepts(400, 200)
