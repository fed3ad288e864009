"""An S3 server on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Start an S3 server for the session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Give an empty bucket ``raw``; everything in this process finds the server through its environment.

    ``AWS_ENDPOINT_URL`` is read by botocore, and so by s3fs, and by ``pyarrow.fs.FileSystem.from_uri``; pyarrow's
    ``S3FileSystem()`` does not read it. ``FSSPEC_S3_ENDPOINT_URL`` is read by fsspec alone.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "THEKEYID",
        "AWS_SECRET_ACCESS_KEY": "THESECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    _forget_file_systems()
    filesystem = fsspec.filesystem("s3")
    filesystem.mkdir("raw")
    yield filesystem
    filesystem.rm("raw", recursive=True)
    _forget_file_systems()


def _forget_file_systems() -> None:
    """Drop the kept instances: they were made for the environment of before."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
