"""GRIT, the grounded web pairs of Kosmos-2: captions whose phrases a machine boxed, as Parquet or tars.

Every region is ``[first character, one behind the last, x1, y1, x2, y2, score]``, its corners shares of the sides.

Source: Peng et al., Kosmos-2: Grounding Multimodal Large Language Models to the World, 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.prepare.raw import Part, RawGrounding, RawPair, RawPhrase, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.columns import CAPTION_COLUMNS, LICENSE_COLUMNS, URL_COLUMNS, first_value
from pipeline.prepare.readers.lines import parse_json
from pipeline.prepare.readers.odvg import SUREST
from pipeline.prepare.readers.parquet_rows import Values, parquet_table
from pipeline.prepare.readers.url_lists import downloaded
from pipeline.prepare.readers.webdataset import read_tar
from pipeline.store.filesystem import file_identity, list_files
from pipeline.store.records import GroundingRecord
from pipeline.store.urls import redact

REGIONS = ("noun_chunks", "ref_exps")
_SPAN, _BOX, _SCORE = slice(0, 2), slice(2, 6), 6


def read_grit(
    context: SourceContext,
    *,
    tables: Url | None = None,
    shards: Url | None = None,
    images: Url | None = None,
    file_name: str = "{row:09d}.jpg",
    regions: Literal["noun_chunks", "ref_exps", "both"] = "noun_chunks",
) -> list[RawTable]:
    """GRIT's rows as pseudo-labels: boxes with their scores, below 1, for phrases of the caption.

    A referring expression holds the noun chunk that it begins with, so that ``both`` asks for one thing by two names.

    Options:
        tables: its Parquet files, with a column ``url``; or
        shards: tars of downloaded pictures with ``noun_chunks`` and ``ref_exps`` in every ``KEY.json``.
        images: with ``tables``: folder of the downloaded pictures; left out, every one is fetched from its URL.
        file_name: with ``images``: as for ``url_list``.
        regions: which of them become phrases.
    """
    names = REGIONS if regions == "both" else (regions,)
    if (tables is None) == (shards is None):
        raise ConfigError(f"source {context.name}: reader 'grit' needs either tables or shards")
    if tables is not None:

        def row(table: str, number: int, values: Values, text: Any) -> Iterator[RawGrounding | Reject]:
            address = first_value(values, URL_COLUMNS)
            if not isinstance(address, str):
                yield Reject(f"row {number}", "row_malformed")
                return
            image = replace(
                downloaded(number, address, images, file_name), license=first_value(values, LICENSE_COLUMNS)
            )
            yield _grounding(names, RawPair(name=address, image=image, caption=text), values)

        optional = (*names, *LICENSE_COLUMNS)
        return [parquet_table(tables, URL_COLUMNS, CAPTION_COLUMNS, row, optional, GroundingRecord)]

    urls = list_files(shards or "")

    def parts(rows_per_part: int) -> Iterator[Part]:
        for url in urls:
            rows = partial(read_tar, url, "txt", partial(_grounding, names))
            yield Part(redact(url), f"{file_identity(url)} {names}", rows)

    return [RawTable(GroundingRecord, parts)]


def _grounding(names: Sequence[str], pair: RawPair, values: Mapping[str, Any]) -> RawGrounding:
    """Return a pair with its regions as phrases, those of one span together, in the order in which spans come first."""
    by_span: dict[str, tuple[Any, list[Any], list[Any]]] = {}
    for region in (region for name in names for region in _regions(values.get(name))):
        fields = region if isinstance(region, list | tuple) and len(region) > _SCORE else [None] * (_SCORE + 1)
        _, boxes, scores = by_span.setdefault(repr(fields[_SPAN]), (fields[_SPAN], [], []))
        boxes.append(fields[_BOX])
        scores.append(SUREST if fields[_SCORE] == 1 else fields[_SCORE])
    return RawGrounding(
        name=pair.name,
        image=pair.image,
        caption=pair.caption,
        converted=pair.converted,
        phrases=[
            RawPhrase(char_spans=[span], boxes=boxes, scores=scores, is_relative=True)
            for span, boxes, scores in by_span.values()
        ],
    )


def _regions(value: Any) -> Sequence[Any]:
    """Return the regions of a field; what is there and is no list of them counts as one that is broken."""
    found = parse_json(value) if isinstance(value, str) else value  # some tools write lists as text
    if isinstance(found, list | tuple):
        return found
    return () if value is None or value in ("", {}) else (None,)
