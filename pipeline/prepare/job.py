"""``prepare`` over Ray: every part of a raw data set is one task, which writes one shard or several."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import ray

from pipeline.cli import progress
from pipeline.errors import RejectLimitError
from pipeline.prepare.held_out import HeldOut, Sighting
from pipeline.prepare.parts import (
    ROOTS_KEY,
    PartResult,
    PartTask,
    count_boxes,
    drop_rows,
    find_duplicates,
    finished,
    look_at_shard,
    write_part,
)
from pipeline.prepare.raw import RawTable
from pipeline.prepare.reporting import metrics_of, num_faults, reject_summary, warn_of_rejects
from pipeline.prepare.settings import PrepareConfig
from pipeline.prepare.sources import Role, Source, check_references, open_sources, warn_of_scenes_beside_own_data
from pipeline.prepare.validation import Rules
from pipeline.prepare.values import MIN_BOX_SIDE
from pipeline.ray_session import on_all_machines, run_pool
from pipeline.store.atomic import sweep
from pipeline.store.image_roots import IMAGE_ROOTS, allowed_roots
from pipeline.store.provenance import FINGERPRINT, code_sha256, fingerprint
from pipeline.store.records import SCHEMA_VERSION, CaptionRecord, DetectionRecord, GroundingRecord
from pipeline.store.resume import MANIFEST_FILE, SHARDS, find_manifest, write_manifest_file
from pipeline.store.shards import KIND, PROVENANCE_KEY, REPEAT_KEY, categories_to_metadata
from pipeline.store.storage import Place, folders_below, list_files, make_folder, remove, remove_empty, side_by_side

logger = logging.getLogger(__name__)

FOLDERS = ("human/detection", "human/grounding", "web", "dev", "test")
"""Made even when no source fills them: later stages depend on them by name."""
_KINDS = {CaptionRecord: "", DetectionRecord: "detection", GroundingRecord: "grounding"}
_SHARD_OF_PART = re.compile(r"part-(\d+)(_\d+)?\.parquet")
_SHOWN_IN_TRAINING: tuple[Role, ...] = ("human", "web")
_JUDGED_BY: tuple[Role, ...] = ("dev", "test", "held_out")


def prepare(
    config: PrepareConfig,
    seed: int,
    out: Place,
    check: Callable[[Mapping[Role, Sequence[Source]]], None] | None = None,
    image_roots: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the records of all roles below ``out``; Ray must be running.

    Data that models are judged by comes first, so that none of its pictures gets into training. Parts that an earlier
    run finished, with the same files, settings and code, are kept. A row whose key an earlier row of its folder has is
    rejected as ``duplicate_key``.

    Args:
        config: the sources and what is done with them.
        seed: of what sources draw.
        out: folder for records.
        check: may refuse the opened sources before anything of them is read.
        image_roots: where pictures may be besides the sources' own folders, and where records may refer to.

    Returns:
        Metrics: rows, boxes, rejects and dropped boxes by reason, of every folder; where there are any, rows that were
        converted by what was done.

    Raises:
        ConfigError: a source's settings are wrong, or records would refer to pictures outside of ``image_roots``.
        MissingInputError: a raw file is not there.
        RejectLimitError: a folder has a larger share of rejects than ``max_reject_share``.
    """
    # As they are written: shards are the same wherever the project lies.
    digest = fingerprint({"image_roots": [*image_roots, os.environ.get(IMAGE_ROOTS)]})
    roots = _Roots(allowed_roots(image_roots), digest)
    sources = _opened(config, seed, roots)
    if check is not None:
        check(sources)
    for folder in FOLDERS:
        make_folder(out / folder)
    sightings: list[Sighting] = []
    held_out = None
    metrics: dict[str, Any] = {}
    num_kept = 0
    totals = [t.num_rows for group in sources.values() for source in group for t in source.tables]
    # Of some formats nobody knows the number of rows before they are read: the bar counts without an end then.
    with progress(None if None in totals else sum(filter(None, totals)), "prepare", "rows") as bar:
        for role in (*_JUDGED_BY, *_SHOWN_IN_TRAINING):
            if role == _SHOWN_IN_TRAINING[0] and sightings:
                held_out = HeldOut(sightings)
            tables = _tables_by_folder(role, sources[role])
            for folder, group in tables.items():
                shards = _Folder(folder, None if role == "held_out" else out, config, held_out, roots)
                result = shards.run(group, bar)
                num_kept += shards.num_kept
                sightings += result.sightings
                if role != "held_out":
                    metrics[folder] = metrics_of(result)
                warn_of_rejects(folder, result)
            _remove_leftovers(out / role, {out / folder for folder in tables})
    if num_kept:
        logger.info("prepare: %d parts were finished already", num_kept)
    return metrics


