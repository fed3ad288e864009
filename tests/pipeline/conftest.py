"""Servers on loopback, a Ray cluster of several nodes, raw data sets read as ``prepare`` does, small benchmarks."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import io
import json
import threading
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import cloudpickle
import fsspec
import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.predictions import Predictions
from pipeline.prepare.raw import RawTable, SourceContext
from pipeline.prepare.validation import Rules, to_records
from pipeline.settings import load_all
from pipeline.store.records import (
    Box,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
)

ROOT = Path(__file__).resolve().parents[2]
Rows: TypeAlias = Sequence[tuple[int, int, Box, float]]
"""Number of the row, label, box, score."""
ReadRows: TypeAlias = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def start_cluster() -> Callable[..., AbstractContextManager[Any]]:
    """Give a context of a ``ray.cluster_utils.Cluster``: a head without processors to work on, nodes of one each."""
    from ray.cluster_utils import Cluster

    @contextmanager
    def start(nodes: int = 2, **options: Any) -> Iterator[Any]:
        # Nobody scales it or reads its logs: two processes less.
        options |= {"include_log_monitor": False}
        head = {"num_cpus": 0, "include_dashboard": False, "no_monitor": True} | options
        cluster = Cluster(initialize_head=True, head_node_args=head)
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
            roots=("/",),
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
    """Serve a folder; what lies in ``denied`` is refused, ``to/URL`` redirects; ranges are not known."""
    folder = tmp_path / "web"
    folder.mkdir()
    served = Web("", folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            served.requests.append(f"{self.command} {self.path}")
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", urllib.parse.unquote(self.path[4:]))
                self.end_headers()
                return None
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


@pytest.fixture
def lures(tmp_path: Path, web: Web, png: Callable[..., ImageRef]) -> Callable[[Path], list[str]]:
    """Put a picture outside of a folder of shards; return what hostile records of that folder would call it."""

    def make(folder: Path) -> list[str]:
        secret = tmp_path / "elsewhere/secret.png"
        for place in (secret, web.folder / "secret.png"):
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(png().bytes or b"")
        with zipfile.ZipFile(tmp_path / "elsewhere/a.zip", "w") as archive:
            archive.write(secret, "secret.png")
        inside = folder / "shards"
        inside.mkdir(parents=True, exist_ok=True)
        (inside / "link.png").symlink_to(secret)
        (inside / "folder").symlink_to(secret.parent)
        return [
            f"{inside}/link.png",
            f"{inside}/folder/secret.png",
            str(secret),
            f"file://{secret}",
            f"local://{secret}",
            f"{inside}/../../../../../../../../../../..{secret}",
            *("/etc/passwd", "/proc/self/environ", "/dev/zero", "../../../../../../../../../etc/passwd"),
            f"zip://secret.png::{secret.parent}/a.zip",
            f"zip://secret.png::file://{secret.parent}/a.zip",
            f"simplecache::file://{secret}",
            f"{web.url}/secret.png",
            f"zip://secret.png::{web.url}/a.zip",
            *(
                "s3://bucket/a.png",
                "ftp://127.0.0.1/a.png",
                "memory://a.png",
                "http://169.254.169.254/latest/meta-data",
            ),
        ]

    return make


@pytest.fixture(scope="session")
def png() -> Callable[..., ImageRef]:
    def make(width: int = 40, height: int = 30, colour: tuple[int, int, int] = (90, 140, 90)) -> ImageRef:
        out = io.BytesIO()
        Image.new("RGB", (width, height), colour).save(out, "PNG")
        return ImageRef(bytes=out.getvalue())

    return make


@pytest.fixture(scope="session")
def make_detection(png: Callable[..., ImageRef]) -> Callable[..., DetectionRecord]:
    def make(
        number: int, *objects: DetectedObject, width: int = 100, height: int = 100, **checked: tuple[int, ...]
    ) -> DetectionRecord:
        return DetectionRecord(
            key=f"key-{number}",
            image=png(width, height),
            height=height,
            width=width,
            source="test",
            objects=objects,
            **checked,
        )

    return make


@pytest.fixture(scope="session")
def make_grounding(png: Callable[..., ImageRef]) -> Callable[..., GroundingRecord]:
    def make(number: int, caption: str, *phrases: Phrase, width: int = 100, height: int = 100) -> GroundingRecord:
        return GroundingRecord(
            key=f"key-{number}",
            image=png(width, height),
            height=height,
            width=width,
            caption=caption,
            source="test",
            phrases=phrases,
        )

    return make


@pytest.fixture(scope="session")
def make_predictions() -> Callable[[Rows], Predictions]:
    def make(rows: Rows) -> Predictions:
        return Predictions(
            keys=tuple(f"key-{number}" for number, *_ in rows),
            numbers=np.array([row[0] for row in rows], np.int32),
            labels=np.array([row[1] for row in rows], np.int32),
            boxes_xyxy=np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
            scores=np.array([row[3] for row in rows], np.float32),
        )

    return make


@pytest.fixture(scope="session")
def random_benchmark(
    make_detection: Callable[..., DetectionRecord], make_predictions: Callable[[Rows], Predictions]
) -> Callable[..., tuple[list[DetectionRecord], list[Category], Predictions]]:
    """Return a benchmark in which some boxes are found well, some badly and some not at all; scores all differ."""

    def make(
        seed: int, num_pictures: int = 20, num_categories: int = 6, noise: float = 3.0
    ) -> tuple[list[DetectionRecord], list[Category], Predictions]:
        rng = np.random.default_rng(seed)
        # Ids have gaps, as in COCO; the last category has no ground truth.
        categories = [
            Category(id=3 * i + 2, name=f"thing {i}", split="novel" if i % 3 == 0 else "base")
            for i in range(num_categories)
        ]
        ids = [category.id for category in categories]
        records, found = [], []
        for number in range(num_pictures):
            objects = []
            for _ in range(int(rng.integers(0, 5))):
                x, y, width, height = rng.uniform((0, 0, 15, 15), (60, 60, 40, 40))
                label = ids[int(rng.integers(num_categories - 1))]
                box = np.array([x, y, x + width, y + height], np.float32)
                crowd = bool(rng.random() < 0.1)
                objects.append(DetectedObject(category_id=label, xyxy=tuple(box.tolist()), is_crowd=crowd))
                for _ in range(int(rng.integers(0, 4))):
                    guess = label if rng.random() < 0.7 else ids[int(rng.integers(num_categories))]
                    found.append((number, guess, tuple((box + rng.normal(0, noise, 4)).tolist())))
            records.append(make_detection(number, *objects))
        scores = rng.permutation(np.linspace(0.1, 0.9, len(found)))
        rows = [(*row, float(score)) for row, score in zip(found, scores, strict=True)]
        return records, categories, make_predictions(rows)

    return make


@dataclass
class ModelServer:
    """An endpoint of OpenAI's style; remembers what it was asked.

    It answers with what stands in ``answers``, the last of them again and again.
    """

    url: str
    answers: list[tuple[int, bytes, dict[str, str]]] = field(default_factory=list)
    asked: list[tuple[dict[str, str], Any]] = field(default_factory=list)
    reply: Callable[[Any], str] | None = None
    """Says what a model says to a question, in place of ``answers``."""

    def say(self, *answers: Any) -> None:
        """Set the answers: bodies, statuses, or both with headers."""
        whole = [
            each if isinstance(each, tuple) else (each, b"", {}) if isinstance(each, int) else (200, each, {})
            for each in answers
        ]
        self.answers[:] = whole


@pytest.fixture
def server() -> Iterator[ModelServer]:
    found = ModelServer("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append((dict(self.headers), body))
            if found.reply is not None:
                content = found.reply(body)
                status, data, headers = 200, json.dumps({"choices": [{"message": {"content": content}}]}).encode(), {}
            else:
                status, data, headers = found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
            if status == 0:
                return  # hangs up
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        found.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
        yield found
        listening.shutdown()
