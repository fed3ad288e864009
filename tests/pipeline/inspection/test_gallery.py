"""The page of pairs in a real browser: what it shows, finds, hides, and what strangers' captions cannot do to it."""

from __future__ import annotations

import base64
import io
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from pipeline.errors import ShardError
from pipeline.inspection.gallery import Page, write_gallery
from pipeline.inspection.search import Filter, find_rows
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import shard_name, write_shard

MAX_PIXELS = 1_000_000


def picture(width: int = 48, height: int = 32, colour: str = "teal") -> ImageRef:
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return ImageRef(bytes=out.getvalue())


def pair(key: str, caption: str, *phrases: Phrase, image: ImageRef | None = None, **values: Any) -> GroundingRecord:
    head = {"key": key, "caption": caption, "source": "web", "height": 32, "width": 48} | values
    return GroundingRecord(image=image or picture(), phrases=phrases, **head)


def phrase(caption: str, text: str, *boxes: tuple[float, ...], reason: str | None = None) -> Phrase:
    start = caption.index(text)
    scored = tuple(ScoredBox(xyxy=(box[0], box[1], box[2], box[3]), score=box[4]) for box in boxes)
    return Phrase(
        text=text, char_spans=((start, start + len(text)),), boxes=scored, is_plural=False, reject_reason=reason
    )


DOG = "a dog and a cat"
PAIRS = [
    pair(
        "k1",
        DOG,
        phrase(DOG, "dog", (12, 8, 36, 24, 0.9), (0, 0, 6, 8, 0.55)),
        phrase(DOG, "cat", reason="below_min_score"),
    ),
    pair("k2", "😀 a red dog", phrase("😀 a red dog", "red dog", (0, 0, 24, 32, 0.6))),
    pair("k3", "a bird", phrase("a bird", "bird", reason="below_min_score"), reject_reason="no_boxes"),
    pair("k4", "broken", image=ImageRef(bytes=b"no picture"), reject_reason="image_unreadable"),
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_page(
        pairs: list[GroundingRecord],
        title: str = "labels",
        max_pixels: int = MAX_PIXELS,
        extras: tuple[str, ...] = (),
    ) -> Path:
        write_shard(tmp_path / "labels" / shard_name(0), pairs, GroundingRecord, extras=extras)
        out = tmp_path / "page" / "labels.html"
        assert write_gallery(find_rows(tmp_path / "labels", Filter()), out, Page(title), max_pixels) == len(pairs)
        return out

    return write_page


@pytest.fixture
def visit(browser: Any) -> Any:
    """Open a page; complain in the end about errors in it and about what it asked of the network."""
    opened, troubles = [], []

    def open_page(path: Path, state: str = "", **options: Any) -> Any:
        page = browser.new_page(**options)
        opened.append(page)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda sent: sent.url.startswith(("file:", "data:")) or troubles.append(sent.url))
        page.goto(f"{path.as_uri()}{state}")
        return page

    yield open_page
    for page in opened:
        page.close()
    assert not troubles


def keys(page: Any) -> list[str]:
    heads = page.locator("article .head").all_text_contents()
    return [head.partition(" · ")[0] for head in heads]


def test_pairs_with_their_phrases_scores_and_reasons(write: Any, visit: Any) -> None:
    page = visit(write(PAIRS))
    assert page.title() == "labels"
    assert page.text_content("#count") == "4 of 4 pairs"
    assert page.locator("article .caption").all_text_contents() == [
        "a dog and a cat",
        "😀 a red dog",
        "a bird",
        "broken",
    ]
    items = [card.locator("li").all_text_contents() for card in page.locator("article").all()]
    assert items == [["dog 0.90, 0.55", "cat – below_min_score"], ["red dog 0.60"], ["bird – below_min_score"], []]
    assert page.locator("mark").all_text_contents() == ["dog", "cat", "red dog", "bird"]
    assert page.locator("article .head").nth(3).text_content() == "k4 · web · image_unreadable"
    assert page.locator("article .none").all_text_contents() == ["image_unreadable"]


