"""What a model says that it was trained on, and what it calls far from that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.trained_on import FAR, TrainedOn

EMOJI = TrainedOn({"embedded": 12_000}, 96, 96, "emoji scenes")


def test_a_photograph_is_far_from_small_scenes() -> None:
    told = EMOJI.far_from(640, 480)
    assert told == "a picture of 640×480 is far from what the model was trained on (96-px emoji scenes alone)"
    assert EMOJI.far_from(96, 96) == ""
    assert EMOJI.far_from(10, 20) != ""
    assert TrainedOn(words="photographs of Objects365").far_from(64, 64) == ""  # its sizes are not known


@given(sides=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), side=st.integers(1, 20_000))
def test_what_lies_between_the_sides_is_never_far(sides: tuple[int, int], side: int) -> None:
    known = TrainedOn({}, min(sides), max(sides))
    is_far = bool(known.far_from(side, 1))
    assert is_far == (side > FAR * max(sides) or side * FAR < min(sides))


def test_a_later_training_adds_to_an_earlier_one() -> None:
    later = TrainedOn({"embedded": 6000, "mine": 34}, 300, 1024, "mine")
    joined = EMOJI.joined(later)
    assert joined.sources == {"embedded": 12_000, "mine": 34}
    assert (joined.shortest_side, joined.longest_side) == (96, 1024)
    assert str(joined) == "96-1024-px emoji scenes, mine"
    unknown = TrainedOn(words="photographs").joined(EMOJI)
    assert (unknown.shortest_side, unknown.longest_side) == (96, 96)


def test_a_folder_keeps_it(tiny_glip: GLIPConfig, tokenizer: Any, tmp_path: Path) -> None:
    model = GLIP(tiny_glip)
    model.trained_on = EMOJI
    model.save_pretrained(tmp_path / "model", tokenizer)
    assert GLIP.from_pretrained(tmp_path / "model").trained_on == EMOJI
    assert json.loads((tmp_path / "model/config.json").read_text())["trained_on"]["words"] == "emoji scenes"


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"colour": 1},
        {"sources": {"a": "b"}},
        {"shortest_side": 2, "longest_side": 1},
        {"words": 3},
        {"sources": []},
    ],
)
def test_a_broken_entry_is_refused(tiny_glip: GLIPConfig, tmp_path: Path, wrong: Any) -> None:
    GLIP(tiny_glip).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"trained_on": wrong}))
    with pytest.raises(ValueError, match="trained_on"):
        GLIP.from_pretrained(tmp_path)
