"""Servers on loopback, a Ray cluster of several nodes, and raw data sets read as ``prepare`` does."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import cloudpickle
import fsspec
import pytest

from pipeline.prepare.raw import RawTable, SourceContext
from pipeline.prepare.validation import Rules, to_records
from pipeline.settings import load_all

ROOT = Path(__file__).resolve().parents[2]
ReadRows: TypeAlias = Callable[..., list[Any]]


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
def context() -> SourceContext:
    return SourceContext(role="human", name="test", config=load_all(ROOT / "params.yaml").prepare, seed=0)


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


@pytest.fixture
def s3_denied(s3: Any, s3_endpoint: str) -> Callable[[], AbstractContextManager[None]]:
    """Makes the S3 server refuse every request inside of a ``with``."""

    def demand_rights(after_requests: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        address = f"{s3_endpoint}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(address, data=after_requests, headers=headers)).close()

    @contextmanager
    def denied() -> Iterator[None]:
        demand_rights(b"0")
        try:
            yield
        finally:
            demand_rights(b"inf")

    return denied


@pytest.fixture
def memory() -> Iterator[Any]:
    """Give the file system ``memory://``, empty."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


@dataclass
class Web:
    """A folder behind HTTP."""

    url: str
    folder: Path
    requests: list[str] = field(default_factory=list)
    """Method and path of what was asked for."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """Serve a folder; what lies in ``denied`` is refused. The server knows no ranges and sends whole files for them."""
    folder = tmp_path / "web"
    folder.mkdir()
    served = Web("", folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            served.requests.append(f"{self.command} {self.path}")
            if self.path.startswith("/denied/"):
                self.send_error(403)
                return None
            return super().send_head()

        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield served
        server.shutdown()
