"""Sources of params.yaml: readers found by name, options checked like settings, mixtures resolved, paths rooted."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, MissingInputError
from pipeline.prepare.raw import Part, RawTable, SourceContext, Url
from pipeline.prepare.sources import (
    READERS,
    Role,
    check_references,
    find_reader,
    open_sources,
    warn_of_scenes_beside_own_data,
)
from pipeline.settings import load_all
from pipeline.store.records import CaptionRecord, DetectionRecord

ROOT = Path(__file__).resolve().parents[3]
CONFIG = load_all(ROOT / "params.yaml").prepare


def read_probe(
    context: SourceContext,
    *,
    annotations: Url,
    images: Mapping[str, Url],
    shards: tuple[Url, ...] = (),
    split: str = "train",
    limit: int | None = None,
) -> list[RawTable]:
    """Remember what it was told."""
    told.append((context, annotations, images, shards, split, limit))
    return [RawTable(CaptionRecord, lambda rows: iter([Part("all", "all", partial(iter, ()), 0)]), 0)]


told: list[Any] = []


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    told.clear()
    monkeypatch.setitem(READERS, "probe", read_probe)


def sources(role: Role, *entries: dict[str, Any], **changes: Any) -> list[Any]:
    return open_sources(role, dataclasses.replace(CONFIG, **{role: entries}, **changes), seed=5)


PROBE = {"reader": "probe", "annotations": "a.json", "images": {"coco": "c", "vg": "s3://b/vg"}}


def test_records_refer_to_no_picture_that_later_stages_would_refuse(tmp_path: Path) -> None:
    table = tmp_path / "list.tsv"
    table.write_text("caption\turl\na dog\thttp://x/a.jpg\n")
    found: dict[Role, Any] = {
        "web": sources(
            "web",
            {**PROBE, "images": {"coco": "/data/coco", "vg": "s3://b/vg"}},
            {"reader": "url_list", "tables": str(table)},
        ),
        "held_out": sources("held_out", {**PROBE, "images": {"coco": "/elsewhere"}}),
    }
    check_references(found, ["/data", "s3://b", "http://", "https://"])
    named = r"s3://b/vg \(probe\), http:// \(url_list\), https:// \(url_list\); add these, .*\(now: /data\)"
    with pytest.raises(ConfigError, match=named):
        check_references(found, ["/data"])
    with pytest.raises(ConfigError, match=r"/data/coco \(probe\), .*now: none"):
        check_references(found, [])


def test_a_reader_is_told_its_options_its_role_and_its_name() -> None:
    (source,) = sources("web", {**PROBE, "name": "mine", "limit": 7, "repeat": 2}, data_root="s3://bucket/raw")
    ((context, annotations, images, shards, split, limit),) = told
    assert (context.role, context.name, context.seed) == ("web", "mine", 5)
    assert annotations == "s3://bucket/raw/a.json"
    assert images == {"coco": "s3://bucket/raw/c", "vg": "s3://b/vg"}
    assert (shards, split, limit) == ((), "train", 7)
    assert (source.name, source.repeat) == ("mine", 2)
    assert "annotations: a.json" in source.description


def test_credentials_stay_out_of_urls_and_secrets_out_of_descriptions() -> None:
    with pytest.raises(ConfigError) as caught:
        sources("web", {**PROBE, "images": {"coco": "s3://KEY:SECRET@bucket/x"}})
    assert "s3://***@bucket/x has credentials in it" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    (source,) = sources("web", {**PROBE, "annotations": "https://host/a.json?X-Amz-Signature=SECRET"})
    assert "https://host/a.json?***" in source.description
    assert told[0][1] == "https://host/a.json?X-Amz-Signature=SECRET"


def test_absolute_paths_and_urls_stay_as_they_are() -> None:
    sources("web", {**PROBE, "annotations": "/data/a.json", "shards": ["hf://datasets/x/{0..3}.tar", "local.tar"]})
    _, annotations, _, shards, _, _ = told[0]
    assert annotations == "/data/a.json"
    assert shards == ("hf://datasets/x/{0..3}.tar", "./local.tar")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"reader": "nobody"}, r"prepare\.web\[0\]: no reader 'nobody'; readers: .*coco_captions, coco_detection"),
        ({"reader": "no.such:function"}, r"no reader 'no\.such:function': No module named"),
        ({"reader": "json:nothing"}, "no reader 'json:nothing'"),
        ({**PROBE, "annotation": "x"}, r"annotation is not a setting; did you mean annotations\?"),
        ({"reader": "probe", "images": {}}, r"prepare\.web\[0\]\.annotations is missing"),
        ({**PROBE, "annotations": None}, r"annotations is None; expected Url"),
        ({**PROBE, "limit": "many"}, r"limit is 'many'; expected int"),
        ({**PROBE, "images": "folder"}, r"images is 'folder'; expected a mapping"),
        ({**PROBE, "shards": "one.tar"}, r"shards is 'one\.tar'; expected a list"),
    ],
)
def test_wrong_options_are_told_like_wrong_settings(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sources("web", entry)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"web": ({"images": "x"},)}, r"web\[0\] must name a reader or a mixture"),
        ({"web": ({"reader": "probe", "mixture": "m"},)}, r"web\[0\] must name a reader or a mixture"),
        ({"web": ({"mixture": "nothing"},)}, r"web\[0\] names mixture 'nothing'; mixtures: m"),
        ({"web": ({"mixture": "m", "images": "x"},)}, r"images is not a setting"),
        ({"web": ({"mixture": "m", "repeat": 0},)}, r"web\[0\]\.repeat is 0; expected a whole number of at least 1"),
        ({"mixtures": {"m": ({"mixture": "m"},)}}, r"mixtures\.m\[0\] must name a reader, found"),
    ],
)
def test_wrong_entries_are_found_when_the_config_is_loaded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **{"mixtures": {"m": ({"reader": "probe"},)}, **changes})


def test_a_mixture_stands_for_its_sources() -> None:
    mixtures = {"m": ({**PROBE, "name": "a", "repeat": 8}, {**PROBE, "name": "b"})}
    found = sources("web", {"mixture": "m"}, {**PROBE, "name": "c"}, mixtures=mixtures)
    assert [(source.name, source.repeat) for source in found] == [("a", 8), ("b", 1), ("c", 1)]
    found = sources("web", {"mixture": "m", "repeat": 3}, mixtures=mixtures)
    assert [(source.name, source.repeat) for source in found] == [("a", 3), ("b", 3)]


@pytest.mark.parametrize("role", ["dev", "test"])
def test_what_models_are_judged_by_has_names_of_its_own(role: Role) -> None:
    entry = {"reader": "embedded"}
    with pytest.raises(ConfigError, match=f"prepare.{role}: 'embedded' is the name of several sources"):
        sources(role, entry, entry)
    assert len(sources(role, entry, {**entry, "name": "again"})) == 2
    assert len(sources("human", entry, entry)) == 2


def test_a_reader_of_ones_own_is_named_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_readers")
    module.__dict__["read_mine"] = read_probe
    monkeypatch.setitem(sys.modules, "my_readers", module)
    (source,) = sources("web", {**PROBE, "reader": "my_readers:read_mine"})
    assert source.name == "my_readers:read_mine"
    assert find_reader("probe", "") is read_probe


@pytest.mark.parametrize(
    ("reader", "role"), [("coco_detection", "web"), ("coco_captions", "human"), ("coco_captions", "test")]
)
def test_a_reader_in_a_role_that_has_no_use_for_it_is_an_error(reader: str, role: Role, tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    entry = {"reader": reader, "annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}
    with pytest.raises(ConfigError, match=rf"prepare\.{role}\[0\]: reader '{reader}' reads .* expected one that reads"):
        sources(role, entry)


@pytest.mark.parametrize("role", ["human", "web", "dev", "test"])
def test_the_embedded_reader_serves_every_role(role: Role) -> None:
    (source,) = sources(role, {"reader": "embedded"})
    kinds = {"human": 2, "web": 1}
    assert len(source.tables) == kinds.get(role, 3)
    assert {table.record_type for table in source.tables if table.categories} <= {DetectionRecord}
    with pytest.raises(ConfigError, match="has pictures of its own"):
        sources("held_out", {"reader": "embedded"})


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_explains_itself(name: str) -> None:
    assert READERS[name].__doc__


def test_the_odinw_mixtures_differ_in_prompts_and_names_alone() -> None:
    original, manual = CONFIG.mixtures["odinw13"], CONFIG.mixtures["odinw13_manual"]
    assert len({entry["folder"] for entry in original}) == 13
    for first, second in zip(original, manual, strict=True):
        name = first["name"].replace("odinw_", "odinw_manual_")
        assert second == {**first, "name": name, "prompts": "manual"}


def test_benchmarks_are_told_apart_by_their_names() -> None:
    names = [entry["name"] for name in ("paper_benchmarks", "odinw13") for entry in CONFIG.mixtures[name]]
    assert len(set(names)) == len(names) == 25


@pytest.mark.parametrize("name", sorted(CONFIG.mixtures))
def test_the_shipped_mixtures_have_the_options_of_their_readers(name: str, tmp_path: Path) -> None:
    role: Role = "held_out" if name == "paper_benchmarks" else "human"
    for entry in CONFIG.mixtures[name]:
        with pytest.raises(MissingInputError, match=str(tmp_path)):  # the files are all that is missing
            sources(role, dict(entry), data_root=str(tmp_path))


def test_scenes_beside_own_data_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    own, scenes = sources("web", PROBE), sources("dev", {"reader": "embedded"})
    warn_of_scenes_beside_own_data({"human": scenes, "web": scenes, "dev": scenes, "held_out": []})
    warn_of_scenes_beside_own_data({"human": own, "web": own, "dev": own, "test": []})
    assert caplog.text == ""
    warn_of_scenes_beside_own_data({"human": own, "web": own, "dev": scenes, "test": scenes})
    assert "prepare.human, prepare.web: your own data, but prepare.dev, prepare.test: the embedded" in caplog.text
    assert "models are judged by emoji" in caplog.text
    caplog.clear()
    warn_of_scenes_beside_own_data({"human": [*own, *scenes], "web": own, "dev": own})
    assert "prepare.human: the embedded" in caplog.text
    assert "models learn from emoji too" in caplog.text
