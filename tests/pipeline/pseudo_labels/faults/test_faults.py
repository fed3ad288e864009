"""The fault matrix of README.md beside the stage's code, row by row, on a cluster of several nodes on this machine.

Expected each time: the job ends well or with a clear message; after a restart every input row is accounted for exactly
once; nobody ever reads part of a shard. Labels are compared with an undisturbed run, byte by byte.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.store.records import CaptionRecord, GroundingRecord, ImageRef, PhrasesRecord
from pipeline.store.shards import read_shard, shard_name, write_shard
from pipeline.store.storage import to_place

ROWS = 4
EVERY_SHARD = [f"shard {number}" for number in range(6)]
"""Words of the captions, by which a teacher is told to wait."""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def times(out: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(out).glob("part-*.parquet")}


def decoders_of(actor: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(actor).children() if "spawn_main" in " ".join(child.cmdline())]


def test_without_a_fault_every_node_has_a_teacher_at_work(bench: Any, undisturbed: dict[str, str]) -> None:
    bench.teachers = 2
    bench.order(hold=EVERY_SHARD)
    run = bench.start()
    assert len(bench.at_work(teachers=2)) == 2
    bench.order()
    status, errors = run.end()
    assert status == 0, errors
    bench.check_complete(undisturbed)


def test_actor_killed_in_the_midst_of_a_shard(bench: Any, watcher: Any, undisturbed: dict[str, str]) -> None:
    bench.order(hold=EVERY_SHARD)
    run = bench.start()
    os.kill(bench.at_work()[0], signal.SIGKILL)
    bench.order()
    status, errors = run.end()
    assert status == 0, errors
    bench.check_complete(undisturbed)
    assert watcher.looks > 0


def test_decoding_worker_killed_costs_no_picture(bench: Any, undisturbed: dict[str, str]) -> None:
    bench.order(hold=EVERY_SHARD)
    run = bench.start()
    decoders = decoders_of(bench.at_work()[0])
    assert decoders
    for process in decoders:
        process.kill()
    bench.order()
    status, errors = run.end()
    assert status == 0, errors
    bench.check_complete(undisturbed)


def test_node_killed(
    tools: Any, fault_environment: dict[str, str], fault_folder: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    with tools.start_cluster() as cluster, tools.open_bench(cluster, fault_folder, tmp_path) as bench:
        bench.teachers = 2
        bench.order(hold=EVERY_SHARD)
        run = bench.start()
        with tools.Watcher(bench.out):
            kill_node_of(bench.at_work()[0], cluster)
            bench.order()
            status, errors = run.end()
        assert status == 0, errors
        bench.check_complete(undisturbed)


def test_node_that_comes_is_put_to_work_and_one_that_goes_is_not_missed(
    tools: Any, fault_environment: dict[str, str], fault_folder: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    with tools.start_cluster(nodes=1) as cluster, tools.open_bench(cluster, fault_folder, tmp_path) as bench:
        bench.teachers = 2
        bench.order(hold=EVERY_SHARD)
        run = bench.start()
        (first,) = bench.at_work()
        cluster.add_node(num_cpus=1)
        bench.at_work(teachers=2)
        kill_node_of(first, cluster)
        bench.order()
        status, errors = run.end()
        assert status == 0, errors
        bench.check_complete(undisturbed)


def kill_node_of(actor: int, cluster: Any) -> None:
    """End a node as a power cut would: its daemon, and everything that it started."""
    above = {process.pid for process in psutil.Process(actor).parents()}
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    (raylet,) = above & set(raylets)
    below = psutil.Process(raylet).children(recursive=True)
    cluster.remove_node(raylets[raylet], allow_graceful=False)
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_driver_killed_and_started_again(bench: Any, watcher: Any, undisturbed: dict[str, str]) -> None:
    bench.order(hold=EVERY_SHARD[-1:])
    run = bench.start()
    bench.wait(lambda: bool(times(bench.out)), "shards that are finished")
    run.kill()
    finished = times(bench.out)
    assert 0 < len(finished) < len(undisturbed)
    assert not (Path(bench.out) / "_manifest.json").exists()  # the folder says that it is not complete
    bench.order()
    status, errors = bench.run()
    assert status == 0, errors
    assert "shards were finished already" in errors
    assert {name: time for name, time in times(bench.out).items() if name in finished} == finished
    bench.check_complete(undisturbed)


def test_actor_out_of_memory(
    tools: Any,
    fault_environment: dict[str, str],
    fault_folder: Path,
    tmp_path: Path,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = psutil.virtual_memory()
    spare, hoard = 5_000_000_000, 6_500_000_000  # other tests of the machine need some, too
    if memory.available < hoard:
        pytest.skip(f"this machine has less than {hoard / 1e9} GB of memory to spare")
    threshold = (memory.total - memory.available + spare) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{threshold:.3f}")
    with tools.start_cluster() as cluster, tools.open_bench(cluster, fault_folder, tmp_path) as bench:
        bench.order(hoard_mb=hoard // 1_000_000)  # the first teacher takes more than there is, once
        status, errors = bench.run()
        assert status == 0, errors
        assert (fault_folder / "hoarded").read_text() == ""  # begun, and ended by Ray before its end
        bench.check_complete(undisturbed)


def test_object_store_full(
    tools: Any, fault_environment: dict[str, str], fault_folder: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    with (
        tools.start_cluster(object_store_memory=80 << 20) as cluster,
        full_store(cluster.address),
        tools.open_bench(cluster, fault_folder, tmp_path) as bench,
    ):
        status, errors = bench.run()
        assert status == 0, errors
        bench.check_complete(undisturbed)


@contextmanager
def full_store(address: str) -> Iterator[None]:
    """Keep more objects of another driver than the store has room for."""
    hog = "import ray, time; ray.init(log_to_driver=False)\n" + (
        "kept = [ray.put(bytes(20 << 20)) for _ in range(8)]\nprint('full', flush=True)\ntime.sleep(300)"
    )
    environment = os.environ | {"RAY_ADDRESS": address}
    process = subprocess.Popen([sys.executable, "-c", hog], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "full\n"
        yield
    finally:
        process.kill()
        process.communicate()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_disk_full(bench: Any, undisturbed: dict[str, str]) -> None:
    bench.out = str(bench.folder / "small" / "out")
    with small_disk(bench.folder / "small", "64k"):
        status, errors = bench.run()
        assert status == 2, errors
        assert "No space left on device" in errors
        assert "shards cannot be labelled" in errors
        for path in Path(bench.out).iterdir():  # what is there is whole
            assert read_shard(path, GroundingRecord)
        subprocess.run(["mount", "-o", "remount,size=10m", bench.folder / "small"], check=True)
        kept = times(bench.out)
        status, errors = bench.run()
        assert status == 0, errors
        assert {name: time for name, time in times(bench.out).items() if name in kept} == kept
        bench.check_complete(undisturbed)


@pytest.fixture
def in_store(
    tools: Any, bench: Any, s3_endpoint: str, faulty_store: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The same inputs in a bucket, reached through a proxy that can misbehave."""
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    S3FileSystem.clear_instance_cache()
    bucket = f"s3://labels-{os.getpid()}-{time.time_ns()}"
    to_place(bucket).mkdir()
    tools.write_inputs(to_place(f"{bucket}/web"), to_place(f"{bucket}/phrases"))
    bench.web, bench.phrases, bench.out = (f"{bucket}/{name}" for name in ("web", "phrases", "out"))
    bench.environment = {"AWS_ENDPOINT_URL": faulty_store.url}
    yield bench
    S3FileSystem.clear_instance_cache()


