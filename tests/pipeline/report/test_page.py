"""The page: numbers as computed, names as text, nothing from the network, readable by day, by night and on a phone."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from pipeline.evaluation.judged import Judged
from pipeline.report.ablations import Ablations
from pipeline.report.charts import PERCENT, Line, Plot
from pipeline.report.labels import LabelFigures
from pipeline.report.page import Findings, Report, examine, make_gallery, render_page
from pipeline.report.provenance import Provenance
from pipeline.report.rounds import Round, Worse
from pipeline.report.tables import CategoryRow
from pipeline.store.records import Category

NOTHING = LabelFigures([], [], [], [])


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def report_of(judged: Sequence[Judged], hostile: str, config: Any) -> Report:
    """Return a report in which every name is hostile that can be."""
    plot = Plot(hostile, "x", "y", PERCENT, PERCENT, (Line(hostile, "part-base", ((0, 50), (100, 20))),), mark=28)
    origin = Provenance(
        code={"commit": "<b>deadbeef</b>"},
        params=hostile,
        data=[(hostile, hostile, "1 MB", "2")],
        speeds=[(hostile, {hostile: "1"})],
        machine={"processor": hostile},
        versions={"python": hostile},
    )
    models = tuple(dict.fromkeys(model for each in judged for model in each.models))
    measures = {"test": {"detection": {hostile: {"all": {"AP": 1.0, hostile: 2.0}}}}}
    return Report(
        models=models,
        split="test",
        findings=[examine(each, config, 0) for each in judged],
        metrics=dict.fromkeys(models, measures),
        gallery=make_gallery(judged[0], config.gallery_rows),
        rounds=rounds_of(models, hostile),
        ablations=Ablations(
            ("name", "what", "round", "web pairs", "novel AP"),
            [
                {"name": name, "what": hostile, "round": hostile, "web pairs": f"{pairs}", "novel AP": f"{pairs / 100}"}
                for name, pairs in (("base", 6000), ("web_3000", 3000), ("web_1500", 1500), (hostile, 6000))
            ],
        ),
        labels=LabelFigures([(hostile, "1")], [(hostile, [(hostile, 3, 12.0)])], [plot], [("base", 80.0, 90.0)]),
        provenance=origin,
        notes=[hostile],
    )


def rounds_of(models: Sequence[str], hostile: str) -> list[Round]:
    """Return two rounds, the second with worse labels, and one that was skipped."""
    shares = {"novel": 50.0, "base": 90.0, "rare": 40.0}
    worse = (Worse("novel", 80.0, 50.0, 12), Worse(hostile, 90.0, 10.0, 5))
    student = next(iter(models[1:2]), "student")
    return [
        Round(student, "teacher", None, 1000, 2000, shares, shares, 12.0),
        Round(hostile, student, None, 1100, 2100, shares, shares, 10.0, 5.0, 30.0, worse),
        Round(f"{hostile} 2", hostile, hostile),
    ]


@pytest.fixture
def report(detection: Judged, grounding: Judged, toys: SimpleNamespace) -> Report:
    return report_of([detection, grounding], toys.HOSTILE, toys.CONFIG)


@pytest.fixture
def open_report(report: Report, tmp_path: Path, visit: Callable[..., Any]) -> Callable[..., Any]:
    def open_page(shown: Report = report, **options: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render_page(shown), encoding="utf-8")
        return visit(path, **options)

    return open_page


def test_the_page_shows_names_as_text(report: Report, toys: SimpleNamespace) -> None:
    seen = Page(render_page(report))
    assert seen.tags.count("script") == 1  # its own
    assert "b" in seen.tags  # of numbers
    text = "".join(seen.text)
    assert text.count(toys.HOSTILE) > 10
    assert "<b>deadbeef</b>" in text
    assert not [name for name, _ in seen.attributes if name.startswith("on")]


def test_the_page_loads_nothing(report: Report) -> None:
    page = render_page(report)
    assert not re.search(r"https?:|url\(|@import", page)
    seen = Page(page)
    assert not {"link", "iframe", "object", "embed"} & set(seen.tags)
    addresses = [value or "" for name, value in seen.attributes if name in ("src", "srcset", "data")]
    assert len(addresses) == 3 * 3
    for address in addresses:
        kind, _, data = address.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).width >= 100
    assert all((value or "").startswith("#") for name, value in seen.attributes if name == "href")


def test_every_part_is_there_and_nothing_is_not_a_number(report: Report) -> None:
    page = render_page(report)
    seen = Page(page)
    parts = (
        "measures",
        "gains",
        "rounds",
        "ablations",
        "curves",
        "categories",
        "pictures",
        "confusions",
        "labels",
        "origin",
    )
    for part in parts:
        assert ("id", part) in seen.attributes
        assert ("href", f"#{part}") in seen.attributes
    assert "prefers-color-scheme: dark" in page
    text = "".join(Page(re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)).text)
    words = re.findall(r"\w+", text.lower())
    assert not {"nan", "inf", "none", "undefined"} & set(words)
    assert not re.search(r'="[^"]*\bnan\b', page)
    assert seen.tags.count("polyline") == 2 * 3 + 2 * 2 + 1 + 1  # over recall, rounds, web pairs and the threshold
    assert "On novel concepts the student reaches 75.2 AP: +49.5 over the teacher" in text
    assert "Left out" not in text


def test_a_report_of_nothing_says_so_in_every_part(report: Report) -> None:
    empty = Provenance({"code": "not a git checkout"}, "", [], [], {}, {})
    nothing = Report(("teacher",), "test", [], {"teacher": {}}, [], [], Ablations(), NOTHING, empty, ["no records"])
    text = "".join(Page(render_page(nothing)).text)
    assert text.count("Left out") == 8
    assert "No metrics of test" in text
    assert "no records" in text


def test_models_without_any_detection_make_a_page(detection: Judged, tmp_path: Path, toys: SimpleNamespace) -> None:
    found = {"teacher": [], "student": []}
    judged = toys.judged_of(tmp_path, "detection", detection.records, found, toys.CATEGORIES)
    text = "".join(Page(render_page(report_of([judged], "x", toys.CONFIG))).text)
    assert "+0.0 over the teacher" in text
    assert "0 of 0 false alarms" in text


def test_one_model_alone_and_phrases_alone(grounding: Judged, toys: SimpleNamespace) -> None:
    alone = replace(
        grounding,
        predictions={"teacher": grounding.predictions["teacher"]},
        results={"teacher": grounding.results["teacher"]},
    )
    seen = Page(render_page(report_of([alone], "x", toys.CONFIG)))
    text = "".join(seen.text)
    assert "the teacher reaches 33.3 R@1 (95 % interval" in text
    assert "Gain of" not in text
    assert text.count("there is no detection benchmark") == 2
    assert seen.tags.count("button") == 2 * 3 + 3  # truth and teacher of three pictures, and those of the dialog


def test_lvis_has_frequencies_for_parts_and_no_whiskers(
    detection: Judged, tmp_path: Path, toys: SimpleNamespace
) -> None:
    vocabulary = [Category(id=5, name="cat", frequency="c"), Category(id=9, name="rat", frequency="r")]
    found = {"a": [(0, 5, toys.LEFT, 0.9)], "b": [(0, 9, toys.RIGHT, 0.9)]}
    judged = toys.judged_of(tmp_path / "lvis", "detection", detection.records, found, vocabulary)
    page = render_page(report_of([judged], "x", toys.CONFIG))
    assert "No intervals: LVIS" in page
    assert 'class="whisker"' not in page
    assert "Rare concepts" in page
    assert page.count("<polyline") == 3 * 2 + 2  # all, rare and common of two models, web pairs, and the labels'


def test_a_benchmark_that_some_models_lack_compares_the_others(
    detection: Judged, grounding: Judged, tmp_path: Path, toys: SimpleNamespace
) -> None:
    found = {model: [(0, 5, toys.LEFT, 0.9)] for model in ("teacher", "control")}
    part = toys.judged_of(tmp_path / "part", "detection", detection.records, found, toys.CATEGORIES)
    page = render_page(report_of([grounding, part], "x", toys.CONFIG))  # the first benchmark has a student
    assert "how much control gains over teacher" in page
    assert 'class="model-2"' in page  # the control's colour, though it comes second here


def test_pictures_are_counted_apart_from_their_captions(
    grounding: Judged, tmp_path: Path, toys: SimpleNamespace
) -> None:
    twice = [record for record in grounding.records for _ in range(400)]
    judged = toys.judged_of(tmp_path / "twice", "grounding", twice, {"a": [(0, 0, toys.LEFT, 0.9)]})
    text = "".join(Page(render_page(report_of([judged], "x", toys.CONFIG))).text)
    assert "toys, 3 pictures, 1,200 captions" in text
    assert "A on 3 test pictures" in text
    assert examine(grounding, toys.CONFIG, 0).size == "3 pictures"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 680, 900, 1280])
def test_readable_by_day_by_night_and_on_a_phone(open_report: Any, scheme: str, width: int) -> None:
    page = open_report(viewport={"width": width, "height": 700}, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    overfull = "all => all.filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.textContent)"
    assert page.locator(".box, .measure, ol.bars li").evaluate_all(overfull) == []
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert min(contrasts.values()) >= 4.5, contrasts
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(22, 23, 27)") == (scheme == "dark")


CONTRASTS = """() => {
  const linear = (c) => (c <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(rgb[i] / 255), 0);
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = light(numbers(getComputedStyle(document.body).backgroundColor));
  const found = {};
  for (const each of document.querySelectorAll("main *:not(pre)")) {
    if (!each.textContent.trim() || each.closest("dialog")) continue;
    const value = light(numbers(getComputedStyle(each).color));
    found[`${each.tagName} ${each.className}`] = (Math.max(value, ground) + 0.05) / (Math.min(value, ground) + 0.05);
  }
  return found;
}"""


def test_pictures_open_large_and_go_on_by_keys(open_report: Any) -> None:
    page = open_report()
    loaded = "all => Promise.all(all.map((each) => each.decode().then(() => each.naturalWidth)))"
    assert min(page.locator(".shot img").evaluate_all(loaded)) >= 100
    large, told = page.locator("#large"), page.locator("#large p")
    expect(large).to_be_hidden()
    page.locator(".shot").nth(1).focus()
    page.keyboard.press("Enter")
    expect(told).to_have_text("picture 1, teacher · 2 of 9")
    page.keyboard.press("ArrowRight")
    expect(told).to_have_text("picture 1, student · 3 of 9")
    page.get_by_label("picture before").click()
    page.get_by_label("picture before").click()
    expect(told).to_have_text("picture 1, truth · 1 of 9")
    page.wait_for_function("document.querySelector('#large img').getBoundingClientRect().height > 400")
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()
    expect(page.locator(".shot").nth(0)).to_be_focused()
    page.locator(".shot").nth(8).click()
    large.locator("img").click()
    expect(large).to_be_hidden()


def test_folds_open_and_marks_stay_within_their_charts(open_report: Any) -> None:
    page = open_report()
    fold = page.locator("#measures details")
    assert not fold.locator("table").is_visible()
    fold.locator("summary").focus()
    page.keyboard.press("Enter")
    assert fold.locator("table").is_visible()
    for strip in page.locator("svg.strip:has(circle)").all():
        frame, dot = strip.bounding_box(), strip.locator("circle").bounding_box()
        assert frame["x"] - 6 <= dot["x"] <= frame["x"] + frame["width"]


def test_a_thousand_categories_stay_usable(open_report: Any, report: Report) -> None:
    rows = [
        CategoryRow(f"thing {i} of a long name", "base", {"teacher": 1.0, "student": 2.0}, 60 - i / 10)
        for i in range(1203)
    ]
    found = replace(report.findings[0], categories=rows, models=("teacher", "student"))
    page = open_report(replace(report, findings=[found]), viewport={"width": 375, "height": 700})
    bars = page.locator("#categories ol.bars li")
    assert bars.count() == 1203
    assert [bar.is_visible() for bar in bars.all()[:60]] == [True] * 40 + [False] * 20  # both ends, then the fold
    assert page.locator("#categories").bounding_box()["height"] < 4000
    page.get_by_text("1163 categories between").click()
    assert bars.nth(600).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_page_prints_in_black_on_white(open_report: Any) -> None:
    page = open_report(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    style = page.evaluate("(({ color, backgroundColor }) => [color, backgroundColor])(getComputedStyle(document.body))")
    assert style == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert not page.locator("nav").is_visible()


def test_a_capture_of_the_whole_page_has_its_bars_and_a_phone_all_parts_of_the_navigation(open_report: Any) -> None:
    page = open_report(viewport={"width": 375, "height": 700})
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    bars = [bar.bounding_box() for bar in page.locator("ol.bars:visible rect").all()]
    wide = [bar for bar in bars if bar["width"] > 4 and bar["y"] > 700]
    assert wide
    ground = shot.getpixel((2, 2))
    for bar in wide:
        assert shot.getpixel((round(bar["x"] + bar["width"] / 2), round(bar["y"] + bar["height"] / 2))) != ground
    for link in page.locator("nav a").all():
        place = link.bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= 375


def test_several_detection_benchmarks_are_folded_but_the_first(open_report: Any, report: Report) -> None:
    first: Findings = report.findings[0]
    page = open_report(replace(report, findings=[first, replace(first, source="odinw_other")]))
    folds = page.locator("#curves details").evaluate_all("all => all.map((each) => each.open)")
    assert folds == [True, False]
