"""A real Label Studio on loopback, for ``real_editors.py``."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 1800
"""Seconds that a server has for its start; it makes its tables first, which takes minutes."""


@dataclass(frozen=True)
class LabelStudio:
    """A running server, and who may ask it."""

    address: str
    user: str
    password: str
    token: str

    def ask(self, method: str, path: str, values: Any = None) -> bytes:
        """Return the answer to a request; ends the program where it is refused."""
        data = None if values is None else json.dumps(values).encode()
        head = {"Authorization": f"Token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                answer: bytes = response.read()
        except urllib.error.HTTPError as error:
            raise SystemExit(f"Label Studio: {method} {path}: {error}: {error.read()[:2000]!r}") from error
        return answer


@contextlib.contextmanager
def running(env: Path, work: Path, pictures: Path) -> Iterator[LabelStudio]:
    """Run Label Studio, with a user of this run, for a block.

    Args:
        env: its virtual environment; its data rest there in ``data``, for making its tables takes minutes.
        work: for its log.
        pictures: folder whose pictures it may serve.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user, password = f"{secrets.token_hex(6)}@example.org", secrets.token_hex(10)
    server = LabelStudio(f"http://127.0.0.1:{port}", user, password, secrets.token_hex(20))
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(env.resolve() / "data"),
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(pictures),
        "LABEL_STUDIO_USERNAME": server.user,
        "LABEL_STUDIO_PASSWORD": server.password,
        "LABEL_STUDIO_USER_TOKEN": server.token,
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
    }
    words = "start --no-browser --internal-host 127.0.0.1 --enable-legacy-api-token --log-level WARNING --port"
    command = [str(env.resolve() / "bin" / "label-studio"), *words.split(), str(port)]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (work / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=inherited | settings, stdout=log, stderr=log, cwd=work)
        try:
            _wait_for(process, server, work / "server.log")
            yield server
        finally:
            process.terminate()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], server: LabelStudio, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            server.ask("GET", "/health")
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"Label Studio did not start: {log.read_text()[-3000:]}") from error
            time.sleep(1)
        else:
            return


def submit_by_clicks(server: LabelStudio, chromium: str, paths: Sequence[str]) -> None:
    """Open tasks in its editor, and press Submit in each, as a person who finds all boxes right."""
    if not paths:
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f"{server.address}/user/login")
        page.fill("input[name=email]", server.user)
        page.fill("input[name=password]", server.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/login" not in url)
        for path in paths:
            page.goto(server.address + path)
            button = page.get_by_role("button", name="submit").first
            with page.expect_response(lambda answer: answer.request.method == "POST" and "/annotations" in answer.url):
                button.click()
        browser.close()
