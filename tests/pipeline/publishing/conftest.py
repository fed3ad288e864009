"""A hub on this machine that takes what the real client sends: repositories, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "hf_averysecrettokenofthetests"
REGULAR = (".json", ".md", ".py", ".txt")
"""What is sent inside of commits; all else goes as large files, each by itself."""


class LoopbackHub:
    """Keeps what is pushed; answers the upload calls of the hub's own API, large files by Git LFS."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.kinds: dict[str, tuple[str, bool]] = {}
        self.large: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.refusing = 0
        """Status that every call gets; 0 answers them."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.handle_call()

            def do_PUT(self) -> None:
                self.handle_call()

            def do_GET(self) -> None:
                self.handle_call()

            def handle_call(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                hub.calls.append(f"{self.command} {path}")
                is_upload = path.startswith("/upload/")  # its address is the right to it
                if hub.refusing or (not is_upload and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
                    self.reply({"error": "no right"}, hub.refusing or 401)
                    return
                self.reply(hub.answer(path, body))

            def reply(self, value: Any, status: int = 200) -> None:
                content = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self.kinds.setdefault(name, (asked.get("type") or "model", asked.get("visibility") == "private"))
            return {"url": f"{self.url}/{name}", "id": name, "name": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.startswith("/upload/"):
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            self.large[oid] = body
            return {}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return {"transfer": "basic", "objects": [self.upload_of(each) for each in objects]}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [self.mode_of(each["path"]) for each in files]}
        if "/commit/" in path:
            for line in body.decode().splitlines():
                self.take(self.repositories[name], json.loads(line))
            return {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.url}/{name}/commit/{'1' * 40}"}
        raise AssertionError(f"unknown call {path}")

    def upload_of(self, each: dict[str, Any]) -> dict[str, Any]:
        entry = {"oid": each["oid"], "size": each["size"]}
        if each["oid"] in self.large:
            return entry
        return entry | {"actions": {"upload": {"href": f"{self.url}/upload/{each['oid']}"}}}

    def mode_of(self, path: str) -> dict[str, Any]:
        mode = "regular" if path.endswith(REGULAR) else "lfs"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def take(self, repository: dict[str, bytes], line: dict[str, Any]) -> None:
        value = line["value"]
        if line["key"] == "file":
            repository[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            repository[value["path"]] = self.large[value["oid"]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Start a hub; the client in this process finds it, and has a token for it."""
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()
