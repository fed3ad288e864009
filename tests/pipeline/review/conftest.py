"""Labels of a few pictures, decisions about them, and the page of them behind a server."""

from __future__ import annotations

import dataclasses
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image, ImageDraw

from pipeline.inspection.gallery import Page
from pipeline.inspection.row_identity import row_fingerprint
from pipeline.inspection.search import Filter, find_rows
from pipeline.review.decisions import Decision
from pipeline.review.server import make_app
from pipeline.review.session import ReviewSession
from pipeline.review.store import DecisionStore
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import shard_name, write_shard

WIDTH, HEIGHT = 200, 100
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def picture(*boxes: Sequence[float]) -> ImageRef:
    image = Image.new("RGB", (WIDTH, HEIGHT), "navy")
    for box in boxes:
        ImageDraw.Draw(image).rectangle(tuple(box), fill="orange")
    out = io.BytesIO()
    image.save(out, "PNG")
    return ImageRef(bytes=out.getvalue())


def make_row(key: str, caption: str, **boxes: Sequence[tuple[float, ...]]) -> GroundingRecord:
    phrases = []
    for name, found in boxes.items():
        text = name.replace("_", " ")
        start = caption.index(text)
        scored = tuple(ScoredBox(xyxy=(b[0], b[1], b[2], b[3]), score=b[4]) for b in found)
        reason = None if scored else "below_min_score"
        phrases.append(Phrase(text=text, char_spans=((start, start + len(text)),), boxes=scored, reject_reason=reason))
    image = picture(*(b[:4] for found in boxes.values() for b in found))
    return GroundingRecord(
        key=key, image=image, height=HEIGHT, width=WIDTH, caption=caption, source="web", phrases=tuple(phrases)
    )


ROWS = [
    make_row("k0", "a dog and a red cat", dog=[(20, 20, 80, 80, 0.75)], red_cat=[(120, 10.25, 180, 60, 0.5)]),
    make_row("k1", "a bird", bird=[(50, 30, 90, 70, 0.25)]),
    make_row("k2", "a dog by a tree", dog=[(10, 10, 60, 60, 0.875), (100, 10, 150, 60, 0.375)], tree=[]),
    make_row("k3", f"a dog {HOSTILE}", dog=[(5, 5, 40, 40, 0.625)]),
]


@pytest.fixture
def rows() -> list[GroundingRecord]:
    return ROWS


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    for number in range(2):
        write_shard(tmp_path / "labels" / shard_name(number), ROWS[2 * number : 2 * number + 2], GroundingRecord)
    return tmp_path / "labels"


@pytest.fixture
def decide() -> Callable[..., Decision]:
    """Makes decisions; phrases are (text, spans, boxes, verdict), None takes those of the row."""
    count = iter(range(10**6))

    def make(row: GroundingRecord, phrases: Any = None, reviewer: str = "ann", **values: Any) -> Decision:
        number = next(count)
        if phrases is None:
            phrases = [
                (p.text, p.char_spans, [box.xyxy for box in p.boxes], "right" if p.boxes else "open")
                for p in row.phrases
            ]
        names = ("text", "spans", "boxes", "verdict")
        head = {"id": f"decision-{number:06d}", "key": row.key, "row": row_fingerprint(row), "reviewer": reviewer}
        head |= {"at": f"2026-01-01T00:00:{number % 60:02d}.{number:06d}Z"}
        return Decision.model_validate(
            head | {"phrases": [dict(zip(names, each, strict=True)) for each in phrases]} | values
        )

    return make


@dataclasses.dataclass
class Served:
    """A page behind a server of this process."""

    url: str
    session: ReviewSession
    store: DecisionStore


@pytest.fixture
def serve(labels: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Serve the labels on a port; all servers end with the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(token: str | None = None, folder: Any = None, decided: Sequence[Decision] = (), **page: Any) -> Served:
        store = DecisionStore(folder or tmp_path / "reviews")
        found = list(find_rows(labels, Filter()))
        session = ReviewSession(found, store, decided, 1_000_000, [], Counter())
        page = {"title": "labels", "reviewer": "ann"} | page
        app = make_app(session, Page(is_served=True, **page), token)
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        running.append((server, thread))
        return Served(f"http://127.0.0.1:{listening.getsockname()[1]}", session, store)

    yield start
    for server, thread in running:
        server.should_exit = server.force_exit = True
        thread.join()
