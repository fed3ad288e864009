"""``download`` over Ray: rows of lists become shards, each made by one task; finished ones are kept."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import ray

from pipeline.cli import progress
from pipeline.download.fetching import Fetcher, Picture, fetch_all
from pipeline.download.layout import SUCCESS, Row, ShardFiles, ShardWriter, count_outcomes, remove_others
from pipeline.download.settings import DownloadConfig
from pipeline.errors import ConfigError, PipelineError, RejectLimitError
from pipeline.prepare.raw import RawPair, Reject
from pipeline.prepare.settings import PrepareConfig
from pipeline.prepare.sources import Source, open_source
from pipeline.prepare.values import clean_caption, read_license
from pipeline.ray_session import on_all_machines, run_pool
from pipeline.store.provenance import FINGERPRINT, with_fingerprint
from pipeline.store.storage import Place, make_folder, side_by_side, size

logger = logging.getLogger(__name__)

URLS_THAT_TELL = 500
"""Where none of so many becomes a picture, and none did before, it is the network or the settings that are wrong."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to make."""

    files: ShardFiles
    rows: Sequence[Row]
    provenance: dict[str, Any]

    def __str__(self) -> str:
        """Return its place."""
        return str(self.files.tar)


def download(
    config: DownloadConfig,
    prepare: PrepareConfig,
    seed: int,
    out: Place,
    image_roots: Sequence[str] = (),
    is_tried_again: bool = False,
) -> tuple[dict[str, Any], Counter[tuple[str, str]]]:
    """Download the pictures of all lists, each list's below ``out`` in a folder of its name; Ray must be running.

    Args:
        config: the lists and how.
        prepare: where lists lie, and how large pictures may be.
        seed: for readers.
        out: a folder or a place in a store.
        image_roots: URLs whose hosts are asked though they are not public.
        is_tried_again: make shards anew in which URLs failed for reasons that may pass.

    Returns:
        Metrics: URLs, pictures, bytes, URLs a second of this run, by reason what is no picture; and the rows of all
        lists by host and outcome.

    Raises:
        ConfigError: there are no lists, two have one name, or one has no URLs.
        MissingInputError: a list is not there.
        StorageError: a shard cannot be written.
        RejectLimitError: not a single URL of the first ones became a picture.
    """
    sources = _open_lists(config, prepare, seed)
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    fetcher = partial(Fetcher, config, prepare.max_image_pixels, workers, image_roots)
    tables: dict[str, list[Place]] = {source.name: [] for source in sources}
    start, made, kept = time.monotonic(), Counter[str](), 0

    def unfinished(bar: Any) -> Iterator[ShardTask]:
        nonlocal kept
        for source in sources:
            for task in _plan(source, config, out / source.name):
                tables[source.name].append(task.files.table)
                if task.files.is_finished(task.provenance[FINGERPRINT], is_tried_again):
                    kept += 1
                    bar.update(len(task.rows))
                else:
                    yield task

    write = ray.remote(num_cpus=1)(download_shard)
    with progress(None, "download", "URLs") as bar:
        for task, outcomes in run_pool([write] * workers, lambda w, task: w.remote(task, fetcher), unfinished(bar)):
            made += outcomes
            bar.update(len(task.rows))
            bar.set_postfix_str(f"{100 * made[SUCCESS] / made.total():.0f} % pictures")
            _check_that_some_succeed(made, kept, out)
    seconds = time.monotonic() - start
    for source in sources:
        remove_others(out / source.name, len(tables[source.name]))
    if kept:
        logger.info("download: %d shards were finished already", kept)
    places = [table for group in tables.values() for table in group]
    by_host = sum(on_all_machines(count_outcomes, places), Counter[tuple[str, str]]())
    return _metrics(by_host, places, made.total(), seconds), by_host


