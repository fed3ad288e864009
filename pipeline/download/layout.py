"""Shards in img2dataset's layout: ``00000.tar`` of pictures and texts, ``00000.parquet`` of all rows, its statistics.

The table is written last. In its metadata stand the fingerprint of what was asked for and the size of the tar, so that
a shard is finished exactly when its table says so, however a run was killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from yarl import URL

from pipeline.download.fetching import PASSING, Picture
from pipeline.errors import ShardError
from pipeline.store.atomic import replacing, storage_errors, write_json
from pipeline.store.provenance import FINGERPRINT
from pipeline.store.shards import PROVENANCE_KEY, read_metadata, read_table
from pipeline.store.storage import Place, list_files, remove, side_by_side, size

SUCCESS, FAILED = "success", "failed_to_download"
ROW_DIGITS = 4
"""Of a row's number in its key, behind that of the shard; more where shards have more rows."""
_OURS = re.compile(r"(\d{5,})(\.tar|\.parquet|_stats\.json)")
_TAR_BYTES, _PASSING = "tar_bytes", "passing_failures"
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("license", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("sha256", pa.string()),
    ]
)
"""Columns of a shard's table, as img2dataset names them; ``error_message`` is the reason."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a list says: a URL, None where the row is broken, and what belongs to its picture."""

    url: str | None
    caption: str | None
    license: str | None = None


class ShardFiles:
    """The three files of a shard.

    Args:
        folder: of the source.
        number: of the shard.
    """

    def __init__(self, folder: Place, number: int) -> None:
        self.name = f"{number:05d}"
        self.tar, self.table = folder / f"{self.name}.tar", folder / f"{self.name}.parquet"
        self.statistics = folder / f"{self.name}_stats.json"

    def is_finished(self, wanted: str, is_tried_again: bool) -> bool:
        """Tell whether an earlier run finished the shard.

        Args:
            wanted: fingerprint of what is asked for.
            is_tried_again: one with failures that may pass is not finished.
        """
        try:
            said = json.loads(read_metadata(self.table)[PROVENANCE_KEY])
            whole = size(self.tar) == said[_TAR_BYTES]
        except (ShardError, FileNotFoundError, KeyError, ValueError):
            return False
        return whole and said[FINGERPRINT] == wanted and not (is_tried_again and said[_PASSING])

    def clear(self) -> None:
        """Remove the shard, its claim to be finished first."""
        for place in (self.table, self.statistics, self.tar):
            remove(place)


class ShardWriter:
    """Takes pictures as they come and writes a shard in the order of its rows; a context.

    Pictures wait in a file on local disk, so that memory holds those alone that are on their way.

    Args:
        files: of the shard.
        rows: of the list.
    """

    def __init__(self, files: ShardFiles, rows: Sequence[Row]) -> None:
        self._files, self._rows = files, rows
        self._found: dict[int, tuple[int, int, Picture]] = {}
        """Of a row where its picture begins in the file, how long it is, and the picture without its bytes."""
        self._reasons: dict[int, str] = {}
        self._digests: dict[int, str] = {}
        self._key_digits = max(ROW_DIGITS, len(str(len(rows) - 1)))

    def __enter__(self) -> ShardWriter:
        """Begin."""
        self._waiting: IO[bytes] = tempfile.TemporaryFile(prefix="glip-download-")  # closed by __exit__
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what waits."""
        self._waiting.close()

    def take(self, number: int, found: Picture | str) -> None:
        """Take what came of a row."""
        if isinstance(found, str):
            self._reasons[number] = found
            return
        with storage_errors(Path(tempfile.gettempdir())):
            self._found[number] = self._waiting.tell(), len(found.data), replace(found, data=b"")
            self._waiting.write(found.data)
        self._digests[number] = hashlib.sha256(found.data).hexdigest()

    def finish(self, provenance: Mapping[str, Any], seconds: float) -> None:
        """Write all files, the table last.

        Args:
            provenance: with a fingerprint.
            seconds: that the shard took, for its statistics.

        Raises:
            StorageError: they cannot be written.
        """
        self._files.clear()
        with replacing(self._files.tar) as aside:
            self._write_tar(aside)
            tar_bytes = aside.stat().st_size
        reasons = Counter(self._reasons.values())
        write_json(
            self._files.statistics,
            {
                "count": len(self._rows),
                "successes": len(self._found),
                FAILED: len(self._reasons),
                "failed_to_resize": 0,
                "duration": seconds,
                "status_dict": {SUCCESS: len(self._found), **reasons},
            },
        )
        passing = sum(count for reason, count in reasons.items() if reason in PASSING)
        told = {**provenance, _TAR_BYTES: tar_bytes, _PASSING: passing}
        table = pa.Table.from_pylist([self._describe(number) for number in range(len(self._rows))], schema=SCHEMA)
        with replacing(self._files.table) as aside:
            pq.write_table(
                table.replace_schema_metadata({PROVENANCE_KEY: json.dumps(told)}), aside, write_page_checksum=True
            )

    def _key(self, number: int) -> str:
        return f"{self._files.name}{number:0{self._key_digits}d}"

    def _describe(self, number: int) -> dict[str, Any]:
        row, reason = self._rows[number], self._reasons.get(number)
        *_, picture = self._found.get(number, (0, 0, None))
        height, width = (picture.height, picture.width) if picture else (None, None)
        return {
            "key": self._key(number),
            "url": row.url,
            "caption": row.caption,
            "license": row.license,
            "status": SUCCESS if picture else FAILED,
            "error_message": reason,
            "width": width,
            "height": height,
            "original_width": width,
            "original_height": height,
            "sha256": self._digests.get(number),
        }

    def _write_tar(self, aside: Path) -> None:
        with tarfile.open(aside, "w", format=tarfile.GNU_FORMAT) as tar:
            for number, (start, length, picture) in sorted(self._found.items()):
                self._waiting.seek(start)
                key, described = self._key(number), self._describe(number)
                _add(tar, f"{key}.{picture.suffix}", self._waiting.read(length))
                _add(tar, f"{key}.txt", (self._rows[number].caption or "").encode())
                _add(tar, f"{key}.json", json.dumps(described, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def remove_others(folder: Place, shards: int) -> None:
    """Remove shards of an earlier, longer list."""
    found = [(place, _OURS.fullmatch(place.name)) for place in list_files(folder, "*")]
    side_by_side(remove, [place for place, matched in found if matched and int(matched[1]) >= shards])


def count_outcomes(table: Place) -> Counter[tuple[str, str]]:
    """Count the rows of a shard by host and outcome, ``success`` or a reason; the host of a broken URL is empty."""
    columns = read_table(table, ["url", "error_message"]).to_pydict()
    hosts = map(_host, columns["url"])
    return Counter(zip(hosts, (reason or SUCCESS for reason in columns["error_message"]), strict=True))


def _host(url: str | None) -> str:
    try:
        return URL(url or "").raw_host or ""
    except ValueError:
        return ""
