"""Downloads that are killed, as labelling is: started again, every row is there once, in the bytes of a quiet run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.store.provenance import file_sha256

ROOT = Path(__file__).resolve().parents[3]
PATHS = [f"/third/{n}" for n in range(8)] + [f"/ok/{n}" for n in range(8)]
"""The first two shards are answered at once, the others when the server is told to."""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Bench:
    """A list, its settings, and the stage as a process."""

    def __init__(self, folder: Path, web: Any) -> None:
        self.folder, self.web = folder, web
        self.processes: list[subprocess.Popen[str]] = []
        lines = [f"number {n}\t{web.url}{path}\n" for n, path in enumerate(PATHS)]
        (folder / "list.tsv").write_text("".join(lines))
        lists = [{"reader": "url_list", "tables": str(folder / "list.tsv"), "name": "cc"}]
        download = {"lists": lists, "rows_per_shard": 4, "timeout_s": 120, "host_pause_s": 0.0}
        params = {"extends": str(ROOT / "params.yaml"), "image_roots": [web.url], "download": download}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))

    def start(self, out: str = "out") -> subprocess.Popen[str]:
        words = ["--params", "params.yaml", "--out", out, "--metrics", f"{out}.json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.download", *words],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        _, errors = process.communicate(timeout=600)
        return process.returncode, errors

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 600
        while not is_so():
            process = self.processes[-1]
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, f"there was never {what}"
            time.sleep(0.05)

    def wait_until_half(self) -> None:
        """Wait until the first half is finished and the second one is begun."""
        first = [self.folder / "out/cc" / f"0000{n}.parquet" for n in range(2)]
        self.wait(lambda: all(path.exists() for path in first), "a finished half")
        self.wait(lambda: any(path.startswith("/ok") for path in self.web.requests), "a second half")

    def check_complete(self) -> None:
        """Compare with a quiet run."""
        assert self.end(self.start("quiet"))[0] == 0
        found, expected = (self.content(name) for name in ("out", "quiet"))
        assert found == expected
        tables = sorted((self.folder / "out/cc").glob("*.parquet"))
        urls = [url for table in tables for url in pq.read_table(table, columns=["url"])["url"].to_pylist()]
        assert urls == [f"{self.web.url}{path}" for path in PATHS]

    def content(self, out: str) -> dict[str, str]:
        """Return the hashes of all files; statistics, which have times in them, count by name."""
        places = (self.folder / out / "cc").iterdir()
        return {p.name: "" if p.name.endswith("_stats.json") else file_sha256(p) for p in places}


@pytest.fixture
def bench(tmp_path: Path, nasty: Any) -> Iterator[Bench]:
    nasty.held.clear()
    bench = Bench(tmp_path, nasty)
    yield bench
    nasty.held.set()
    for process in bench.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_goes_on_and_asks_nobody_twice(bench: Bench, kind: signal.Signals) -> None:
    process = bench.start()
    bench.wait_until_half()
    process.send_signal(kind)
    status, errors = bench.end(process)
    assert status == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[kind], errors
    assert "Traceback" not in errors
    bench.web.held.set()
    assert bench.end(bench.start())[0] == 0
    assert all(bench.web.times_asked()[path] == 1 for path in PATHS[:8])
    bench.check_complete()


def test_a_shard_whose_worker_dies_is_begun_anew(bench: Bench) -> None:
    process = bench.start()
    bench.wait_until_half()
    workers = [
        each
        for each in psutil.process_iter(["name", "cmdline"])
        if "download_shard" in " ".join(each.info["cmdline"] or [])
        and any(parent.pid == process.pid for parent in each.parents())
    ]
    assert workers
    workers[0].kill()
    bench.web.held.set()
    status, errors = bench.end(process)
    assert status == 0, errors
    bench.check_complete()
