"""Decoder processes: right pixels, reasons for what is none, and pictures that hang or kill their decoder."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from glip_model.images import ImageError
from glip_model.resizing import ResizedImage, ResizeRule
from pipeline.pseudo_labels import decoding
from pipeline.pseudo_labels.decoding import PictureDecoder
from pipeline.store.records import ImageRef

RED = (2, 3, 12, 13)


@pytest.fixture(scope="module")
def decoder() -> Iterator[PictureDecoder]:
    with PictureDecoder(max_pixels=20_000_000, timeout_s=4.0, processes=2, roots=["/"]) as decoder:
        yield decoder


def children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # ended just now
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_pictures_come_back_in_order_with_their_pixels(
    decoder: PictureDecoder, picture: Callable[..., bytes], tmp_path: Path
) -> None:
    encoded = [picture((10 + i, 20), red=RED) for i in range(9)]
    (tmp_path / "a.png").write_bytes(encoded[3])
    refs = [ImageRef(bytes=data) for data in encoded]
    refs[3] = ImageRef(path=str(tmp_path / "a.png"))
    found = decoder.decode(refs)
    for data, image in zip(encoded, found, strict=True):
        assert isinstance(image, Image.Image)
        assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
        assert image.mode == "RGB"


def test_only_what_is_allowed_is_read(lures: Callable[[Path], list[str]], tmp_path: Path, web: Any) -> None:
    places = lures(tmp_path / "web_pairs")
    refs = [ImageRef(path=place) for place in places]
    roots = [str(tmp_path / "web_pairs")]
    with PictureDecoder(max_pixels=10_000, timeout_s=60.0, processes=1, roots=roots) as decoder:
        found = decoder.decode(refs)
    assert [getattr(each, "reason", None) for each in found] == ["image_outside_folder"] * len(places)
    assert web.requests == []
    with PictureDecoder(10_000, 60.0, 1, [*roots, str(tmp_path / "elsewhere"), web.url]) as decoder:
        allowed = [isinstance(each, Image.Image) for each in decoder.decode(refs)]
    wanted = [("secret.png" in place or "link.png" in place) and "simplecache" not in place for place in places]
    wanted[places.index(f"zip://secret.png::{web.url}/a.zip")] = False  # is not there
    assert allowed == wanted


def test_what_is_no_picture_says_why(decoder: PictureDecoder, picture: Callable[..., bytes]) -> None:
    large = io.BytesIO()
    Image.new("1", (5000, 5000)).save(large, "PNG")
    refs = [ImageRef(bytes=b"<html>"), ImageRef(bytes=large.getvalue()), ImageRef(path="/no/such.png"), ImageRef()]
    found = decoder.decode([*refs, ImageRef(bytes=picture(red=RED))])
    assert [error.reason for error in found[:-1] if isinstance(error, ImageError)] == [
        "image_unreadable",
        "image_too_large",
        "image_missing",
        "image_missing",
    ]
    assert isinstance(found[-1], Image.Image)


def test_a_picture_that_hangs_its_decoder_costs_itself_alone(
    decoder: PictureDecoder, picture: Callable[..., bytes], scan_bomb: bytes
) -> None:
    good = ImageRef(bytes=picture(red=RED))
    start = time.monotonic()
    before, hung, after = decoder.decode([good, ImageRef(bytes=scan_bomb), good])
    assert isinstance(hung, ImageError)
    assert (hung.reason, str(hung)) == ("image_timeout", "not decoded within 4 s")
    assert isinstance(before, Image.Image)
    assert isinstance(after, Image.Image)
    assert time.monotonic() - start < 60
    assert isinstance(decoder.decode([good])[0], Image.Image)


def test_a_decoder_that_somebody_kills_is_replaced(decoder: PictureDecoder, picture: Callable[..., bytes]) -> None:
    good = ImageRef(bytes=picture(red=RED))
    decoder.decode([good] * 4)
    killed = children()
    assert killed
    for process in killed:
        process.kill()
    assert all(isinstance(image, Image.Image) for image in decoder.decode([good] * 4))


def test_a_picture_that_kills_every_decoder_is_unreadable(scan_bomb: bytes) -> None:
    is_over, others = threading.Event(), {process.pid for process in children()}

    def kill_all() -> None:  # as the picture would
        while not is_over.wait(0.05):
            for process in children():
                if process.pid not in others:
                    process.kill()

    with PictureDecoder(max_pixels=20_000_000, timeout_s=60.0, processes=1, roots=[]) as decoder:
        killer = threading.Thread(target=kill_all)
        killer.start()
        (found,) = decoder.decode([ImageRef(bytes=scan_bomb)])
        is_over.set()
        killer.join()
    assert isinstance(found, ImageError)
    assert (found.reason, str(found)) == ("image_unreadable", "its decoder died 3 times")


def test_a_picture_answers_for_its_own_deaths_alone(
    monkeypatch: pytest.MonkeyPatch, picture: Callable[..., bytes]
) -> None:
    """The first picture kills two decoders and hangs the third; the one behind it may lose a decoder and live."""
    worker = decoding._Worker(max_pixels=10_000, timeout_s=1.0)
    script = iter([b"die", b"die", b"hang", b"die", b"good"])

    def start() -> None:
        ends = FakeEnds(next(script))
        worker._process, worker._orders, worker._answers = FakeProcess(), ends, ends

    monkeypatch.setattr(worker, "_start", start)
    first, second = worker.decode([b"bad", picture(red=RED)], None)
    assert isinstance(first, ImageError)
    assert first.reason == "image_timeout"
    assert isinstance(second, Image.Image)


class FakeProcess:
    def kill(self) -> None:
        pass

    join = kill


class FakeEnds:
    """Where orders go in and answers come out."""

    def __init__(self, fate: bytes) -> None:
        self.fate = fate

    def send(self, order: tuple[list[bytes], ResizeRule | None]) -> None:
        pictures, rule = order
        self.answers = b"".join(part for data in pictures for part in decoding._answer(data, 10_000, rule))

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= 1

    def recv_into(self, buffer: memoryview) -> int:
        if self.fate == b"hang":
            raise TimeoutError
        if self.fate == b"die":
            return 0
        some, self.answers = self.answers[: min(len(buffer), 100)], self.answers[min(len(buffer), 100) :]
        buffer[: len(some)] = some
        return len(some)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "answer",
    [
        (decoding._PICTURE, 1 << 16, 1 << 16, 1 << 16, 1 << 16, 0.0),
        (decoding._PICTURE, 24, 32, 48, 64, 0.0),  # not the size that was ordered
        (decoding._PICTURE, 0, 0, 0, 0, 0.0),
        (decoding._REFUSAL, 0, 0, 1 << 30, 0, 0.0),
        (9, 24, 32, 24, 32, 0.0),
    ],
)
def test_a_decoder_that_answers_nonsense_is_taken_for_dead(
    answer: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = decoding._Worker(max_pixels=10_000, timeout_s=1.0)

    def start() -> None:
        ends = FakeEnds(b"good")
        worker._process, worker._orders, worker._answers = FakeProcess(), ends, ends

    monkeypatch.setattr(worker, "_start", start)
    monkeypatch.setattr(decoding, "_answer", lambda *_: (decoding._HEADER.pack(*answer), bytes(1 << 16)))
    (found,) = worker.decode([b""], None)
    assert isinstance(found, ImageError)
    assert str(found) == "its decoder died 3 times"


def test_pictures_are_resized_as_the_predictor_does(decoder: PictureDecoder, picture: Callable[..., bytes]) -> None:
    rule = ResizeRule(80, 133, 32)
    sizes = [(32, 24), (300, 200), (1, 90), (80, 80)]
    before = decoder.cpu_s
    found = decoder.decode([ImageRef(bytes=picture(size, red=RED)) for size in sizes], rule)
    for size, resized in zip(sizes, found, strict=True):
        assert isinstance(resized, ResizedImage)
        expected = rule(Image.open(io.BytesIO(picture(size, red=RED))).convert("RGB"))
        assert resized.original_size == expected.original_size == size[::-1]
        assert np.array_equal(resized.pixels, expected.pixels)
    assert decoder.cpu_s > before


def test_nothing_is_left_behind(picture: Callable[..., bytes]) -> None:
    before = {process.pid for process in children()}
    with PictureDecoder(max_pixels=10_000, timeout_s=60.0, processes=2, roots=[]) as decoder:
        decoder.decode([ImageRef(bytes=picture(red=RED))] * 4)
        assert len(children()) > len(before)
    assert {process.pid for process in children()} == before