def test_boxes_lie_over_the_picture_where_they_belong_until_they_are_turned_off(write: Any, visit: Any) -> None:
    page = visit(write(PAIRS))
    card = page.locator("article").first
    image, box = card.locator("img").bounding_box(), card.locator("rect.line").first.bounding_box()
    shares = [
        (box["x"] - image["x"]) / image["width"],
        (box["y"] - image["y"]) / image["height"],
        box["width"] / image["width"],
        box["height"] / image["height"],
    ]
    np.testing.assert_allclose(shares, [12 / 48, 8 / 32, 24 / 48, 16 / 32], atol=0.03)
    assert card.locator(".tag").all_text_contents() == ["dog 0.90", "dog 0.55"]
    tag = card.locator(".tag").first
    assert abs(tag.bounding_box()["x"] - box["x"]) < 5
    page.uncheck("#names")
    assert card.locator("svg").is_visible()
    assert not tag.is_visible()
    page.uncheck("#boxes")
    page.mouse.move(0, 0)
    assert not card.locator("svg").is_visible()
    card.hover()
    assert card.locator("svg").is_visible()


def test_searched_phrases_are_lit_and_so_is_what_is_pointed_at(write: Any, visit: Any) -> None:
    page = visit(
        write([pair("k", DOG, phrase(DOG, "dog", (1, 1, 9, 9, 0.9)), phrase(DOG, "cat", (20, 1, 30, 9, 0.8)))])
    )
    assert page.locator(".lit").count() == 0
    page.fill("#phrase", "cat")
    expect(page.locator("rect.line.lit")).to_have_count(1)
    assert page.locator("rect.line.lit").get_attribute("x") == "20"
    page.locator("li").first.hover()
    assert page.locator("rect.line.lit").get_attribute("x") == "1"
    page.locator("h1").hover()
    assert page.locator("rect.line.lit").get_attribute("x") == "20"


def test_boxes_change_the_pixels_around_them_alone_and_show_on_a_picture_of_their_colour(
    write: Any, visit: Any
) -> None:
    yellow = pair(
        "k", "a red dog", phrase("a red dog", "red dog", (0, 0, 24, 32, 0.6)), image=picture(colour="#ffd400")
    )
    for row in (PAIRS[1], yellow):
        page = visit(write([row]))
        page.uncheck("#names")
        frame = page.locator("article .frame").first

        def look(frame: Any = frame) -> np.ndarray:
            return np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB"), np.int32)

        before = look()
        page.uncheck("#boxes")
        page.locator("h1").hover()
        changed = np.abs(look() - before).sum(2) > 60
        width = changed.shape[1]
        assert not changed[:, round(0.55 * width) :].any()  # the box is the left half
        assert changed[:, round(0.5 * width) - 3 : round(0.5 * width) + 3].any()


def test_no_pair_says_what_to_change(write: Any, visit: Any) -> None:
    page = visit(write(PAIRS))
    page.fill("#phrase", "zebra")
    page.locator("#score").fill("0.5")
    page.select_option("#which", "boxes")
    expect(page.locator("#empty p")).to_contain_text(
        "“zebra”, or lower the score from 0.50, or show more than those with"
    )
    page.click("#everything")
    assert page.text_content("#count") == "4 of 4 pairs"
    assert not page.locator("#empty").is_visible()


def test_cards_stand_close_to_one_another(write: Any, visit: Any) -> None:
    sizes = [(48, 32), (32, 48), (48, 16), (40, 40), (20, 48), (48, 30)] * 4
    rows = [pair(f"k{i}", DOG, image=picture(*size), width=size[0], height=size[1]) for i, size in enumerate(sizes)]
    page = visit(write(rows))
    for width in (1280, 700):
        page.set_viewport_size({"width": width, "height": 800})
        end = time.monotonic() + 30
        while not all(0 < gap < 30 for gap in gaps(page)):
            assert time.monotonic() < end
            page.wait_for_timeout(50)


def gaps(page: Any) -> list[float]:
    """Return how far cards are from those above them."""
    places = [card.bounding_box() for card in page.locator("article").all()]
    found = []
    for column in {place["x"] for place in places}:
        mine = sorted((place for place in places if place["x"] == column), key=lambda place: place["y"])
        found += [low["y"] - high["y"] - high["height"] for high, low in itertools.pairwise(mine)]
    return found


