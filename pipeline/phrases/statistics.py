"""What all captions together speak of: how many phrases differ, how often each is said, which names they cover.

The counting is DuckDB's, which goes to disk when tens of millions of phrases do not fit into memory.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pipeline.errors import MissingInputError, ShardError
from pipeline.store.atomic import write_csv
from pipeline.store.dataset import connect, open_dataset
from pipeline.store.storage import Place, read_text

CURVE_POINTS_PER_DECADE = 10
NAME_WORDS = 4
"""Longest name, in words, that is looked for at the end of phrases."""
_PHRASES = """
    CREATE TEMP TABLE counted AS
    SELECT lower(phrase.text) AS text, count(*) AS times
    FROM (SELECT unnest(phrases) AS phrase FROM shards) GROUP BY ALL
"""
_CURVE = """
    SELECT rank, times FROM (SELECT row_number() OVER (ORDER BY times DESC, text) AS rank, times FROM counted)
    WHERE rank IN (SELECT unnest($ranks)) ORDER BY rank
"""
_COVERED = """
    SELECT count(DISTINCT names.id) FROM names JOIN (
        SELECT unnest([array_to_string(words[-length:], ' ') FOR length IN range(1, $longest + 1)]) AS ending
        FROM (SELECT string_split_regex(text, '[\\s\\-]+') AS words FROM counted)
    ) ON ending = names.name OR ending = names.name || 's' OR ending = names.name || 'es'
"""


@dataclass(frozen=True)
class PhraseStatistics:
    """Figures over all shards of a folder."""

    phrases: int
    unique: int
    """Different ones, case aside."""
    said_once: int
    curve: tuple[tuple[int, int], ...]
    """Rank, from 1, and times that the phrase of this rank is said; ranks grow by a constant factor."""
    names: int = 0
    """Names that were looked for."""
    names_covered: int = 0
    """Of these, named by a phrase: as a whole or by its last words, in singular or plural."""


def count_phrases(folder: Place, names: Place | None = None) -> PhraseStatistics:
    """Count the phrases of shards: those of the phrases stage, pseudo-labels, or human grounding data.

    Args:
        folder: of the shards.
        names: file of names to look for, see ``read_names``.

    Raises:
        MissingInputError: there are no shards, or no such file.
        ShardError: the shards hold no phrases, or the file no names.
    """
    dataset = open_dataset(folder)
    if "phrases" not in dataset.schema.names:
        raise ShardError(f"{folder}: its shards hold no phrases; name a folder of phrases or of pseudo-labels")
    wanted = read_names(names) if names else []
    with connect(shards=dataset) as db:
        db.execute(_PHRASES)
        total, unique, once = db.execute(
            "SELECT coalesce(sum(times), 0)::BIGINT, count(*), count(*) FILTER (times = 1) FROM counted"
        ).fetchall()[0]
        curve = db.execute(_CURVE, {"ranks": _ranks(unique)}).fetchall()
        covered = _count_covered(db, wanted) if wanted else 0
    return PhraseStatistics(total, unique, once, tuple(curve), len(wanted), covered)


def write_curve(stats: PhraseStatistics, path: Place) -> None:
    """Write the frequency curve as CSV with the columns ``rank`` and ``times``."""
    write_csv(path, [("rank", "times"), *stats.curve], end="\n")


def read_names(path: Place) -> list[list[str]]:
    """Return names with their synonyms, lower case, as words with spaces.

    Args:
        path: JSON with a list of categories, in COCO's or LVIS's layout or those alone; or text, one name a line.

    Raises:
        MissingInputError: there is no such file.
        ShardError: it holds no names.
    """
    text = read_text(path)
    if text is None:
        raise MissingInputError(f"{path}: no such file of names")
    try:
        found = [_spellings(entry) for entry in _categories(text)] if path.suffix == ".json" else _lines(text)
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: no list of categories with names ({error!r})") from error
    if not found:
        raise ShardError(f"{path}: holds no names; expected categories as in COCO or LVIS, or one name a line")
    return found


def _categories(text: str) -> Any:
    value = json.loads(text)
    return value["categories"] if isinstance(value, dict) else value


def _lines(text: str) -> list[list[str]]:
    return [[_plain(line)] for line in text.splitlines() if line.strip()]


def _spellings(category: Any) -> list[str]:
    return sorted({_plain(name) for name in [category["name"], *category.get("synonyms", [])]})


def _plain(name: str) -> str:
    """Return a name without what LVIS adds to tell senses apart: "bass_(fish)" → "bass"."""
    return " ".join(re.sub(r"\(.*?\)", " ", name.replace("_", " ").replace("-", " ").lower()).split())


def _ranks(unique: int) -> list[int]:
    ranks, exponent = set(), 0
    while (rank := round(10 ** (exponent / CURVE_POINTS_PER_DECADE))) <= unique:
        ranks.add(rank)
        exponent += 1
    return sorted(ranks | ({unique} if unique else set()))


def _count_covered(db: Any, names: list[list[str]]) -> int:
    db.execute("CREATE TEMP TABLE names (id INTEGER, name TEXT)")
    db.executemany("INSERT INTO names VALUES (?, ?)", [(i, name) for i, all_of in enumerate(names) for name in all_of])
    return int(db.execute(_COVERED, {"longest": NAME_WORDS}).fetchall()[0][0])
