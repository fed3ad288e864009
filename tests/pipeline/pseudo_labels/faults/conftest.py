"""A cluster of several nodes on this machine, the stage as a process beside it, and an S3 server that misbehaves."""

from __future__ import annotations

import http.client
import http.server
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from ray.cluster_utils import Cluster

from pipeline.store.provenance import file_sha256
from pipeline.store.records import CaptionRecord, GroundingRecord, ImageRef, Phrase, PhrasesRecord
from pipeline.store.shards import list_shards, read_shard, shard_name, write_shard
from pipeline.store.storage import Place, to_place

ROOT = Path(__file__).resolve().parents[4]
SHARDS, ROWS = 6, 4


@dataclass
class Run:
    """One start of the stage."""

    process: subprocess.Popen[str]

    def end(self, timeout: float = 240.0) -> tuple[int, str]:
        """Wait; return exit status and what was printed."""
        try:
            _, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, errors

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.communicate()


@dataclass
class Bench:
    """What one fault test works with."""

    folder: Path
    faults: Path
    cluster: Cluster
    web: str
    phrases: str
    out: str
    environment: dict[str, str] = field(default_factory=dict)
    teachers: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def order(self, **orders: Any) -> None:
        """Tell the teacher what to do from now on."""
        aside = self.faults / "orders.new"
        aside.write_text(json.dumps(orders))
        aside.replace(self.faults / "orders.json")

    def start(self) -> Run:
        """Start the stage."""
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        settings = {"num_actors": self.teachers, "batch_size": 2, "min_box_side": 1.0}
        params["pseudo_label"].update(settings | self.settings)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        words = ["--records", self.web, "--phrases", self.phrases, "--teacher", "fault_teacher:make", "--out", self.out]
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.pseudo_label", *words],
            cwd=self.folder,
            env=os.environ | {"RAY_ADDRESS": self.cluster.address} | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.runs.append(Run(process))
        return self.runs[-1]

    def run(self) -> tuple[int, str]:
        """Start the stage and wait for its end."""
        return self.start().end()

    def at_work(self, teachers: int = 1) -> list[int]:
        """Wait until so many teachers have begun; return their processes, the last one to speak first."""
        log = self.faults / "log"

        def seen() -> list[int]:
            words = log.read_text().split() if log.exists() else []
            return list(dict.fromkeys(int(word) for word in reversed(words)))

        self.wait(lambda: len(seen()) >= teachers, f"{teachers} teachers at work")
        return seen()

    def wait(self, is_so: Callable[[], bool], what: str, timeout: float = 240.0) -> None:
        """Wait for something to happen while the stage runs."""
        end = time.monotonic() + timeout
        while not is_so():
            assert self.runs[-1].process.poll() is None, self.runs[-1].end()
            assert time.monotonic() < end, f"there were never {what}"
            time.sleep(0.02)

    def records(self, out: Place | None = None) -> list[GroundingRecord]:
        """Return all labelled rows."""
        return [row for path in list_shards(out or to_place(self.out)) for row in read_shard(path, GroundingRecord)]

    def check_complete(self, expected: dict[str, str]) -> None:
        """Every input row is there once, in its place, in the very bytes of an undisturbed run; and nothing else."""
        out = to_place(self.out)
        asked = [row.key for path in list_shards(to_place(self.web)) for row in read_shard(path, CaptionRecord)]
        assert [record.key for record in self.records()] == asked
        assert all(record.reject_reason or any(p.boxes for p in record.phrases) for record in self.records())
        assert {path.name: file_sha256(path) for path in list_shards(out)} == expected
        assert sorted(path.name for path in out.iterdir()) == ["_manifest.json", *sorted(expected)]


def _pass_on(method: str, path: str) -> None:
    return None