def test_search_slider_and_order_choose_what_is_shown(write: Any, visit: Any) -> None:
    page = visit(write(PAIRS))
    page.fill("#phrase", "DOG")
    expect(page.locator("#count")).to_have_text("2 of 4 pairs")
    assert keys(page) == ["k1", "k2"]
    page.locator("#score").fill("0.7")
    assert keys(page) == ["k1"]
    assert page.locator("article li").all_text_contents() == ["dog 0.90", "cat – below_min_score"]
    assert page.locator("rect.line").count() == 1
    page.fill("#phrase", "")
    page.locator("#score").fill("0")
    page.select_option("#which", "none")
    expect(page.locator("#count")).to_have_text("2 of 4 pairs")
    assert keys(page) == ["k3", "k4"]
    page.select_option("#which", "boxes")
    page.select_option("#order", "worst")
    assert keys(page) == ["k2", "k1"]
    page.select_option("#order", "best")
    assert keys(page) == ["k1", "k2"]
    link = page.url.partition("#")[2]
    assert keys(visit(Path(page.url.partition("#")[0].removeprefix("file://")), f"#{link}")) == ["k1", "k2"]


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "\u2028alert(1)\u2029",
    "{{ 7*7 }} {% raw %}",
    "\"'`${alert(1)}",
    "]]><svg onload=alert(1)>",
    "&lt;b&gt; &amp;",
]


def test_what_strangers_wrote_is_shown_and_never_run(write: Any, visit: Any) -> None:
    pairs = [
        pair(f"{number} {text}", f"a {text} dog", phrase(f"a {text} dog", f"{text} dog", (0, 0, 9, 9, 0.9)))
        for number, text in enumerate(HOSTILE)
    ]
    pairs = [pair(row.key, row.caption, *row.phrases, source=HOSTILE[0]) for row in pairs]
    page = visit(write(pairs, title=HOSTILE[0]))
    page.wait_for_timeout(300)  # for what would have been run; ``visit`` complains about it
    assert page.title() == HOSTILE[0]
    texts = page.locator("article .caption").evaluate_all("all => all.map((each) => each.textContent)")
    assert texts == [row.caption for row in pairs]
    assert page.locator("article script, article img[src=x], li svg").count() == 0


def test_a_script_that_got_in_would_not_run_and_reach_nobody(write: Any, browser: Any) -> None:
    path = write(PAIRS)
    text = path.read_text(encoding="utf-8")
    evil = "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x'>"
    path.write_text(text.replace("<noscript>", f"{evil}<noscript>"), encoding="utf-8")
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(path.as_uri())
    page.wait_for_timeout(200)
    assert page.title() == "labels"
    assert sum("Content Security Policy" in text for text in refused) == 2
    page.close()