class _Roots(NamedTuple):
    """See ``allowed_roots``."""

    allowed: tuple[str, ...]
    digest: str
    """Of the settings."""


def _opened(config: PrepareConfig, seed: int, roots: _Roots) -> dict[Role, list[Source]]:
    """Open the sources of all roles; errors as ``prepare``."""
    sources: dict[Role, list[Source]] = {role: open_sources(role, config, seed) for role in get_args(Role)}
    warn_of_scenes_beside_own_data(sources)
    if config.pictures != "embed":
        check_references(sources, roots.allowed)
    return sources


def _tables_by_folder(role: Role, sources: Sequence[Source]) -> dict[str, list[tuple[Source, RawTable]]]:
    """Group the tables of a role by the folder of records that they are written to."""
    tables: dict[str, list[tuple[Source, RawTable]]] = {}
    for source in sources:
        for table in source.tables:
            kind = _KINDS[table.record_type] if role != "web" else ""
            tables.setdefault(f"{role}/{table.folder or kind}".rstrip("/"), []).append((source, table))
    return tables


class _Folder:
    """The shards of one folder, from planning to the manifest."""

    def __init__(
        self, name: str, out: Place | None, config: PrepareConfig, held_out: HeldOut | None, roots: _Roots
    ) -> None:
        self._name, self._path = name, None if out is None else out / name
        self._config, self._held_out, self._roots = config, held_out, roots
        self._record_type: type = DetectionRecord
        self.num_kept = 0
        """Parts that an earlier run had finished."""

    def run(self, tables: list[tuple[Source, RawTable]], bar: Any) -> PartResult:
        """Write all parts that are not finished; return what became of all rows.

        Raises:
            RejectLimitError: too large a share was rejected.
        """
        self._record_type = tables[0][1].record_type
        num_rows = [table.num_rows for _, table in tables]
        known = None if None in num_rows else sum(filter(None, num_rows))
        results: dict[int, PartResult] = {}
        whole = PartResult()
        earlier: dict[str, str] = {}
        """Of every shard, what the parts before its own depend on."""

        def take(task: PartTask, result: PartResult) -> None:
            results[task.number] = result
            whole.add(result)
            earlier.update(dict.fromkeys(result.files, task.earlier))
            num_raw = task.part.num_rows
            bar.update(num_raw if num_raw is not None else result.rows + result.rejects.total())
            if known:  # no need to read on when nothing that follows can mend it
                self._check_limit(whole, known)

        def unfinished() -> Iterator[PartTask]:
            for task in self._plan(tables):
                earlier = finished(task)
                if earlier is None:
                    yield task
                else:
                    self.num_kept += 1
                    take(task, earlier)

        write, held_out = ray.remote(num_cpus=1)(write_part), ray.put(self._held_out)
        at_once = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        for task, result in run_pool([write] * at_once, lambda write, task: write.remote(task, held_out), unfinished()):
            take(task, result)
        ordered = PartResult()
        for number in sorted(results):
            ordered.add(results[number])
        if self._path is not None:
            self._finish(ordered, tables, earlier)
        self._check_limit(ordered, ordered.rows + ordered.rejects.total())
        return ordered

    def _plan(self, tables: list[tuple[Source, RawTable]]) -> Iterator[PartTask]:
        number, earlier = 0, ""
        there = {} if self._path is None else shards_by_part(self._path)
        config = self._config
        for source, table in tables:
            rules = self._rules(source, table)
            code = code_sha256([write_part, source.reader])
            metadata = categories_to_metadata(table.categories) if table.record_type is DetectionRecord else {}
            for part in table.parts(config.rows_per_shard):
                depends_on = {
                    "part": part.identity,
                    "repeat": source.repeat,
                    "rules": [
                        rules.source,
                        rules.pictures,
                        rules.max_pixels,
                        rules.min_box_side,
                        rules.data_set,
                        metadata,
                        # Only where it is set: shards of runs without it keep their fingerprint.
                        *([sorted(rules.licenses)] if rules.licenses else []),
                    ],
                    "shards": [config.rows_per_shard, config.shard_mb, SCHEMA_VERSION, KIND[table.record_type]],
                    "held_out": self._held_out.digest() if self._held_out else None,
                    "code": code,
                }
                provenance = {
                    "source": source.name,
                    "settings": source.description,
                    "part": part.name,
                    FINGERPRINT: fingerprint(depends_on),
                }
                yield PartTask(
                    folder=self._path,
                    number=number,
                    part=part,
                    record_type=table.record_type,
                    rules=rules,
                    metadata={
                        **metadata,
                        REPEAT_KEY: str(source.repeat),
                        ROOTS_KEY: self._roots.digest,
                        PROVENANCE_KEY: json.dumps(provenance, ensure_ascii=False),
                    },
                    rows_per_shard=config.rows_per_shard,
                    shard_bytes=config.shard_mb * 10**6,
                    keeps_sightings=rules.is_judged_by,
                    there=there.get(number, ()),
                    earlier=earlier,
                )
                # A chain: rows are dropped as duplicates of earlier ones, so a change there concerns all later parts.
                number, earlier = number + 1, fingerprint({"earlier": earlier, "part": provenance[FINGERPRINT]})

    def _rules(self, source: Source, table: RawTable) -> Rules:
        """Return what applies to all rows of a table."""
        config, is_judged_by = self._config, self._name.split("/")[0] in _JUDGED_BY
        return Rules(
            source=source.name,
            pictures=config.pictures,
            max_pixels=config.max_image_pixels,
            categories=frozenset(category.id for category in table.categories),
            min_box_side=0.0 if is_judged_by else MIN_BOX_SIDE,
            # Held-out images are kept away even from their own data set's training split.
            data_set=source.data_set if self._path is not None else "",
            is_judged_by=is_judged_by,
            roots=self._roots.allowed,
            data_root=config.data_root,
            licenses=() if is_judged_by else config.licenses,
        )

    def _finish(self, result: PartResult, tables: list[tuple[Source, RawTable]], earlier: Mapping[str, str]) -> None:
        """Remove shards of earlier runs and rows that come again, and write the manifest."""
        assert self._path is not None
        sweep(self._path, SHARDS)
        side_by_side(remove, [path for path in list_files(self._path, SHARDS) if path.name not in set(result.files)])
        paths = [self._path / name for name in result.files]
        figures = on_all_machines(look_at_shard, paths)
        again = find_duplicates([shard.key_hashes for shard in figures])
        changed = [paths[number] for number in again]
        dropped = on_all_machines(drop_rows, changed, list(again.values()), [earlier[path.name] for path in changed])
        for number, shard in zip(again, dropped, strict=True):
            figures[number] = shard
        if sum(shard.duplicates for shard in figures):
            result.rejects["duplicate_key"] += sum(shard.duplicates for shard in figures)
            result.rows = sum(shard.rows for shard in figures)
            result.boxes = sum(count_boxes(path, self._record_type) for path in paths)
        write_manifest_file(
            self._path,
            {
                "schema_version": SCHEMA_VERSION,
                "kind": KIND[self._record_type],
                "sources": {source.name: source.description for source, _ in tables},
                "rows": result.rows,
                "boxes": result.boxes,
                "bytes": sum(shard.bytes for shard in figures),
                "licenses": dict(result.licenses),
                "shards": [
                    {"name": shard.name, "rows": shard.rows, "bytes": shard.bytes, "sha256": shard.sha256}
                    for shard in figures
                ],
            },
        )

    def _check_limit(self, result: PartResult, total: int) -> None:
        if num_faults(result) > self._config.max_reject_share * total:
            raise RejectLimitError(reject_summary(self._name, total, result, self._config.max_reject_share))


def shards_by_part(folder: Place) -> dict[int, list[Place]]:
    """Return the shards of a folder, in order, by the number of the part that each is of; it is listed once."""
    found: dict[int, list[Place]] = {}
    for path in list_files(folder, SHARDS):
        if matched := _SHARD_OF_PART.fullmatch(path.name):
            found.setdefault(int(matched[1]), []).append(path)
    return found


def _remove_leftovers(role: Place, written: set[Place]) -> None:
    """Remove what an earlier run wrote for sources that are no more; folders that later stages name stay.

    The user's own files stay, too, with the folders that hold them: raw data may lie in a folder named ``test``.
    """
    kept = {*written, *(role.parent / folder for folder in FOLDERS)}
    for folder in sorted([role, *folders_below(role)], reverse=True):  # what is inside of a folder before the folder
        if folder in written:
            continue
        sweep(folder, SHARDS)
        shards, manifest = list_files(folder, SHARDS), find_manifest(folder)
        if manifest and (shards or manifest.name == MANIFEST_FILE):
            remove(manifest)
        side_by_side(remove, shards)
        if folder not in kept and folder != role:
            remove_empty(folder)
