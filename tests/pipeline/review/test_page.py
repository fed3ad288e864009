"""The review page in a browser, by mouse, keys and touch; and what happens when a server dies or two people meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from pipeline.errors import StorageError
from pipeline.inspection.gallery import Page, write_gallery
from pipeline.inspection.search import Filter, find_rows
from pipeline.review.decisions import Decision
from pipeline.review.store import read_decisions

ROOT = Path(__file__).resolve().parents[3]
DESKTOP = {"viewport": {"width": 1100, "height": 700}}
PHONE = {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
SLOW_MS = 30_000
"""Of a busy machine."""
TAPS, TAP_MS = 5, 3000
"""How often a button is tapped that does not answer, and how long it has for that."""


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []
    troubles: list[str] = []

    def open_page(url: str, **options: Any) -> Any:
        page = browser.new_page(**(DESKTOP | options))
        page.set_default_timeout(SLOW_MS)
        opened.append(page)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(url)
        page.locator("article").first.wait_for()
        return page

    yield open_page
    for page in opened:
        page.close()
    assert not troubles


def saved(folder: Path) -> list[Decision]:
    broken: Counter[str] = Counter()
    found = read_decisions([folder], broken) if folder.is_dir() else []
    assert not broken
    return sorted(found, key=lambda each: each.at)


def boxes(decision: Decision) -> dict[str, Any]:
    return {
        phrase.text: (phrase.verdict, [tuple(map(round, box)) for box in phrase.boxes]) for phrase in decision.phrases
    }


def is_saved(page: Any) -> None:
    expect(page.locator("#saved")).to_have_text("saved", timeout=SLOW_MS)


def wait_until(page: Any, condition: str) -> None:
    """Wait until a condition holds on the page, whose policy forbids Playwright's own way."""
    end = time.monotonic() + SLOW_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(100)