def test_thousands_of_pairs_without_stutter(write: Any, visit: Any) -> None:
    many = [
        pair(f"k{i}", f"{DOG} {i}", *PAIRS[0].phrases, image=picture(colour=f"hsl({i % 360},60%,50%)"))
        for i in range(4000)
    ]
    path = write(many)
    assert path.stat().st_size < 8 << 20
    page = visit(path)
    assert page.text_content("#count") == "4,000 of 4,000 pairs"
    assert page.locator("article").count() < 300  # the rest is made when it is scrolled to
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.locator("article").nth(61).wait_for(state="attached")
    page.evaluate("window.scrollTo(0, 0)")
    page.locator("#score").fill("0.3")
    assert page.locator("article").count() < 300
    page.fill("#phrase", "dog")
    for _ in range(3):
        page.mouse.wheel(0, 20_000)
        page.wait_for_timeout(100)
    assert page.locator("img").first.evaluate("each => each.decode().then(() => each.naturalWidth)") == 48


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_by_day_by_night_and_on_a_phone(write: Any, visit: Any, scheme: str) -> None:
    page = visit(write(PAIRS), viewport={"width": 360, "height": 640}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colours = page.evaluate(
        "(({ color, backgroundColor }) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    text, ground = (np.array([int(c) for c in value[4:-1].split(",")]) for value in colours)
    assert abs(int(text.mean()) - int(ground.mean())) > 180
    assert (ground.mean() < 60) == (scheme == "dark")
    assert page.locator("header").bounding_box()["height"] < 640 / 6
    assert page.locator("rect.line").first.is_visible()  # without a touch
    assert not page.locator("#filters").is_visible()
    page.click("#fold")
    assert page.locator("#score").is_visible()
    page.locator("article").first.click()
    assert page.locator("#editor").is_visible()


def test_large_pictures_are_shrunk_or_left_out(write: Any, visit: Any) -> None:
    large = pair("large", "a sky", image=picture(2000, 1000), width=2000, height=1000)
    path = write([large], max_pixels=2_000_000)
    page = visit(path)
    size = page.locator("img").evaluate("each => each.decode().then(() => [each.naturalWidth, each.naturalHeight])")
    assert size == [320, 160]
    data = page.locator("img").get_attribute("src").partition("base64,")[2]
    assert base64.b64decode(data)[:2] == b"\xff\xd8"
    page = visit(write([large], max_pixels=1_999_999))
    assert page.locator(".none").all_text_contents() == ["image_too_large"]


def test_a_broken_shard_leaves_the_page_of_before(write: Any, tmp_path: Path) -> None:
    path = write(PAIRS)
    before = path.read_bytes()
    (shard,) = (tmp_path / "labels").glob("*.parquet")
    found = list(find_rows(tmp_path / "labels", Filter()))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ShardError):
        write_gallery(found, path, Page("labels"), MAX_PIXELS)
    assert path.read_bytes() == before


def test_pictures_that_cannot_be_shown_are_counted(tmp_path: Path) -> None:
    """Rows that are rejected may have none."""
    rejected = pair("k2", "b", image=ImageRef(bytes=b"no picture"), reject_reason="image_unreadable")
    rows = [pair("k1", "a", image=ImageRef(path="/etc/passwd")), rejected, pair("k3", "c")]
    write_shard(tmp_path / shard_name(0), rows, GroundingRecord)
    defects: Counter[str] = Counter()
    write_gallery(find_rows(tmp_path, Filter()), tmp_path / "a.html", Page("a"), MAX_PIXELS, defects=defects)
    assert defects == {"picture_unreadable": 1}


def test_boxes_say_how_many_teachers_agree_and_in_which_pass(write: Any, visit: Any) -> None:
    names = ("<b>one</b>", "two")
    boxes = (
        ScoredBox(xyxy=(12.3, 8, 36, 24), score=0.9, teachers=names, agreement=2 / 3, in_pass=1),
        ScoredBox(xyxy=(0, 0, 6, 8), score=0.5, teachers=("two",), agreement=1 / 3, in_pass=2),
    )
    odd = ScoredBox(xyxy=(1, 2, 9, 9), score=0.4, teachers=None, agreement=math.nan)
    found = Phrase(text="dog", char_spans=((2, 5),), boxes=boxes, is_plural=False)
    other = Phrase(text="cat", char_spans=((12, 15),), boxes=(odd,), is_plural=False)
    page = visit(write([pair("k1", DOG, found, other)], extras=("teachers", "agreement", "in_pass")))
    card = page.locator("article").first
    assert card.locator("li").all_text_contents() == [
        "dog 0.90 (67 % agree, pass 1), 0.50 (33 % agree, pass 2)",
        "cat 0.40",
    ]
    card.click()
    expect(page.locator("#at")).to_have_text("1 of 1")
    page.locator("#canvas").press("Tab")
    expect(page.locator("#at")).to_have_text("1 of 1 · 67 % agree, pass 1, by <b>one</b>, two")
    page.locator("#canvas").press("ArrowRight")  # whoever moves a box answers for it
    expect(page.locator("#at")).to_have_text("1 of 1")
    page.locator("#canvas").press("z")
    expect(page.locator("#at")).to_have_text("1 of 1 · 67 % agree, pass 1, by <b>one</b>, two")
