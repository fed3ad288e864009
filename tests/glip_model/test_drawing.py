"""Where labels go."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glip_model.drawing import COLOURS, LabelledBox, _place_label, draw_boxes


def overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


sides = st.floats(0, 400, width=32)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(10, 120), sides, sides), max_size=6))
def test_labels_stay_inside_and_apart_while_there_is_room(wishes: list[tuple[float, float, float]]) -> None:
    size, taken = (480, 4800), []
    for width, x, y in wishes:
        place = _place_label((width, 20), (x, y, x + 50, y + 50), size, taken)
        assert 0 <= place[0] < place[2] <= size[0]
        assert 0 <= place[1] < place[3] <= size[1]
        assert not any(overlap(place, other) for other in taken)
        taken.append(place)


def test_label_without_room_below_stays_in_the_picture() -> None:
    place = _place_label((100, 20), (450, 90, 470, 95), (480, 100), [(0, 0, 480, 99)])
    assert place == (379, 79, 479, 99)


def test_boxes_have_an_edge_on_pictures_of_their_own_colour() -> None:
    for group, colour in enumerate(COLOURS):
        drawn = draw_boxes(Image.new("RGB", (500, 400), colour), [LabelledBox((100, 200, 300, 350), "", group=group)])
        along = {drawn.getpixel((x, 300)) for x in range(90, 110)}
        assert (255, 255, 255) in along
        assert len(along) == 2