def test_store_that_fails_for_a_while(in_store: Any, faulty_store: Any, undisturbed: dict[str, str]) -> None:
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def fail_at_first(method: str, path: str) -> str | None:
        with lock:
            name = f"{method} {path}"
            seen[name] = seen.get(name, 0) + 1
            order = ["503", "500", "slow"]
            if "/part-00001" in path:  # takes long: of one shard alone
                order.insert(0, "hang")
            is_meant = "/part-" in path or "list-type" in path
            return order[seen[name] - 1] if is_meant and seen[name] <= len(order) else None

    faulty_store.decide = fail_at_first
    status, errors = in_store.run()
    assert status == 0, errors
    assert set(faulty_store.faults) >= {
        f"{fault} {of}" for fault in ("hang", "500", "503", "slow") for of in ("GET", "PUT")
    }
    in_store.check_complete(undisturbed)


def test_upload_cut_half_way(in_store: Any, faulty_store: Any, undisturbed: dict[str, str]) -> None:
    cut: set[str] = set()

    def cut_once(method: str, path: str) -> str | None:
        if method == "PUT" and "/part-" in path and path not in cut:
            cut.add(path)
            return "cut"
        return None

    faulty_store.decide = cut_once
    status, errors = in_store.run()
    assert status == 0, errors
    assert faulty_store.faults == ["cut PUT"] * len(undisturbed)
    in_store.check_complete(undisturbed)


