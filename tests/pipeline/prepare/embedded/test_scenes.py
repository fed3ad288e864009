"""Composed scenes: boxes fit what is drawn, objects stay in sight, chance comes from the generator alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.prepare.embedded import scenes
from pipeline.prepare.embedded.scenes import MAX_SIDE_SHARE, MIN_SIDE_SHARE, MIN_VISIBLE_SHARE, compose_scene
from pipeline.prepare.embedded.sprites import load_concepts

CONCEPTS = list(load_concepts().values())
WEIGHTS = [1 / len(CONCEPTS)] * len(CONCEPTS)
SIZES = st.sampled_from([64, 96, 128])
SEEDS = st.integers(0, 2**63)


def compose(seed: int, size: int = 96, most: int = 5, fewest: int = 1) -> scenes.Scene:
    return compose_scene(np.random.default_rng(seed), CONCEPTS, WEIGHTS, size, (fewest, most))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw on black, every object in one grey of its own: what a pixel shows can then be read off."""
    monkeypatch.setattr(scenes, "_background", lambda rng, size: Image.new("RGB", (size, size)))
    vary = scenes._vary
    count = iter(range(1, 10**9))

    def vary_grey(*args: Any) -> Image.Image:
        sprite = vary(*args)
        alpha = sprite.getchannel("A").point(lambda value: 255 if value > scenes.VISIBLE_ALPHA else 0)
        grey = Image.new("RGB", sprite.size, (next(count) % 251 + 1,) * 3)
        grey.putalpha(alpha)
        return grey

    monkeypatch.setattr(scenes, "_vary", vary_grey)


@pytest.mark.usefixtures("plain")
def test_a_box_is_tight_around_what_is_drawn() -> None:
    for seed in range(60):
        scene = compose(seed, most=1)
        (placed,) = scene.objects
        drawn = np.asarray(scene.image)[..., 0] > 0
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        assert placed.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.usefixtures("plain")
def test_every_object_can_be_seen_in_the_picture() -> None:
    for seed in range(60):
        scene = compose(seed, most=6, fewest=3)
        pixels = np.asarray(scene.image)[..., 0]
        assert len(np.unique(pixels[pixels > 0])) == len(scene.objects)


def test_visible_parts_are_counted_over_all_that_lies_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[tuple[np.ndarray[Any, Any], tuple[float, ...]]] = []
    draw = scenes._Canvas.draw

    def record(canvas: Any, sprite: Image.Image, mask: Any, box: Any) -> None:
        masks.append((mask, box))
        draw(canvas, sprite, mask, box)

    monkeypatch.setattr(scenes._Canvas, "draw", record)
    hidden_some = 0
    for seed in range(150):
        masks.clear()
        compose(seed, most=6, fewest=4)
        top = np.full((96, 96), -1)
        for number, (mask, box) in enumerate(masks):
            for y, x in np.argwhere(mask):
                top[int(box[1]) + y, int(box[0]) + x] = number
        for number, (mask, _) in enumerate(masks):
            share = (top == number).sum() / mask.sum()
            assert share >= MIN_VISIBLE_SHARE
            hidden_some += share < 1
    assert hidden_some > 20  # overlap does happen


@settings(max_examples=60, deadline=None)
@given(SEEDS, SIZES)
def test_objects_lie_inside_the_picture_and_are_of_the_asked_size(seed: int, size: int) -> None:
    scene = compose(seed, size)
    assert scene.image.size == (size, size)
    assert scene.image.mode == "RGB"
    assert 1 <= len(scene.objects) <= 5
    for placed in scene.objects:
        x1, y1, x2, y2 = placed.box
        assert 0 <= x1 < x2 <= size
        assert 0 <= y1 < y2 <= size
        # Rotation by up to 25° makes the box of a square 1.33 times as wide; thin things shrink.
        assert 0.5 * MIN_SIDE_SHARE * size <= max(x2 - x1, y2 - y1) <= 1.4 * MAX_SIDE_SHARE * size + 2
        assert placed.center == ((x1 + x2) / 2, (y1 + y2) / 2)
        assert placed.side == pytest.approx(((x2 - x1) * (y2 - y1)) ** 0.5)


def test_a_seed_makes_the_same_scene_and_another_seed_another() -> None:
    first, again, other = compose(1), compose(1), compose(2)
    assert first.encode() == again.encode()
    assert first.objects == again.objects
    assert first.encode() != other.encode()


def test_counts_and_plurals_occur() -> None:
    drawn = [compose(seed, most=3) for seed in range(200)]
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3}
    repeated = sum(len({id(placed.concept) for placed in scene.objects}) < len(scene.objects) for scene in drawn)
    assert 20 < repeated < 120


def test_weights_decide_what_is_drawn() -> None:
    weights = [0.0, 0.7, 0.3, 0.0]
    rng = np.random.default_rng(0)
    names = [compose_scene(rng, CONCEPTS[:4], weights, 64, (1, 1)).objects[0].concept.name for _ in range(400)]
    assert set(names) == {CONCEPTS[1].name, CONCEPTS[2].name}
    assert names.count(CONCEPTS[1].name) == pytest.approx(280, abs=40)


def test_both_styles_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    styles = []
    vary = scenes._vary
    concept = CONCEPTS[0]

    def watch(rng: np.random.Generator, sprite: Image.Image, size: int) -> Image.Image:
        styles.append(concept.sprites.index(sprite))
        return vary(rng, sprite, size)

    monkeypatch.setattr(scenes, "_vary", watch)
    for seed in range(40):
        compose_scene(np.random.default_rng(seed), [concept], [1.0], 64, (1, 1))
    assert set(styles) == {0, 1}


def test_backgrounds_vary() -> None:
    pictures = [np.asarray(scenes._background(np.random.default_rng(seed), 64), float) for seed in range(40)]
    means = np.array([picture.mean((0, 1)) for picture in pictures])
    assert (means.std(0) > 20).all()
    # Flat backgrounds would let a model find objects by any edge.
    assert np.mean([picture.std((0, 1)).max() > 5 for picture in pictures]) > 0.8


def test_the_encoded_picture_is_close_to_the_drawn_one() -> None:
    scene = compose(5, 128)
    decoded = np.asarray(Image.open(io.BytesIO(scene.encode())).convert("RGB"), float)
    assert np.abs(decoded - np.asarray(scene.image, float)).mean() < 8
