"""Ray Serve around the models: copies that die under load, models by name, what cannot be served."""

from __future__ import annotations

import socket
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.errors import ConfigError
from pipeline.serving.answering import Answerer, Asked, Found, ModelPlace
from pipeline.serving.job import Scale, copies_of, serving
from pipeline.serving.limits import Limits

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLIENTS, REQUESTS = 4, 40


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_no_request_is_lost_when_copies_die(
    ray_running: None, model_folder: Path, answerer: Answerer, jpeg: Callable[..., bytes], port: int
) -> None:
    models = {name: ModelPlace(str(model_folder), "cpu", threads=1) for name in ("student", "teacher")}
    pictures = [jpeg(seed=i) for i in range(REQUESTS)]
    begun = threading.Semaphore(0)

    def ask(client: httpx.Client, data: bytes, model: str) -> httpx.Response:
        begun.release()
        form = {"names": "a dog, a cat", "min_score": "0", "model": model}
        return client.post("/predict", data=form, files={"image": data})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray Serve, in this process
        with (
            serving(models, Scale(replicas=1, cpus=0, batch=4), Limits(timeout_s=300), "127.0.0.1", port) as url,
            httpx.Client(base_url=url, timeout=400) as client,
            ThreadPoolExecutor(CLIENTS) as pool,
        ):
            assert client.get("/models").json() == {"student": [], "teacher": []}
            assert ask(client, pictures[0], "teacher").json()["model"] == "teacher"
            running = [pool.submit(ask, client, data, "student") for data in pictures]
            for _ in range(REQUESTS // 4):
                assert begun.acquire(timeout=300)
            copies = copies_of("student")
            assert copies
            for kill in copies:
                kill()
            answers = [each.result() for each in running]
            assert [each.status_code for each in answers] == [200] * REQUESTS
            assert f'glip_requests_total{{model="student",status="200"}} {REQUESTS}.0' in client.get("/metrics").text
    for data, answer in zip(pictures, answers, strict=True):
        [expected] = answerer([Asked(data, ("a dog", "a cat"), 0.0, 10**6)])
        assert isinstance(expected, Found)
        found = [box["score"] for box in answer.json()["boxes"]]
        assert found == pytest.approx([score for _, score, _ in expected.boxes], abs=1e-4)


def test_a_model_that_cannot_be_loaded_is_told(ray_running: None, tmp_path: Path, port: int) -> None:
    models: dict[str, Any] = {"nothing": ModelPlace(str(tmp_path), "cpu")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            pytest.raises(ConfigError, match="the models cannot be served"),
            serving(models, Scale(cpus=0), Limits(), "127.0.0.1", port),
        ):
            pass


def test_what_would_be_waited_for_without_end_is_refused(ray_running: None, model_folder: Path, port: int) -> None:
    models = {"student": ModelPlace(str(model_folder))}
    with (
        pytest.raises(ConfigError, match="take 32 GPUs"),
        serving(models, Scale(gpus=32), Limits(), "127.0.0.1", port),
    ):
        pass
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ConfigError, match="name another --port"),
        serving(models, Scale(), Limits(), "127.0.0.1", port),
    ):
        pass
