"""Raw data sets read as ``prepare`` does, without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import cloudpickle
import pytest

from pipeline.config import load_config
from pipeline.data.raw import RawTable, SourceContext
from pipeline.data.validation import Rules, to_records

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
