"""Lists to shards over Ray: nothing lost, nothing twice, and prepare reads what comes out."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.download import fetching
from pipeline.download.fetching import Fetcher
from pipeline.download.job import ShardTask, download, download_shard
from pipeline.download.layout import Row, ShardFiles, count_outcomes, remove_others
from pipeline.download.settings import DownloadConfig
from pipeline.errors import ConfigError, RejectLimitError
from pipeline.prepare.readers.webdataset import read_webdataset
from pipeline.settings import load_all
from pipeline.store.provenance import FINGERPRINT, file_sha256
from pipeline.store.storage import Place, list_files

ROOT = Path(__file__).resolve().parents[3]
Table = list[dict[str, Any]]


@pytest.fixture
def prepare(tmp_path: Path) -> Any:
    return replace(load_all(ROOT / "params.yaml").prepare, data_root=str(tmp_path))


def write_list(tmp_path: Path, web: Any, *paths: str, name: str = "list.tsv") -> list[str]:
    urls = [path if "://" in path else f"{web.url}{path}" for path in paths]
    lines = [f"a dog number {number}\t{url}\n" for number, url in enumerate(urls)]
    (tmp_path / name).write_text("caption\turl\n" + "".join(lines))
    return urls


def rows_of(out: Place) -> Table:
    return [row for table in list_files(out, "*.parquet") for row in pq.read_table(str(table)).to_pylist()]


def content(folder: Path) -> dict[str, str]:
    """Return the hashes of all files but those of statistics, which have times in them."""
    return {path.name: file_sha256(path) for path in folder.iterdir() if not path.name.endswith("_stats.json")}


@pytest.mark.ray
def test_every_row_is_in_a_shard_once_and_prepare_reads_it(
    ray_running: None, nasty: Any, config: DownloadConfig, prepare: Any, tmp_path: Path, context: Any, read_rows: Any
) -> None:
    paths = [f"/third/{n}" for n in range(7)] + ["/html", "/dies", "ftp://a.example/b", "/robots/noai"]
    urls = write_list(tmp_path, nasty, *paths)
    with (tmp_path / "list.tsv").open("a") as file:
        file.write("a broken row\n")
    config = replace(config, lists=({"reader": "url_list", "tables": "list.tsv", "name": "cc"},))
    metrics, by_host = download(config, prepare, 0, tmp_path / "out", [nasty.url])
    rows = rows_of(tmp_path / "out/cc")
    assert [row["url"] for row in rows] == [*urls, None]
    assert [row["caption"] for row in rows] == [*(f"a dog number {n}" for n in range(11)), None]
    assert [row["key"] for row in rows] == [f"{n // 4:05d}{n % 4:04d}" for n in range(12)]
    reasons = [row["error_message"] for row in rows]
    expected = ["http_404", None, None, "http_404", None, None, "http_404"]
    assert reasons == [*expected, "not_a_picture", "broken_off", "url_malformed", "opted_out", "row_malformed"]
    assert (metrics["urls"], metrics["pictures"]) == (12, 4)
    assert metrics["reasons"] == Counter(filter(None, reasons))
    assert by_host["127.0.0.1", "http_404"] == 3
    assert by_host["a.example", "url_malformed"] == 1
    assert by_host.total() == 12
    stats = [json.loads(p.read_text()) for p in list_files(tmp_path / "out/cc", "*_stats.json")]
    assert sum(each["count"] for each in stats) == 12
    assert sum((Counter(each["status_dict"]) for each in stats), Counter()) == {"success": 4, **metrics["reasons"]}

    (table,) = read_webdataset(context, shards=str(tmp_path / "out/cc/*.tar"))
    records = read_rows(table)
    assert [record.caption for record in records] == [f"a dog number {n}" for n in (1, 2, 4, 5)]
    assert {(record.height, record.width) for record in records} == {(16, 24)}


@pytest.mark.ray
def test_finished_shards_are_kept_and_others_made(
    ray_running: None, nasty: Any, config: DownloadConfig, prepare: Any, tmp_path: Path
) -> None:
    config = replace(config, lists=({"reader": "url_list", "tables": "list.tsv", "name": "cc"},))
    write_list(tmp_path, nasty, *(f"/ok/{n}" for n in range(10)))
    out = tmp_path / "out/cc"

    def run(**settings: Any) -> set[str]:
        nasty.requests.clear()
        download(replace(config, **settings), prepare, 0, tmp_path / "out", [nasty.url])
        return set(nasty.requests)

    assert len(run()) == 10
    first = content(out)
    assert run(retries=7, timeout_s=30.0, connections=3) == set()  # patience changes no picture
    (out / "00001.tar").write_bytes((out / "00001.tar").read_bytes()[:-1])
    assert run() == {f"/ok/{n}" for n in range(4, 8)}
    (out / "00002.parquet").unlink()
    assert run() == {"/ok/8", "/ok/9"}
    assert content(out) == first
    assert len(run(max_mb=0.4)) == 10
    write_list(tmp_path, nasty, *(f"/ok/{n}" for n in range(3)))  # a shorter list
    assert run() == {"/ok/0", "/ok/1", "/ok/2"}
    assert sorted(path.name for path in out.iterdir()) == ["00000.parquet", "00000.tar", "00000_stats.json"]


@pytest.mark.ray
def test_failures_that_may_pass_are_tried_again_where_that_is_asked_for(
    ray_running: None, nasty: Any, config: DownloadConfig, prepare: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    config = replace(config, retries=0, lists=({"reader": "url_list", "tables": "list.tsv", "name": "cc"},))
    write_list(tmp_path, nasty, "/ok/1", "/state/404", "/ok/2", "/ok/3", "/busy/0", "/ok/4")
    arguments = config, prepare, 0, tmp_path / "out", [nasty.url]
    metrics, _ = download(*arguments)
    assert metrics["reasons"] == {"http_404": 1, "http_429": 1}
    assert len(nasty.requests) == 6
    assert download(*arguments)[0]["pictures"] == 4
    assert len(nasty.requests) == 6
    metrics, _ = download(*arguments, is_tried_again=True)
    assert metrics["reasons"] == {"http_404": 1}
    assert sorted(nasty.requests[6:]) == ["/busy/0", "/ok/4"]


@pytest.mark.ray
def test_a_list_without_a_single_picture_stops_the_run(
    ray_running: None, nasty: Any, config: DownloadConfig, prepare: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("pipeline.download.job.URLS_THAT_TELL", 8)
    write_list(tmp_path, nasty, *(f"/state/40{n % 5}" for n in range(40)))
    config = replace(config, lists=({"reader": "url_list", "tables": "list.tsv"},))
    with pytest.raises(RejectLimitError, match=r"none of the first .* URLs became a picture"):
        download(config, prepare, 0, tmp_path / "out", [nasty.url])
    assert len(nasty.requests) < 40


@pytest.mark.ray
def test_lists_must_hold_urls_and_have_names(
    ray_running: None, nasty: Any, config: DownloadConfig, prepare: Any, tmp_path: Path
) -> None:
    write_list(tmp_path, nasty, "/ok/1")
    entry = {"reader": "url_list", "tables": "list.tsv"}
    cases: list[tuple[Any, str]] = [
        ((), "names no lists"),
        ((entry, entry), "'url_list' cannot be the name of 2 folder"),
        (({**entry, "name": "../up"},), "cannot be the name"),
        (({**entry, "images": "pictures"},), "holds pictures, not their URLs"),
        (({"reader": "embedded"},), "holds pictures, not their URLs"),
        (({"reader": "nobody"},), r"download.lists\[0\]: no reader 'nobody'"),
    ]
    for lists, message in cases:
        with pytest.raises(ConfigError, match=message):
            download(replace(config, lists=lists), prepare, 0, tmp_path / "out")
    assert nasty.requests == []


def test_a_shard_may_rest_in_a_store(nasty: Any, config: DownloadConfig, disk_or_store: Place) -> None:
    rows = [Row(f"{nasty.url}/third/{n}", f"dog {n}") for n in range(6)] + [Row(None, None)]
    files = ShardFiles(disk_or_store / "cc", 1)
    task = ShardTask(files, rows, {FINGERPRINT: "f"})
    assert not files.is_finished("f", False)
    outcomes = download_shard(task, partial(Fetcher, config, 10_000, 1, [nasty.url]))
    assert outcomes == {"success": 4, "http_404": 2, "row_malformed": 1}
    assert files.is_finished("f", True)
    assert not files.is_finished("another", False)
    assert sum(count_outcomes(files.table).values()) == 7
    with files.tar.open("rb") as file, tarfile.open(fileobj=file) as tar:
        kept = (f"00001000{n}" for n in (1, 2, 4, 5))
        assert tar.getnames() == [f"{key}.{suffix}" for key in kept for suffix in ("png", "txt", "json")]
    remove_others(disk_or_store / "cc", 1)
    assert list_files(disk_or_store / "cc", "*") == []


def test_reasons_that_may_pass_are_known() -> None:
    assert {"timeout", "dns_failed", "http_503"} <= fetching.PASSING
    assert not {"http_404", "opted_out", "address_refused"} & fetching.PASSING
