"""The Space's one file, as a Space runs it, on loopback."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from glip_model.glip import GLIP

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_space_serves_the_page_and_answers(tiny_glip: Any, tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    GLIP(tiny_glip).save_pretrained(tmp_path / "student", tokenizer)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked_for = {"MODELS": str(tmp_path / "student"), "HOST": "127.0.0.1", "PORT": str(port), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, ROOT / "cluster/space/app.py"], env=os.environ | asked_for)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while True:
                assert process.poll() is None
                try:
                    client.get("/health")
                    break
                except httpx.ConnectError:
                    time.sleep(0.2)
            assert "Drop a picture here" in client.get("/").text
            out = io.BytesIO()
            Image.new("RGB", (90, 60), "red").save(out, "PNG")
            answer = client.post("/predict", data={"names": "a dog"}, files={"image": out.getvalue()})
            assert answer.status_code == 200
            assert (answer.json()["model"], answer.json()["width"]) == ("student", 90)
    finally:
        process.terminate()
        process.wait(60)
