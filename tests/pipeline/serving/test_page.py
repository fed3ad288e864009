"""The page in a real browser: drop a picture, type names, move the slider, see boxes."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from pipeline.serving.answering import Answerer, Asked
from pipeline.serving.limits import Limits
from pipeline.serving.local import LocalBackend

DROP = """([data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
COLOURED = """() => {
  const canvas = document.getElementById("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) count += Math.max(data[i], data[i + 1], data[i + 2]) -
    Math.min(data[i], data[i + 1], data[i + 2]) > 100 ? 1 : 0;
  return count;
}"""
"""Counts the pixels of strong colours: boxes, on a grey picture."""
TIMEOUT = 120_000


@pytest.fixture
def server(serve: Any, answerer: Answerer) -> Iterator[httpx.Client]:
    with serve(LocalBackend({"student": answerer}), Limits(max_pixels=100_000)) as client:
        yield client


@pytest.fixture
def page(server: httpx.Client, browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.set_default_timeout(TIMEOUT)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(str(server.base_url))
    expect(page.locator("#model option")).to_have_count(1, timeout=TIMEOUT)
    yield page
    page.close()
    assert errors == []


@pytest.fixture
def grey(jpeg: Callable[..., bytes]) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(240, 180))).convert("L").save(out, "PNG")
    return out.getvalue()


def drop(page: Any, data: bytes, name: str = "a.png", kind: str = "image/png") -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name, kind])


def test_a_dropped_picture_gets_its_boxes_and_the_slider_takes_them_away(
    page: Any, grey: bytes, answerer: Answerer, tmp_path: Any
) -> None:
    [found] = answerer([Asked(grey, ("a dog", "a cat"), 0.05, 10**6)])
    scores = [score for _, score, _ in found.boxes]  # type: ignore[union-attr]
    page.fill("#names", "a dog, a cat")
    drop(page, grey)
    shown = sum(score >= 0.3 for score in scores)
    expect(page.locator("#status")).to_have_text(re.compile(rf"^{shown} of {len(scores)} boxes"), timeout=TIMEOUT)
    assert shown > 0
    assert page.evaluate(COLOURED) > 100
    expect(page.locator("#found li")).to_have_count(shown)
    page.screenshot(path=tmp_path / "page.png")
    for least in (sorted(scores)[-2], 1.0):
        page.locator("#score").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", least
        )
        held = float(page.locator("#score").input_value())
        expect(page.locator("#found li")).to_have_count(sum(score >= held for score in scores))
    assert page.evaluate(COLOURED) == 0


def test_other_names_are_asked_for_by_the_button(page: Any, grey: bytes) -> None:
    drop(page, grey)
    expect(page.locator("#status")).to_have_text(re.compile("Type what to find"))
    page.fill("#names", "a frog")
    page.click("#again")
    expect(page.locator("#status")).to_have_text(re.compile("boxes; the model took"), timeout=TIMEOUT)
    assert {text.rsplit(" ", 1)[0] for text in page.locator("#found li").all_inner_texts()} <= {"a frog"}


def test_what_is_no_picture_and_what_is_too_large_is_told(page: Any, jpeg: Callable[..., bytes]) -> None:
    page.fill("#names", "a dog")
    drop(page, b"nonsense")
    expect(page.locator("#status")).to_have_text(re.compile("no picture that this browser can show"), timeout=TIMEOUT)
    drop(page, jpeg(500, 400), "b.jpg", "image/jpeg")
    expect(page.locator("#status")).to_have_text(re.compile("500×400 pixels; the limit is 100000"), timeout=TIMEOUT)


def test_names_are_text(page: Any, grey: bytes) -> None:
    page.fill("#names", "<img src=x onerror=alert(1)>")
    drop(page, grey)
    expect(page.locator("#status")).to_have_text(re.compile("boxes"), timeout=TIMEOUT)
    assert page.locator("#found img").count() == 0
