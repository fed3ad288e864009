"""SQL over shards of grounding records, by DuckDB."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from pipeline.errors import ConfigError, ShardError
from pipeline.inspection.reading import open_labels
from pipeline.store.dataset import connect
from pipeline.store.storage import Place

TABLES = """labels   as stored: key, image, height, width, source, caption, phrases, reject_reason
phrases  one a line: key, source, caption, phrase, is_plural, boxes (how many), best (score), reject_reason
boxes    one a line: key, source, caption, width, height, phrase, x1, y1, x2, y2, score"""
"""What a query may name."""
_VIEWS = """
    CREATE VIEW phrases AS
    SELECT key, source, caption, phrase.text AS phrase, phrase.is_plural AS is_plural, len(phrase.boxes) AS boxes,
        list_max([box.score FOR box IN phrase.boxes]) AS best, phrase.reject_reason AS reject_reason
    FROM (SELECT key, source, caption, unnest(phrases) AS phrase FROM labels);
    CREATE VIEW boxes AS
    SELECT key, source, caption, width, height, phrase, unnest(box)
    FROM (
        SELECT key, source, caption, width, height, phrase.text AS phrase, unnest(phrase.boxes) AS box
        FROM (SELECT key, source, caption, width, height, unnest(phrases) AS phrase FROM labels)
    )
"""


def query(place: Place, sql: str, is_unsafe: bool = False) -> pa.Table:
    """Answer a query over the tables that ``TABLES`` lists; only an unsafe one may touch anything else, such as files.

    Raises:
        MissingInputError: there are no shards.
        ShardError: they hold other records, or text that is none.
        ConfigError: the query is wrong.
    """
    with connect(not is_unsafe, labels=open_labels(place)) as db:
        db.execute(_VIEWS)
        try:
            answer = db.sql(sql)
            table = pa.table({}) if answer is None else answer.to_arrow_table()
            table.validate(full=True)
            return table
        except pa.ArrowInvalid as error:
            raise ShardError(f"{place}: holds what cannot be shown ({error}); write the broken shard anew") from error
        except duckdb.Error as error:
            hint = "\n--sql-unsafe lets a query touch files" if isinstance(error, duckdb.PermissionException) else ""
            raise ConfigError(f"--sql: {error}{hint}\ntables:\n{TABLES}") from error


def format_table(table: pa.Table, limit: int) -> str:
    """Lay the first lines of an answer out for a terminal; pictures are shown by their size."""
    rows = [table.column_names]
    rows += [[_cell(value) for value in row.values()] for row in table.slice(0, limit).to_pylist()]
    widths = [max(len(row[i]) for row in rows) for i in range(table.num_columns)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(table) - limit
    return "\n".join([*lines, *([f"… and {more:,} more; --limit shows them"] if more > 0 else [])])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:79] + "…"
