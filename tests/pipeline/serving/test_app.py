"""The HTTP side over a real socket: answers, limits and their status codes, several models, metrics."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from glip_model.predictor import GLIPPredictor
from pipeline.serving.answering import Answerer, Asked, Found
from pipeline.serving.app import names_of
from pipeline.serving.limits import Limits, Refusal
from pipeline.serving.local import LocalBackend

SMALL = Limits(max_bytes=200_000, max_pixels=100_000, max_names=5, max_waiting=3)


class Held:
    """A backend that answers when it may."""

    def __init__(self) -> None:
        self.may_answer, self.asked = threading.Event(), threading.Semaphore(0)

    async def models(self) -> Mapping[str, Sequence[str]]:
        return {"slow": ()}

    async def find(self, model: str, asked: Asked) -> Found:
        self.asked.release()
        await asyncio.to_thread(self.may_answer.wait)
        return Found(1, 1, (), 0.1, 1)


@pytest.fixture(scope="module")
def client(serve: Any, answerer: Answerer) -> Iterator[httpx.Client]:
    with serve(LocalBackend({"student": answerer, "other": answerer}), SMALL) as client:
        yield client


def ask(client: httpx.Client, data: bytes | None, **fields: Any) -> httpx.Response:
    files = {} if data is None else {"image": ("a.jpg", data, "image/jpeg")}
    return client.post("/predict", data={"names": "a dog, a cat", "min_score": "0"} | fields, files=files or None)


def test_an_answer_is_what_the_predictor_finds(
    client: httpx.Client, model_folder: Path, jpeg: Callable[..., bytes]
) -> None:
    answer = ask(client, jpeg()).json()
    [expected] = GLIPPredictor.from_pretrained(model_folder, "cpu").predict(
        Image.open(io.BytesIO(jpeg())), ["a dog", "a cat"]
    )
    assert len(answer["boxes"]) == len(expected) > 0
    assert [box["name"] for box in answer["boxes"]] == list(expected.labels)
    assert [box["score"] for box in answer["boxes"]] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    for box, corners in zip(answer["boxes"], expected.boxes_xyxy.tolist(), strict=True):
        assert box["box"] == pytest.approx(corners, abs=0.01)
    assert (answer["model"], answer["height"], answer["width"]) == ("student", 60, 80)


def test_boxes_below_the_score_are_left_out(client: httpx.Client, jpeg: Callable[..., bytes]) -> None:
    scores = [box["score"] for box in ask(client, jpeg()).json()["boxes"]]
    least = sorted(scores)[len(scores) // 2]
    kept = ask(client, jpeg(), min_score=str(least)).json()["boxes"]
    assert [box["score"] for box in kept] == pytest.approx([score for score in scores if score >= least])


def test_models_are_called_by_name(client: httpx.Client, jpeg: Callable[..., bytes]) -> None:
    assert client.get("/models").json() == {"student": [], "other": []}
    assert ask(client, jpeg(), model="other").json()["model"] == "other"
    refused = ask(client, jpeg(), model="<b>")
    assert (refused.status_code, refused.json()["code"]) == (404, "no_such_model")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"data": None}, 400, "no_picture"),
        ({"url": "https://example.org/a.jpg"}, 400, "no_picture"),
        ({"data": None, "url": "https://example.org/a.jpg"}, 403, "no_urls"),
        ({"data": b"no picture"}, 415, "not_a_picture"),
        ({"data": b"x" * 210_000}, 413, "too_many_bytes"),
        ({"data": b"x" * 500_000}, 413, "too_many_bytes"),
        ({"names": " , "}, 422, "names"),
        ({"names": "a, b, c, d, e, f"}, 422, "names"),
        ({"names": "word " * 1000}, 422, "names"),
        ({"names": "x" * 10_001}, 422, "names"),
        ({"min_score": "2"}, 422, "field"),
    ],
)
def test_what_cannot_be_answered_says_why(
    client: httpx.Client, jpeg: Callable[..., bytes], change: dict[str, Any], status: int, code: str
) -> None:
    refused = ask(client, **({"data": jpeg()} | change))
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert refused.json()["message"]
    assert ask(client, jpeg()).status_code == 200  # and the next one gets its answer


def test_pixels_are_counted_before_anything_is_unpacked(client: httpx.Client) -> None:
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    assert len(out.getvalue()) < SMALL.max_bytes
    refused = ask(client, out.getvalue())
    assert (refused.status_code, refused.json()["code"]) == (413, "too_many_pixels")


def test_a_body_without_a_length_is_cut_off(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"y" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    refused = client.post("/predict", content=chunks(), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (413, "too_many_bytes")


def test_other_names_for_this_machine_are_refused(client: httpx.Client) -> None:
    assert client.get("/models", headers={"Host": "evil.example"}).status_code == 400


def test_more_requests_than_may_wait_are_refused_at_once(serve: Any, jpeg: Callable[..., bytes]) -> None:
    held = Held()
    with serve(held, SMALL) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, client, jpeg()) for _ in range(3)]
        for _ in waiting:
            assert held.asked.acquire(timeout=60)
        refused = ask(client, jpeg())
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        assert "glip_waiting_requests 3.0" in client.get("/metrics").text
        held.may_answer.set()
        assert [each.result().status_code for each in waiting] == [200] * 3
        assert ask(client, jpeg()).status_code == 200


def test_the_time_of_a_request_has_an_end(serve: Any, jpeg: Callable[..., bytes]) -> None:
    held = Held()
    with serve(held, Limits(timeout_s=0.2)) as client:
        refused = ask(client, jpeg())
        assert (refused.status_code, refused.json()["code"]) == (504, "timeout")
        held.may_answer.set()


def test_metrics_count_what_was_answered(client: httpx.Client, jpeg: Callable[..., bytes]) -> None:
    def count() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith('glip_requests_total{model="student"'))

    before = count()
    ask(client, jpeg())
    ask(client, b"no picture")
    assert count() == before + 2
    assert 'glip_requests_total{model="student",status="415"}' in client.get("/metrics").text


def test_the_description_of_requests_names_fields_and_errors(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert set(described["responses"]) >= {"200", "413", "415", "422", "503", "504"}
    assert client.get("/docs").status_code == 200


def test_names_stand_once() -> None:
    assert names_of("a dog, A Dog,\ncat,", Limits(), ()) == ("a dog", "cat")
    assert names_of("", Limits(), ("frog",)) == ()
    with pytest.raises(Refusal):
        names_of("", Limits(), ())


def test_requests_that_come_together_are_answered_together(answerer: Answerer, jpeg: Callable[..., bytes]) -> None:
    asked = [Asked(jpeg(seed=i), ("a dog",), 0.0, 100_000) for i in range(3)]
    asked.insert(1, Asked(b"no picture", ("a dog",), 0.0, 100_000))
    asked.append(Asked(jpeg(seed=9), ("a cat", "a frog"), 0.0, 100_000))
    together = answerer(asked)
    assert isinstance(together[1], Refusal)
    for mine, request in zip(together, asked, strict=True):
        [alone] = answerer([request])
        if isinstance(mine, Found) and isinstance(alone, Found):
            assert [name for *_, name in mine.boxes] == [name for *_, name in alone.boxes]
            assert [s for _, s, _ in mine.boxes] == pytest.approx([s for _, s, _ in alone.boxes], abs=1e-4)
            assert mine.batch == 5
        else:
            assert isinstance(alone, Refusal)
            assert request.data == b"no picture"