def test_broken_inputs_cost_themselves_alone(bench: Any, undisturbed: dict[str, str]) -> None:
    bench.order(fail="shard 4")
    broken = Path(bench.web) / shard_name(2)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    status, errors = bench.run()
    assert status == 2
    assert "2 shards cannot be labelled, the others are done" in errors
    assert f"web/{shard_name(2)}: not a readable Parquet file" in errors
    assert f"web/{shard_name(4)}: the teacher failed: RuntimeError('the harm that was ordered')" in errors
    assert set(times(bench.out)) == set(undisturbed) - {shard_name(2), shard_name(4)}
    broken.write_bytes(whole)
    bench.order()
    status, errors = bench.run()
    assert status == 0, errors
    assert "4 of 6 shards were finished already" in errors
    bench.check_complete(undisturbed)


def test_shard_that_kills_its_worker_every_time_is_given_up(bench: Any, undisturbed: dict[str, str]) -> None:
    bench.order(die="shard 3")
    status, errors = bench.run()
    assert status == 2
    assert f"web/{shard_name(3)}: its worker died" in errors
    assert len(times(bench.out)) >= len(undisturbed) - 2  # a neighbour in the same process may have died with it
    bench.order()
    status, errors = bench.run()
    assert status == 0, errors
    bench.check_complete(undisturbed)


def test_rows_that_cannot_be_labelled_are_accounted_for(bench: Any, scan_bomb: bytes) -> None:
    path, phrases = Path(bench.web) / shard_name(0), Path(bench.phrases) / shard_name(0)
    pairs, parsed = read_shard(path, CaptionRecord), read_shard(phrases, PhrasesRecord)
    long = "a dog and " * 10_000
    changed = [
        {"image": ImageRef(bytes=scan_bomb)},
        {"caption": long},
        {"key": pairs[3].key},  # as that of the next row
        {},
    ]
    pairs = [replace(pair, **change) for pair, change in zip(pairs, changed, strict=True)]
    parsed = [replace(row, key=pair.key, caption=pair.caption) for row, pair in zip(parsed, pairs, strict=True)]
    parsed[1] = replace(parsed[1], phrases=(), reject_reason="caption_too_long")
    write_shard(path, pairs, CaptionRecord)
    write_shard(phrases, parsed, PhrasesRecord, {"glip.provenance": '{"parser": "p"}'})
    bench.settings = {"decode_timeout_s": 3.0, "max_reject_share": 0.5}
    start = time.monotonic()
    status, errors = bench.run()
    assert status == 0, errors
    assert time.monotonic() - start < 100
    records = read_shard(Path(bench.out) / shard_name(0), GroundingRecord)
    assert [record.key for record in records] == ["0-0", "0-1", "0-3", "0-3"]
    assert [record.reject_reason for record in records] == ["image_timeout", "caption_too_long", None, None]
    assert len(bench.records()) == 6 * ROWS


def test_caption_of_100_kilobytes_that_is_let_through(bench: Any) -> None:
    path, phrases = Path(bench.web) / shard_name(0), Path(bench.phrases) / shard_name(0)
    caption = "a dog and " * 10_000
    pairs = [replace(pair, caption=caption) for pair in read_shard(path, CaptionRecord)]
    parsed = [replace(row, caption=caption, phrases=row.phrases[:1]) for row in read_shard(phrases, PhrasesRecord)]
    write_shard(path, pairs, CaptionRecord)
    write_shard(phrases, parsed, PhrasesRecord, {"glip.provenance": '{"parser": "p"}'})
    status, errors = bench.run()
    assert status == 0, errors
    assert {len(record.caption) for record in bench.records()[:ROWS]} == {100_000}
