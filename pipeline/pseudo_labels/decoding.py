"""Pictures decoded and resized beside the model, in processes of their own.

A decoder is code in C that reads what strangers wrote. One that never comes back, or takes its process with it, costs
its own picture here and nothing else; and while the model works on one batch, the pictures of another are decoded. What
comes back are pixels and messages, never pickles: a decoder that strangers took over has nothing to say to the teacher.
"""

from __future__ import annotations

import multiprocessing
import queue
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from glip_model.images import ImageError, decode_image
from glip_model.resizing import ResizedImage, ResizeRule
from pipeline.store.images import read_encoded
from pipeline.store.records import ImageRef

DEATHS = 3
"""A picture is unreadable when its decoder died this often; a single death may have another cause."""
START_S = 120.0
"""How long a process may take to begin."""
SOCKET_BYTES = 1 << 20
"""Size of a socket's buffer: a resized picture of 3 MB comes in a few pieces instead of dozens."""
_READY, _PICTURE, _REFUSAL = 0, 1, 2
_HEADER = struct.Struct("<BIIIId")
"""Kind; height and width of the original and of what comes back, or the length of a refusal; CPU seconds."""
_MAX_REFUSAL_BYTES = 1 << 16

Decoded = Image.Image | ResizedImage | ImageError
"""A picture as a teacher takes it, or why it is none."""


class PictureDecoder(AbstractContextManager["PictureDecoder"]):
    """Decodes and resizes batches of pictures, for several threads; a context manager that ends its processes.

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

    @property
    def cpu_s(self) -> float:
        """CPU seconds that processes say they have worked on pictures."""
        return sum(worker.cpu_s for worker in self._workers)

    def decode(self, refs: Sequence[ImageRef], rule: ResizeRule | None = None) -> list[Decoded]:
        """Return RGB pictures in order, or why one is none: the reasons of ``load_image``, and ``image_timeout``.

        Args:
            refs: of records.
            rule: how they are resized; None returns them as they are, as PIL pictures.
        """
        found: list[Any] = list(read_encoded(refs, self._roots))
        encoded = [i for i, data in enumerate(found) if isinstance(data, bytes)]
        # A slice for every process, in one message: a message a picture would cost more than small pictures do.
        slices = [encoded[first :: self._processes] for first in range(min(self._processes, len(encoded)))]
        for places, images in zip(
            slices,
            self._threads.map(lambda places: self._decode([found[i] for i in places], rule), slices),
            strict=True,
        ):
            for i, image in zip(places, images, strict=True):
                found[i] = image
        return found

    def _decode(self, pictures: Sequence[bytes], rule: ResizeRule | None) -> list[Decoded]:
        worker = self._idle.get()
        try:
            return worker.decode(pictures, rule)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process that decodes one picture after another, and is replaced when it hangs or dies."""

    def __init__(self, max_pixels: int, timeout_s: float) -> None:
        self._max_pixels, self._timeout_s = max_pixels, timeout_s
        self._process: multiprocessing.process.BaseProcess | None = None
        self.cpu_s = 0.0

    def decode(self, pictures: Sequence[bytes], rule: ResizeRule | None) -> list[Decoded]:
        found: list[Decoded] = []
        deaths = 0  # over the first picture that was not answered
        while len(found) < len(pictures):
            answered = len(found)
            try:
                if self._process is None:
                    self._start()
                self._orders.send((pictures[answered:], rule))
                while len(found) < len(pictures):
                    found.append(self._receive(rule))
            except TimeoutError:
                self.stop()
                found.append(ImageError("image_timeout", f"not decoded within {self._timeout_s:g} s"))
                deaths = 0
            except (EOFError, OSError):
                self.stop()
                deaths = deaths + 1 if len(found) == answered else 1
                if deaths == DEATHS:
                    found.append(ImageError("image_unreadable", f"its decoder died {DEATHS} times"))
                    deaths = 0
        return found

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._orders.close()
            self._answers.close()
            self._process = None

    def _start(self) -> None:
        # Not forked: the process that holds a teacher has threads, whose locks a fork would copy.
        context = multiprocessing.get_context("spawn")
        orders, self._orders = context.Pipe(duplex=False)
        self._answers, answers = socket.socketpair()
        self._answers.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        answers.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._process = context.Process(target=_serve, args=(orders, answers, self._max_pixels), daemon=True)
        self._process.start()
        orders.close()
        answers.close()
        try:
            header = bytearray(_HEADER.size)
            self._fill(memoryview(header), time.monotonic() + START_S)
        except TimeoutError as error:
            raise OSError("the decoder did not start") from error

    def _receive(self, rule: ResizeRule | None) -> Decoded:
        """Return the answer to one picture; TimeoutError, or OSError where the decoder says what it cannot mean."""
        end = time.monotonic() + self._timeout_s
        header = bytearray(_HEADER.size)
        self._fill(memoryview(header), end)
        kind, *original, height, width, cpu_s = _HEADER.unpack(header)
        self.cpu_s += cpu_s
        if kind == _REFUSAL and height <= _MAX_REFUSAL_BYTES:
            message = bytearray(height)
            self._fill(memoryview(message), end)
            reason, _, words = message.decode(errors="replace").partition("\n")
            return ImageError(reason, words)
        size = original[0], original[1]
        is_sound = kind == _PICTURE and 0 < size[0] * size[1] <= self._max_pixels
        if not is_sound or (height, width) != (size if rule is None else rule.size(size)):
            raise OSError(f"a decoder answers {(kind, *size, height, width)}")
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        self._fill(pixels.data.cast("B"), end)
        return Image.fromarray(pixels) if rule is None else ResizedImage(pixels, size)

    def _fill(self, left: memoryview, end: float) -> None:
        """Fill memory with what comes; EOFError where the decoder is gone, TimeoutError at ``end``."""
        while left:
            self._answers.settimeout(max(end - time.monotonic(), 1e-3))
            count = self._answers.recv_into(left)
            if not count:
                raise EOFError
            left = left[count:]


def _serve(orders: Connection, answers: socket.socket, max_pixels: int) -> None:
    """Answer until the other end is gone."""
    answers.sendall(_HEADER.pack(_READY, 0, 0, 0, 0, 0.0))
    while True:
        try:
            pictures, rule = orders.recv()
        except EOFError:
            return
        for data in pictures:
            for part in _answer(data, max_pixels, rule):
                answers.sendall(part)


def _answer(data: bytes, max_pixels: int, rule: ResizeRule | None) -> tuple[bytes, bytes]:
    """Return header and content of the answer to one encoded picture."""
    start = time.process_time()
    try:
        image = decode_image(data, max_pixels)
    except ImageError as error:
        message = f"{error.reason}\n{str(error)[:1000]}".encode(errors="replace")
        return _HEADER.pack(_REFUSAL, 0, 0, len(message), 0, time.process_time() - start), message
    shown = image if rule is None else rule.resize(image)
    content = shown.tobytes()
    seconds = time.process_time() - start
    return _HEADER.pack(_PICTURE, image.height, image.width, shown.height, shown.width, seconds), content
