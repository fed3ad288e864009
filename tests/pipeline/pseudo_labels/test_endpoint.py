"""A teacher behind HTTP: what it is asked, and what becomes of answers that misbehave."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glip_model.images import ImageError
from glip_model.prompts import category_prompt
from pipeline.errors import ConfigError, MissingInputError
from pipeline.pseudo_labels.endpoint import EndpointTeacher, read_answer
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import describe_teacher, open_teacher
from pipeline.store.endpoint import MAX_ANSWER_BYTES, Endpoint
from pipeline.store.records import ROW_REJECT_REASONS, DetectionRecord, ImageRef
from pipeline.store.vocabulary import read_names

PROMPT = category_prompt(["red hat", "dog"])
GOOD = {"boxes": [{"phrase": "Dog", "box": [0, 100, 500, 1000], "score": 0.75}]}


def said(content: object) -> bytes:
    text = content if isinstance(content, str) else json.dumps(content)
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def teacher(server: Any, pauses: list[float]) -> EndpointTeacher:
    settings = Endpoint(server.url, "eyes", retries=3, timeout_s=5.0, requests_per_minute=1e6, max_side=64)
    return EndpointTeacher(settings, pauses.append)


def look(teacher: EndpointTeacher) -> Any:
    (found,) = teacher.ground([Image.new("RGB", (200, 100), "red")], [PROMPT])
    return found


def test_a_picture_and_its_phrases_are_sent_and_boxes_come_back_in_pixels(
    teacher: EndpointTeacher, server: Any
) -> None:
    server.say(said(GOOD))
    found = look(teacher)
    assert found.labels == ("dog",)
    assert found.boxes_xyxy.tolist() == [[0, 10, 100, 100]]
    assert found.scores.tolist() == [0.75]
    ((headers, body),) = server.asked
    assert "Authorization" not in headers
    text, image = body["messages"][0]["content"]
    assert '["red hat", "dog"]' in text["text"]
    data = base64.b64decode(image["image_url"]["url"].partition("base64,")[2])
    assert Image.open(io.BytesIO(data)).size == (64, 32)
    assert body["model"] == "eyes"


def test_it_is_asked_again_while_it_fails_for_reasons_that_may_pass(
    teacher: EndpointTeacher, server: Any, pauses: list[float]
) -> None:
    server.say(503, (429, b"", {"Retry-After": "40"}), 0, said(GOOD))
    assert look(teacher).labels == ("dog",)
    assert len(server.asked) == 4
    assert max(pauses) >= 20
    server.say((429, b"", {"Retry-After": "soon"}))
    with pytest.raises(MissingInputError, match="no answer in 4 attempts"):
        look(teacher)


@pytest.mark.parametrize("status", [301, 302, 400, 401, 404])
def test_what_asking_again_does_not_change_is_told_at_once(teacher: EndpointTeacher, server: Any, status: int) -> None:
    server.say((status, b"", {"Location": f"{server.url}/elsewhere"}))
    with pytest.raises(MissingInputError, match=f"status {status}"):
        look(teacher)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b'{"choices": []}',
        said("I see nothing."),
        said({"boxes": "none"}),
        said({"boxes": [{"phrase": "cat", "box": [0, 0, 1, 1]}]}),
        said([{"phrase": "dog", "box": [5, 5, 1, 1]}]),
        said([{"phrase": "dog", "box": [0, 0, 1]}]),
        said([{"phrase": "dog", "box": [0, 0, 1, 1], "score": 7}]),
        b"[" * 100_000,
    ],
)
def test_answers_that_say_nothing_are_asked_for_again_and_cost_their_picture_alone(
    teacher: EndpointTeacher, server: Any, answer: bytes
) -> None:
    server.say(answer, said(GOOD))
    assert look(teacher).labels == ("dog",)
    server.say(answer)
    failed = look(teacher)
    assert isinstance(failed, ImageError)
    assert failed.reason in ROW_REJECT_REASONS


def test_an_endless_answer_is_cut(teacher: EndpointTeacher, server: Any) -> None:
    server.say(b"x" * (MAX_ANSWER_BYTES + 10), said(GOOD))
    assert look(teacher).labels == ("dog",)


@pytest.mark.parametrize(
    "text",
    [
        '```json\n[{"label": "dog", "bbox_2d": [0, 0, 500, 500]}]\n```',
        'Here they are: {"result": [{"name": " DOG ", "bbox": [0, 0, 500, 500], "score": 0.5}]} Bye.',
        '{"boxes": [{"phrase": "dog", "box": [0, 0, 500, 500]}, {"phrase": "cow", "box": [1, 1, 2, 2]}, {}]}',
    ],
)
def test_boxes_are_found_in_what_models_like_to_say_around_them(text: str) -> None:
    found = read_answer(text, PROMPT, (100, 200))
    assert found.boxes_xyxy.tolist() == [[0, 0, 100, 50]]
    assert found.labels == ("dog",)
    assert len(read_answer('{"boxes": []}', PROMPT, (100, 200))) == 0
    assert read_answer(text, PROMPT, (100, 200), "pixels").boxes_xyxy.tolist() == [[0, 0, 200, 100]]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["boxes", "phrase", "box"]), inner),
        max_leaves=12,
    )
)
def test_whatever_comes_back_is_boxes_inside_the_picture_or_a_message(value: Any) -> None:
    try:
        found = read_answer(json.dumps(value), PROMPT, (100, 200))
    except ValueError:
        return
    assert bool((found.boxes_xyxy >= 0).all())
    assert bool((found.boxes_xyxy[:, 2:] <= 200).all())


def test_rows_without_a_usable_answer_keep_their_reason(
    teacher: EndpointTeacher,
    server: Any,
    label_config: PseudoLabelConfig,
    decode: Any,
    picture: Callable[..., bytes],
) -> None:
    server.say(said("no"), said("no"), said("no"), said("no"), said(GOOD))
    rows = [
        DetectionRecord(key=key, image=ImageRef(bytes=picture()), height=24, width=32, source="s", objects=())
        for key in "ab"
    ]
    labeller = PseudoLabeller(teacher, replace(label_config, batch_size=1), decode)
    first, second = labeller.answer(labeller.ask_names(rows, read_names("dog")))
    assert (first.reject_reason, first.objects) == ("answer_unusable", ())
    assert [item.category_id for item in second.objects] == [1]


def test_requests_keep_to_the_rate(server: Any, pauses: list[float]) -> None:
    server.say(said(GOOD))
    slow = EndpointTeacher(Endpoint(server.url, "eyes", requests_per_minute=1), pauses.append)
    slow.ground([Image.new("RGB", (8, 8))] * 3, [PROMPT] * 3)
    assert sorted(round(pause) for pause in pauses) == [60, 120]


def test_a_file_describes_it_and_the_key_comes_from_the_environment(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "endpoint.yaml"
    path.write_text(f"endpoint: {server.url}\nmodel: eyes\nkey_variable: THE_KEY\n")
    with pytest.raises(MissingInputError, match="set THE_KEY"):
        open_teacher(str(path))
    monkeypatch.setenv("THE_KEY", "secret")
    server.say(said(GOOD))
    teacher: Any = open_teacher(str(path))
    look(teacher)
    assert server.asked[0][0]["Authorization"] == "Bearer secret"
    before = describe_teacher(str(path))
    assert "secret" not in json.dumps(before)
    path.write_text(f"endpoint: {server.url}\nmodel: eyes\nrequests_per_minute: 5\n")
    assert describe_teacher(str(path)) == before
    path.write_text(f"endpoint: {server.url}\nmodel: ears\n")
    assert describe_teacher(str(path)) != before


@pytest.mark.parametrize(
    "text",
    [
        "model: eyes\n",
        "endpoint: file:///etc/passwd\nmodel: eyes\n",
        "endpoint: http://me:word@host/v1\nmodel: eyes\n",
        "endpoint: http://host\nmodel: eyes\nkey: secret\n",
        "endpoint: http://host\nmodel: eyes\nat_once: 0\n",
        "[]",
        "[",
    ],
)
def test_files_that_describe_no_endpoint_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "endpoint.yaml").write_text(text)
    with pytest.raises((ConfigError, MissingInputError)):
        open_teacher(str(tmp_path / "endpoint.yaml"))