def point(page: Any, x: float, y: float) -> tuple[float, float]:
    """Return where a pixel of the picture, of 200 × 100, is on the screen."""
    place = page.locator("#canvas").bounding_box()
    return place["x"] + x / 200 * place["width"], place["y"] + y / 100 * place["height"]


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*point(page, *start))
    page.mouse.down()
    page.mouse.move(*point(page, (start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
    page.mouse.move(*point(page, *end))
    page.mouse.up()


def test_by_mouse(serve: Any, visit: Any, tmp_path: Path) -> None:
    page = visit(serve().url)
    expect(page.locator("#progress")).to_have_text("0 of 4 reviewed")
    page.locator("article").first.click()
    drag(page, (50, 50), (60, 45))  # moves the dog
    page.mouse.click(*point(page, 150, 40))  # chooses the cat
    drag(page, (180, 40), (190, 40))  # and makes it wider
    page.locator("#chips button").first.click()
    drag(page, (90, 80), (110, 95))  # another dog
    page.click("[data-do=accept]")
    is_saved(page)
    (decision,) = saved(tmp_path / "reviews")
    found = boxes(decision)
    assert found["dog"][0] == found["red cat"][0] == "right"
    (moved, drawn), (cat,) = found["dog"][1], found["red cat"][1]
    for box, wanted in ((moved, (30, 15, 90, 75)), (drawn, (90, 80, 110, 95)), (cat, (120, 10, 190, 60))):
        assert all(abs(a - b) <= 1 for a, b in zip(box, wanted, strict=True))
    exact = next(phrase for phrase in decision.phrases if phrase.text == "red cat").boxes[0]
    assert exact[:2] == (120, 10.25)  # sides that nobody moved stay to the bit
    expect(page.locator("#at")).to_have_text("2 of 4")
    page.click("[data-do=nothing]")
    page.click("[data-do=reject]")
    page.click("[data-do=add]")
    page.fill("#name", "tree")
    page.click("#naming button")
    page.click("[data-do=rename]")
    page.fill("#name", "oak")
    page.click("#naming button")
    page.click("[data-do=accept]")
    is_saved(page)
    _, nothing, edited = saved(tmp_path / "reviews")
    assert boxes(nothing) == {"bird": ("absent", [])}
    assert boxes(edited) == {"dog": ("absent", []), "tree": ("open", []), "oak": ("open", [])}
    page.click("[data-do=close]")
    expect(page.locator("#progress")).to_have_text("3 of 4 reviewed")
    assert page.locator(".stamp").all_text_contents() == ["✓ reviewed by ann"] * 3


def test_by_keys(serve: Any, visit: Any, tmp_path: Path) -> None:
    page = visit(serve().url)
    page.locator("article").first.focus()
    for key in ("Enter", "Tab", "ArrowRight", "Shift+ArrowDown", "Tab", "x", "1", "d"):
        page.keyboard.press(key)
    page.keyboard.press("z")  # of the box that d drew
    page.keyboard.press("Enter")
    is_saved(page)
    (decision,) = saved(tmp_path / "reviews")
    assert boxes(decision) == {"dog": ("right", [(22, 20, 82, 82)]), "red cat": ("absent", [])}
    page.keyboard.press("n")
    page.keyboard.press("z")  # back to the bird, as it was decided
    is_saved(page)
    expect(page.locator("#at")).to_have_text("2 of 4")
    assert page.locator("#chips .absent").count() == 1
    page.keyboard.press("z")  # and as it came
    assert page.locator("#chips .absent").count() == 0
    assert [each.verdict for each in saved(tmp_path / "reviews")] == ["judged", "judged", "withdrawn"]
    page.keyboard.press("p")
    page.keyboard.type("dog n x z")  # letters of a name are no commands
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    expect(page.locator("#editor")).not_to_be_visible()
    expect(page.locator("#progress")).to_have_text("1 of 4 reviewed")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_by_touch_on_a_phone(serve: Any, visit: Any, tmp_path: Path, scheme: str) -> None:
    page = visit(serve().url, **(PHONE | {"color_scheme": scheme}))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("header").bounding_box()["height"] < 760 / 8
    page.locator("article").nth(1).tap()
    page.locator("#chips button").first.tap()
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [dict(zip("xy", point(page, *place), strict=True)) for place in places]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (110, 10))
    touch("touchMove", (140, 30))
    touch("touchMove", (170, 50))
    touch("touchEnd")
    for button in page.locator("#editor button:visible").all():
        assert button.bounding_box()["height"] >= 34
    expect(page.locator("#chips button")).to_have_text("bird · 2 ×", timeout=SLOW_MS)
    for _ in range(TAPS):
        page.locator("[data-do=accept]").tap()
        try:  # headless Chromium now and then makes no click of a tap that comes right behind a drag
            expect(page.locator("#at")).not_to_have_text("2 of 4", timeout=TAP_MS)
            break
        except AssertionError:
            continue
    is_saved(page)
    (decision,) = saved(tmp_path / "reviews")
    first, drawn = boxes(decision)["bird"][1]
    assert first == (50, 30, 90, 70)
    assert all(abs(a - b) <= 2 for a, b in zip(drawn, (110, 10, 170, 50), strict=True))


def test_hostile_texts_stay_texts(serve: Any, visit: Any, tmp_path: Path) -> None:
    served = serve(title="<script>alert(1)</script>")
    page = visit(served.url)
    page.locator("article").nth(3).click()
    page.click("[data-do=add]")
    page.fill("#name", "<img src=x onerror=alert(3)>")
    page.click("#naming button")
    page.click("[data-do=accept]")
    is_saved(page)
    assert page.locator("img[src=x]").count() == page.locator("article script").count() == 0
    assert saved(tmp_path / "reviews")[0].phrases[-1].text == "<img src=x onerror=alert(3)>"
    again = visit(served.url)
    again.locator(".stamp").wait_for()
    assert "<img src=x onerror=alert(3)>" in again.locator("article").nth(3).text_content()


def test_two_people_see_each_other_and_overwrite_nothing(serve: Any, visit: Any, tmp_path: Path) -> None:
    served = serve()
    ann, ben = visit(served.url), visit(served.url)
    ben.fill("#reviewer", "ben")
    ben.locator("#reviewer").blur()
    ann.click("#review")
    expect(ben.locator("#progress")).to_have_text("0 of 4 reviewed")
    wait_until(ben, "pairs[0].openBy === 'ann'")
    ben.click("#review")  # begins with another pair
    expect(ben.locator("#at")).to_have_text("2 of 4")
    ben.keyboard.press("n")
    is_saved(ben)
    ann.keyboard.press("Enter")
    is_saved(ann)
    wait_until(ann, "pairs[1].judged?.reviewer === 'ben'")
    assert {(each.key, each.reviewer) for each in saved(tmp_path / "reviews")} == {("k0", "ann"), ("k1", "ben")}
    for page in (ann, ben):
        expect(page.locator("#progress")).to_have_text("2 of 4 reviewed", timeout=SLOW_MS)


def test_a_disk_that_is_full_for_a_while(
    serve: Any, visit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve()
    page = visit(served.url)
    page.click("#review")

    def refuse(_: Any) -> None:
        raise StorageError("no space left on device")

    with monkeypatch.context() as full:
        full.setattr(served.store, "add", refuse)
        page.keyboard.press("Enter")
        expect(page.locator("#saved")).to_have_text("1 not saved yet, asking again", timeout=SLOW_MS)
        page.keyboard.press("n")
        expect(page.locator("#saved")).to_have_text("2 not saved yet, asking again", timeout=SLOW_MS)
        assert page.text_content("#progress") == "0 of 4 reviewed"
        assert saved(tmp_path / "reviews") == []
    is_saved(page)
    assert [each.key for each in saved(tmp_path / "reviews")] == ["k0", "k1"]


@pytest.fixture
def start(labels: Path, tmp_path: Path) -> Iterator[Callable[[int], tuple[subprocess.Popen[str], str]]]:
    """Start the command, on a port or, of 0, a free one; it ends with the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(port: int) -> tuple[subprocess.Popen[str], str]:
        words = [sys.executable, "-m", "stages.review", str(labels), "--store", str(tmp_path / "reviews")]
        process = subprocess.Popen(
            [*words, "--order", "stored", "--port", str(port), "--reviewer", "ann"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "4 rows to review" in line
        return process, line.split("→ ")[1].split()[0]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_killed_server_loses_nothing_and_the_page_goes_on_with_the_next(
    start: Any, visit: Any, tmp_path: Path
) -> None:
    process, url = start(0)
    page = visit(url)
    page.click("#review")
    page.keyboard.press("Enter")
    is_saved(page)
    process.kill()
    process.wait()
    assert [each.key for each in saved(tmp_path / "reviews")] == ["k0"]
    page.keyboard.press("n")
    expect(page.locator("#saved")).to_have_text("1 not saved yet, asking again", timeout=SLOW_MS)
    start(int(url.rsplit(":", 1)[1].strip("/")))
    is_saved(page)
    assert [each.key for each in saved(tmp_path / "reviews")] == ["k0", "k1"]
    page.reload()
    expect(page.locator("#progress")).to_have_text("2 of 4 reviewed", timeout=SLOW_MS)


def test_a_page_in_a_file_collects_decisions_and_hands_them_over(labels: Path, visit: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_gallery(find_rows(labels, Filter()), path, Page("labels"), 1_000_000)
    page = visit(path.as_uri())
    page.click("#review")
    page.keyboard.press("Enter")  # which asks for a name
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    page.keyboard.press("n")
    expect(page.locator("#saved")).to_have_text("kept in this browser")
    page.keyboard.press("Escape")
    page.reload()
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "decisions.jsonl")
    found = read_decisions([tmp_path / "decisions.jsonl"], Counter())
    assert [(each.key, each.reviewer) for each in sorted(found, key=lambda each: each.at)] == [
        ("k0", "ann"),
        ("k1", "ann"),
    ]


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_strangers_are_not_answered(serve: Any, decide: Any, rows: Any, tmp_path: Path) -> None:
    served = serve()
    decision = decide(rows[0]).model_dump(mode="json")
    ours = {"X-Glip-Review": "1", "Content-Type": "application/json"}
    assert ask(f"{served.url}/state", Host="evil.example")[0] == 421
    assert ask(f"{served.url}/decisions", decision, **{"Content-Type": "text/plain"})[0] == 403
    assert ask(f"{served.url}/decisions", b"x" * (2 << 20), **ours)[0] == 400
    assert ask(f"{served.url}/decisions", decision | {"row": "0" * 32}, **ours)[0] == 400
    assert ask(f"{served.url}/picture/99")[0] == ask(f"{served.url}/picture/-1")[0] == 404
    assert saved(tmp_path / "reviews") == []
    for _ in range(2):  # an answer that was lost on the way is asked for again
        assert ask(f"{served.url}/decisions", decision, **ours)[0] == 200
    assert len(list((tmp_path / "reviews").glob("*"))) == len(saved(tmp_path / "reviews")) == 1


def test_a_token_opens_the_page_once_and_for_all(serve: Any, visit: Any) -> None:
    token = "a-token-of-twenty-letters"
    served = serve(token=token)
    assert ask(f"{served.url}/state")[0] == ask(f"{served.url}/?token=wrong")[0] == 401
    page = visit(f"{served.url}/?token={token}")
    assert "token" not in page.url
    page.click("#review")
    page.keyboard.press("Enter")
    is_saved(page)