@dataclass
class FaultyStore:
    """A proxy before an S3 server that answers as it is told for some of the requests."""

    url: str
    decide: Callable[[str, str], str | None] = _pass_on
    """Method and path → ``"500"``, ``"503"``, ``"hang"``, ``"slow"``, ``"cut"``, or None to pass on."""
    faults: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def proxy(s3_endpoint: str) -> Iterator[FaultyStore]:
    """Start it; the environment of the clusters names it."""
    store = FaultyStore("")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            fault = store.decide(self.command, self.path)
            if fault:
                store.faults.append(f"{fault} {self.command}")
            length = int(self.headers.get("Content-Length", 0))
            if fault == "cut":
                self.rfile.read(length // 2)
                self.close_connection = True
                self.connection.close()
                return
            body = self.rfile.read(length)
            if fault == "hang":
                time.sleep(6)
                self.close_connection = True
                return
            if fault == "slow":
                time.sleep(0.7)
            if fault in ("500", "503"):
                self._answer(int(fault), [("Content-Type", "application/xml")], _error(fault))
                return
            upstream = http.client.HTTPConnection(s3_endpoint.removeprefix("http://"), timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
            self._answer(answer.status, kept, answer.read())

        def _answer(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield store
    server.shutdown()
    server.server_close()
    thread.join()


def _error(status: str) -> bytes:
    code = "SlowDown" if status == "503" else "InternalError"
    return f"<Error><Code>{code}</Code><Message>later</Message></Error>".encode()


@pytest.fixture
def faulty_store(proxy: FaultyStore) -> Iterator[FaultyStore]:
    """The proxy, which does what it should before and after the test."""
    proxy.faults.clear()
    yield proxy
    proxy.decide = _pass_on


@pytest.fixture(scope="session")
def fault_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def fault_environment(fault_folder: Path, proxy: FaultyStore) -> Iterator[dict[str, str]]:
    """Set what the nodes, and with them their workers, find in their environment."""
    values = {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "THEKEYID",
        "AWS_SECRET_ACCESS_KEY": "THESECRET",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        # The store's own clients give up late; a test cannot wait a minute.
        "FSSPEC_S3_CONFIG_KWARGS": '{"read_timeout": 2, "retries": {"max_attempts": 1}}',
        "FAULTS": str(fault_folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        "RAY_memory_monitor_refresh_ms": "100",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield values
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def shared_cluster(fault_environment: dict[str, str], start_cluster: Callable[..., Any]) -> Iterator[Cluster]:
    """A cluster for the tests that leave their nodes alive."""
    with start_cluster() as cluster:
        yield cluster


def picture(number: int) -> bytes:
    noise = random.Random(number).randbytes(48 * 32 * 3)
    out = io.BytesIO()
    Image.frombytes("RGB", (48, 32), noise).save(out, "PNG")
    return out.getvalue()


def write_inputs(web: Place, phrases: Place, shards: int = SHARDS) -> None:
    for shard in range(shards):
        pairs, parsed = [], []
        for row in range(ROWS):
            key, caption = f"{shard}-{row}", f"a dog of shard {shard} and a cat"
            image = ImageRef(bytes=picture(shard * ROWS + row))
            pairs.append(CaptionRecord(key=key, image=image, height=32, width=48, caption=caption, source="web"))
            found = tuple(
                Phrase(text=text, char_spans=((caption.index(text), caption.index(text) + 3),), is_plural=False)
                for text in ("dog", "cat")
            )
            parsed.append(PhrasesRecord(key=key, caption=caption, phrases=found))
        write_shard(web / shard_name(shard), pairs, CaptionRecord)
        write_shard(phrases / shard_name(shard), parsed, PhrasesRecord, {"glip.provenance": '{"parser": "p"}'})


@pytest.fixture
def bench(shared_cluster: Cluster, fault_folder: Path, tmp_path: Path) -> Iterator[Bench]:
    """The shared cluster, inputs on disk, a teacher that works at once."""
    with open_bench(shared_cluster, fault_folder, tmp_path) as bench:
        yield bench


@contextmanager
def open_bench(cluster: Cluster, faults: Path, folder: Path) -> Iterator[Bench]:
    """Make what one test works with; end what it leaves running."""
    for left in ("log", "hoarded"):
        (faults / left).unlink(missing_ok=True)
    write_inputs(folder / "web", folder / "phrases")
    bench = Bench(folder, faults, cluster, str(folder / "web"), str(folder / "phrases"), str(folder / "out"))
    bench.order()
    try:
        yield bench
    finally:
        for run in bench.runs:
            if run.process.poll() is None:
                run.kill()


@pytest.fixture(scope="session")
def undisturbed(
    shared_cluster: Cluster, fault_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Hashes of the shards that a run without any fault makes, by two teachers; most tests have one."""
    with open_bench(shared_cluster, fault_folder, tmp_path_factory.mktemp("undisturbed")) as bench:
        bench.teachers = 2
        status, errors = bench.run()
        assert status == 0, errors
        found = {path.name: file_sha256(path) for path in list_shards(Path(bench.out))}
        assert len(found) == SHARDS
        bench.check_complete(found)
    return found


class Watcher:
    """Reads every shard that appears, again and again: a reader must never meet half of one."""

    def __init__(self, out: str) -> None:
        self._out, self.looks, self.broken = Path(out), 0, []  # type: ignore[var-annotated]
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        assert not self.broken, self.broken

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            for path in self._out.glob("part-*.parquet"):
                self.looks += 1
                try:
                    pq.ParquetFile(path, page_checksum_verification=True).read()
                except FileNotFoundError:
                    pass  # removed just now
                except Exception as error:
                    self.broken.append(f"{path.name}: {error}")


@pytest.fixture
def watcher(bench: Bench) -> Iterator[Watcher]:
    with Watcher(bench.out) as watching:
        yield watching


@pytest.fixture(scope="session")
def tools(start_cluster: Callable[..., Any]) -> SimpleNamespace:
    """What tests call themselves."""
    return SimpleNamespace(
        start_cluster=start_cluster, open_bench=open_bench, write_inputs=write_inputs, Watcher=Watcher
    )
