"""An S3 server on loopback, and raw data sets read as ``prepare`` does, without Ray."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import cloudpickle
import fsspec
import pytest

from pipeline.config import load_config
from pipeline.data.raw import RawTable, SourceContext
from pipeline.data.validation import Rules, to_records

ROOT = Path(__file__).resolve().parents[2]
ReadRows: TypeAlias = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Start an S3 server for the session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def start_cluster() -> Callable[..., AbstractContextManager[Any]]:
    """Give a context of a ``ray.cluster_utils.Cluster``: a head without processors to work on, nodes of one each."""
    from ray.cluster_utils import Cluster

    @contextmanager
    def start(nodes: int = 2, **options: Any) -> Iterator[Any]:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | options)
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=1, **options)
            yield cluster
        finally:
            cluster.shutdown()

    return start


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


@pytest.fixture
def context() -> SourceContext:
    return SourceContext(role="human", name="test", config=load_config(ROOT / "params.yaml").prepare, seed=0)


@pytest.fixture
def read_rows() -> ReadRows:
    """Reads a table through parts that went over the wire; returns records, rejects and dropped boxes in order."""

    def read(table: RawTable, rows_per_part: int = 1000, **rules: Any) -> list[Any]:
        checks = Rules(
            source="test",
            pictures="embed",
            max_pixels=10_000_000,
            categories=frozenset(category.id for category in table.categories),
        )
        checks = dataclasses.replace(checks, **rules)
        parts = list(table.parts(rows_per_part))
        assert len({part.identity for part in parts}) == len(parts)
        if table.num_rows is not None:
            assert sum(part.num_rows or 0 for part in parts) == table.num_rows
        rows = []
        for part in parts:
            rows += to_records(cloudpickle.loads(cloudpickle.dumps(part.rows))(), checks)
        return rows

    return read
