"""Phrases of captions as classes of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.store.ontology import Ontology

TABLE = {
    "forklift": ["fork lift truck"],
    "safety vest": [],
    "dog": [],
    "glass": [],
    "glasses": ["spectacles"],
    "person": ["worker", "man"],
    "knife": [],
    "hot dog": None,
    "hi-vis": "safety vest",
}


@pytest.fixture
def ontology() -> Ontology:
    found = Ontology.of_settings(TABLE)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("forklift", "forklift"),
        ("an old yellow Forklift", "forklift"),
        ("the fork lift trucks", "forklift"),
        ("fork-lift truck", "forklift"),
        ("truck", None),
        ("orange safety vests", "safety vest"),
        ("vest", None),
        ("HI-VIS", "safety vest"),
        ("dogs", "dog"),
        ("hot dogs", None),
        ("a big hot dog", None),
        ("hot dog stand", None),
        ("glasses", "glasses"),
        ("a glass", "glass"),
        ("wine glass", "glass"),
        ("Workers", "person"),
        ("three people", "person"),
        ("fishermen", None),
        ("two men", "person"),
        ("old men", "person"),
        ("kitchen knives", "knife"),
        ("", None),
        ("!!", None),
    ],
)
def test_a_phrase_means_the_longest_name_that_it_ends_in(ontology: Ontology, phrase: str, name: str | None) -> None:
    assert ontology.category(phrase) == name


def test_classes_keep_their_order_and_files_say_the_same(ontology: Ontology, tmp_path: Path) -> None:
    assert ontology.classes == ("forklift", "safety vest", "dog", "glass", "glasses", "person", "knife")
    (tmp_path / "names.json").write_text(json.dumps(TABLE), encoding="utf-8")
    assert Ontology.read(str(tmp_path / "names.json")) == ontology
    assert Ontology.read("cat, dog").category("black cats") == "cat"
    assert Ontology.of_settings({"cat": [], "dog": []}) == Ontology.read("cat, dog")
    assert Ontology.of_settings({}) is None


words = st.lists(
    st.sampled_from(["red", "hot", "dog", "dogs", "safety", "vest", "man", "glass"]), min_size=1, max_size=5
)


@given(words)
def test_words_in_front_of_a_name_change_nothing_but_a_longer_name(said: list[str]) -> None:
    ontology = Ontology.of_settings({name: value for name, value in TABLE.items() if name != "hot dog"})
    assert ontology is not None
    # The slow way: all endings, longest first, singular by hand.
    singular = [{"dogs": "dog"}.get(word, word) for word in said]
    names = {"dog": "dog", "safety vest": "safety vest", "glass": "glass", "man": "person"}
    endings = (" ".join(singular[start:]) for start in range(len(said)))
    assert ontology.category(" ".join(said)) == next((names[each] for each in endings if each in names), None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"dog": None}, "no names"),
        ({"dog": ["puppy"], "wolf": ["Puppy"]}, "stands for both"),
        ({"fork-lift": "a", "fork lift": "b"}, "stands for both"),
        ({"!!": []}, "no words"),
        ({"dog": 3}, "expected a prompt and its class"),
    ],
)
def test_what_is_no_ontology_is_told(names: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ontology.of_settings(names)