def _check_that_some_succeed(outcomes: Counter[str], num_kept: int, out: Place) -> None:
    """Raise RejectLimitError where none of many URLs became a picture, and no shard was finished before."""
    if outcomes.total() >= URLS_THAT_TELL and not outcomes[SUCCESS] and not num_kept:
        raise RejectLimitError(
            f"{out}: none of the first {outcomes.total()} URLs became a picture ({dict(outcomes)}); mend network or "
            "lists, then run the same command again with --retry-failed"
        )


def download_shard(task: ShardTask, fetcher: partial[Fetcher]) -> Counter[str] | PipelineError:
    """Download one shard; return what came of its rows, or why it cannot be written."""
    start = time.monotonic()
    outcomes: Counter[str] = Counter()
    try:
        with ShardWriter(task.files, task.rows) as shard:

            def take(number: int, found: Picture | str) -> None:
                outcomes[found if isinstance(found, str) else SUCCESS] += 1
                shard.take(number, found)

            fetch_all(fetcher(), [row.url for row in task.rows], take)
            shard.finish(task.provenance, time.monotonic() - start)
    except PipelineError as error:
        return error  # as data: raised here, Ray would print it with a traceback
    return outcomes


def _open_lists(config: DownloadConfig, prepare: PrepareConfig, seed: int) -> list[Source]:
    if not config.lists:
        raise ConfigError(
            "download.lists names no lists; for example [{reader: url_list, tables: cc3m.tsv, name: cc3m}]"
        )
    sources = [open_source(e, "web", f"download.lists[{i}]", prepare, seed) for i, e in enumerate(config.lists)]
    for name, times in Counter(source.name for source in sources).items():
        if times > 1 or "/" in name or name in (".", ".."):
            raise ConfigError(
                f"download.lists: {name!r} cannot be the name of {times} folder(s); give each list a name of its own"
            )
    return sources


def _plan(source: Source, config: DownloadConfig, folder: Place) -> Iterator[ShardTask]:
    """Yield the shards of a list, in order."""
    make_folder(folder)
    rows = _rows(source)
    number = 0
    while chunk := list(islice(rows, config.rows_per_shard)):
        # Of the settings those alone that decide what is a picture: patience and pace change none that was fetched.
        depends_on = {
            "source": source.name,
            "rows": [list(asdict(row).values()) for row in chunk],
            "rules": [
                *(config.max_mb, config.max_redirects, sorted(config.opt_out)),
                *(["robots.txt", config.user_agent] if config.robots_txt else []),
            ],
        }
        stamp = with_fingerprint(depends_on)[FINGERPRINT]
        provenance = {"source": source.name, "settings": source.description, FINGERPRINT: stamp}
        yield ShardTask(ShardFiles(folder, number), chunk, provenance)
        number += 1


def _rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a list in order, broken ones as well."""
    for table in source.tables:
        for part in table.parts(10**9):
            for row in part.rows():
                if isinstance(row, Reject):
                    yield Row(None, None)
                elif isinstance(row, RawPair) and row.image.data is None and row.image.folder is None:
                    address = row.name if row.image.url is None else row.image.url  # no http: its name says what it is
                    yield Row(clean_caption(address), clean_caption(row.caption), read_license(row.image.license))
                else:
                    raise ConfigError(
                        f"download.lists: {source.name} ({source.description}) holds pictures, not their URLs; name "
                        "a list, such as {reader: url_list, tables: FILE}"
                    )


def _metrics(by_host: Counter[tuple[str, str]], tables: Sequence[Place], asked: int, seconds: float) -> dict[str, Any]:
    reasons, hosts = Counter[str](), Counter[str]()
    for (host, outcome), count in by_host.items():
        reasons[outcome] += count
        hosts[host] += count
    pictures = reasons.pop(SUCCESS, 0)
    return {
        "urls": by_host.total(),
        "pictures": pictures,
        "hosts": len(hosts),
        "busiest_host_urls": max(hosts.values(), default=0),
        "shards": len(tables),
        "bytes": sum(side_by_side(size, [table.with_suffix(".tar") for table in tables])),
        "reasons": dict(sorted(reasons.items())),
        "urls_per_s": round(asked / seconds, 1) if asked else None,
    }
