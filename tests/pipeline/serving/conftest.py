"""A tiny model in a folder, served in this process on loopback."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from glip_model.glip import GLIP
from pipeline.serving.answering import Answerer, ModelPlace
from pipeline.serving.app import Backend, make_app
from pipeline.serving.limits import Limits


@pytest.fixture(scope="session")
def model_folder(tiny_glip: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model of random weights whose boxes pass the threshold."""
    torch.manual_seed(0)
    model = GLIP(tiny_glip).eval()
    with torch.no_grad():
        model.head.bias0.fill_(0.5)
        model.head.text_projection.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "student"
    model.save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def answerer(model_folder: Path) -> Answerer:
    return Answerer(ModelPlace(str(model_folder), "cpu", threads=1))


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    def make(width: int = 80, height: int = 60, seed: int = 0) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((width, height)).save(out, "JPEG", quality=95)
        return out.getvalue()

    return make


@contextmanager
def on_loopback(backend: Backend, limits: Limits) -> Iterator[httpx.Client]:
    """Serve a backend, as a browser would reach it."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # who comes before the server has started waits
    server = uvicorn.Server(uvicorn.Config(make_app(backend, limits), log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=120) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    return on_loopback
