"""Pictures decoded beside the model, in processes of their own.

A decoder is code in C that reads what strangers wrote. One that never comes back, or takes its process with it, costs
its own picture here and nothing else; and while the model works on one batch, the pictures of another are decoded. What
comes back are pixels and messages, never pickles: a decoder that strangers took over has nothing to say to the teacher.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import select
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from glip_model.images import ImageError, decode_image
from pipeline.store.images import read_encoded
from pipeline.store.records import ImageRef

DEATHS = 3
"""A picture whose decoder dies as often is unreadable; once may have been somebody else's doing."""
START_S = 120.0
"""How long a process may take to begin."""
_READY, _PICTURE, _REFUSAL = b"r", b"p", b"e"
_SIZE = struct.Struct("<II")


class PictureDecoder(AbstractContextManager["PictureDecoder"]):
    """Decodes batches of pictures; a context manager that ends its processes.

    Args:
        max_pixels: larger pictures are refused before they are decoded.
        timeout_s: seconds that one picture may take.
        processes: pictures decoded at the same time.
        roots: folders and URLs that pictures must lie below, see ``check_inside``.
    """

    def __init__(self, max_pixels: int, timeout_s: float, processes: int, roots: Sequence[str]) -> None:
        self._roots = tuple(roots)
        self._processes, self._threads = processes, ThreadPoolExecutor(processes)
        self._workers = [_Worker(max_pixels, timeout_s) for _ in range(processes)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def decode(self, refs: Sequence[ImageRef]) -> list[Image.Image | ImageError]:
        """Return RGB pictures in order, or why one is none: the reasons of ``load_image``, and ``image_timeout``."""
        found: list[Any] = list(read_encoded(refs, self._roots))
        encoded = [i for i, data in enumerate(found) if isinstance(data, bytes)]
        # A slice for every process, in one message: a message a picture would cost more than small pictures do.
        slices = [encoded[first :: self._processes] for first in range(min(self._processes, len(encoded)))]
        for places, images in zip(
            slices, self._threads.map(lambda places: self._decode([found[i] for i in places]), slices), strict=True
        ):
            for i, image in zip(places, images, strict=True):
                found[i] = image
        return found

    def _decode(self, pictures: Sequence[bytes]) -> list[Image.Image | ImageError]:
        worker = self._idle.get()
        try:
            return worker.decode(pictures)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process that decodes one picture after another, and is replaced when it hangs or dies."""

    def __init__(self, max_pixels: int, timeout_s: float) -> None:
        self._max_pixels, self._timeout_s = max_pixels, timeout_s
        self._process: multiprocessing.process.BaseProcess | None = None

    def decode(self, pictures: Sequence[bytes]) -> list[Image.Image | ImageError]:
        found: list[Image.Image | ImageError] = []
        deaths = 0  # over the first picture that was not answered
        while len(found) < len(pictures):
            answered = len(found)
            try:
                if self._process is None:
                    self._start()
                self._pipe.send(pictures[answered:])
                while len(found) < len(pictures) and self._answers.poll(1000 * self._timeout_s):
                    found.append(_unpack(self._pipe.recv_bytes()))
            except (EOFError, OSError):
                self.stop()
                deaths = deaths + 1 if len(found) == answered else 1
                if deaths == DEATHS:
                    found.append(ImageError("image_unreadable", f"its decoder died {DEATHS} times"))
                    deaths = 0
                continue
            if len(found) < len(pictures):
                self.stop()
                found.append(ImageError("image_timeout", f"not decoded within {self._timeout_s:g} s"))
                deaths = 0
        return found

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _start(self) -> None:
        # Not forked: the process that holds a teacher has threads, whose locks a fork would copy.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._max_pixels), daemon=True)
        self._process.start()
        theirs.close()
        self._answers = select.poll()
        self._answers.register(self._pipe.fileno(), select.POLLIN)
        if not self._answers.poll(1000 * START_S) or self._pipe.recv_bytes() != _READY:
            raise OSError("the decoder did not start")


def _serve(pipe: Connection, max_pixels: int) -> None:
    """Answer until the other end is gone."""
    pipe.send_bytes(_READY)
    while True:
        try:
            pictures = pipe.recv()
        except EOFError:
            return
        for data in pictures:
            pipe.send_bytes(_answer(data, max_pixels))


def _answer(data: bytes, max_pixels: int) -> bytes:
    try:
        image = decode_image(data, max_pixels)
    except ImageError as error:
        return _REFUSAL + json.dumps([error.reason, str(error)]).encode()
    return _PICTURE + _SIZE.pack(*image.size) + image.tobytes()


def _unpack(answer: bytes) -> Image.Image | ImageError:
    if answer[:1] == _REFUSAL:
        reason, message = json.loads(answer[1:])
        return ImageError(str(reason), str(message))
    start = 1 + _SIZE.size
    return Image.frombytes("RGB", _SIZE.unpack(answer[1:start]), answer[start:])
