"""Published checkpoints from a hub on this machine: fetched by the real client, checked, converted once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from glip_model import published_hub
from glip_model.config import PRESETS, GLIPConfig, glip_t
from glip_model.glip import GLIP
from glip_model.predictor import GLIPPredictor
from glip_model.published import to_published
from glip_model.published_hub import VARIANTS, Variant, convert, converted, fetch, find_tokenizer

REPOSITORY = "GLIPModel/GLIP"
ROOT = Path(__file__).resolve().parents[2]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Hub:
    """Serves the files of a folder as the hub serves large ones; tells what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.hashes = folder, list[str](), dict[str, str]()
        self.commit = "0" * 40
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(False)

            def do_GET(self) -> None:
                self.answer(True)

            def answer(self, has_body: bool) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                path = hub.folder / self.path.rpartition("/")[2]
                if f"/{REPOSITORY}/resolve/" not in self.path or not path.is_file():
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("X-Repo-Commit", hub.commit)
                self.send_header("ETag", f'"{hub.hashes.get(path.name) or sha256(path)}"')
                self.send_header("Content-Length", str(path.stat().st_size))
                self.end_headers()
                if has_body:
                    with path.open("rb") as file:
                        shutil.copyfileobj(file, self.wfile)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def fetched(self) -> list[str]:
        """Return the files whose content was asked for."""
        return [each.rpartition("/")[2] for each in self.asked if each.startswith("GET ") and ".pth" in each]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "served").mkdir()
    hub = Hub(tmp_path / "served")
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


@pytest.fixture
def reached(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Let the client in this process find the hub, and caches of its own."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(published_hub, "TOKENIZERS", published_hub.TOKENIZERS[1:])
    return hub


@pytest.fixture
def tiny(reached: Hub, tiny_glip: GLIPConfig, monkeypatch: pytest.MonkeyPatch) -> GLIP:
    """Publish a small model as a variant."""
    config = replace(tiny_glip, text=replace(tiny_glip.text, encoding="joint", frozen=False), inclusive_corners=True)
    monkeypatch.setitem(PRESETS, "tiny", lambda: config)
    monkeypatch.setitem(VARIANTS, "tiny", Variant("tiny.pth", "tiny", "noise"))
    torch.manual_seed(0)
    model = GLIP(config)
    torch.save({"model": to_published(model.state_dict(), config)}, reached.folder / "tiny.pth")
    return model


def test_a_variant_is_fetched_and_converted_once(tiny: GLIP, reached: Hub) -> None:
    predictor = GLIPPredictor.from_pretrained(REPOSITORY, variant="tiny")
    assert all(torch.equal(value, tiny.state_dict()[name]) for name, value in predictor.model.state_dict().items())
    assert str(predictor.model.trained_on) == "photographs of noise"
    folder = converted(REPOSITORY, "tiny")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    GLIPPredictor.from_pretrained(REPOSITORY, variant="tiny")
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert reached.fetched() == ["tiny.pth"]


def test_without_the_hub_the_cache_answers(tiny: GLIP, reached: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted(REPOSITORY, "tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert converted(REPOSITORY, "tiny") == folder


def test_a_new_version_of_a_file_is_another_folder(tiny: GLIP, reached: Hub) -> None:
    first = converted(REPOSITORY, "tiny")
    with torch.no_grad():
        tiny.head.bias0.add_(1)
    torch.save({"model": to_published(tiny.state_dict(), tiny.config)}, reached.folder / "tiny.pth")
    reached.commit = "1" * 40
    second = converted(REPOSITORY, "tiny")
    assert second != first
    assert torch.equal(GLIP.from_pretrained(second).head.bias0, tiny.head.bias0)


def test_a_damaged_file_is_refused(tiny: GLIP, reached: Hub, tmp_path: Path) -> None:
    reached.hashes["tiny.pth"] = "0" * 64
    with pytest.raises(
        ValueError, match=r"its SHA-256 is [0-9a-f]{64}, and the hub tells 0{64}: it is damaged; delete"
    ):
        convert(fetch(REPOSITORY, "tiny"), "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("reached")
def test_what_is_not_there_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"'glip_x' is no variant of the published models; expected one of glip_t_a"):
        converted(REPOSITORY, "glip_x")
    with pytest.raises(ValueError, match=r"does not deliver glip_tiny_model_o365.pth: .* run: glip convert glip_tiny"):
        converted(REPOSITORY, "glip_t_b")
    with pytest.raises(
        ValueError, match=r"glip convert hub:GLIPModel/GLIP models/glip_t --variant glip_t, or GLIPPred"
    ):
        GLIPPredictor.from_pretrained(REPOSITORY)
    with pytest.raises(ValueError, match=r"no tokenizer could be loaded from there"):
        find_tokenizer(30522, "/nowhere")


@pytest.mark.slow
def test_the_command_converts_a_whole_glip_t(hub: Hub, tmp_path: Path) -> None:
    config = glip_t()
    with torch.device("meta"):
        shapes = GLIP(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(value.shape, generator=generator).sub_(0.5).to(value.dtype) for name, value in shapes.items()
    }
    name = VARIANTS["glip_t"].file
    torch.save({"model": to_published(weights, config)}, hub.folder / name)
    command = ["-m", "stages.glip", "convert", f"hub:{REPOSITORY}", str(tmp_path / "glip_t"), "--variant", "glip_t"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"SHA-256 {sha256(hub.folder / name)}" in done.stdout + done.stderr
    model = GLIP.from_pretrained(tmp_path / "glip_t")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "glip_t/config.json").read_text())["trained_on"]["words"].startswith(
        "photographs of O"
    )
    assert (tmp_path / "glip_t/tokenizer.json").is_file()  # it is not on this hub: a package has it
