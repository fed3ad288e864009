"""Models in this process, without Ray: for a Space, and wherever one process is enough."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.serving.answering import Answerer, Asked, Found
from pipeline.serving.limits import Refusal

BATCH = 8
"""Requests that are answered together at most."""


class LocalBackend:
    """Models that take turns in one thread; what has come meanwhile for one of them is answered together.

    Args:
        models: by name.
        batch: requests that are answered together at most.
    """

    def __init__(self, models: Mapping[str, Answerer], batch: int = BATCH) -> None:
        self._models, self._batch = models, batch
        self._thread = ThreadPoolExecutor(1, "answers")
        self._waiting: dict[str, list[tuple[Asked, asyncio.Future[Found | Refusal]]]] = {name: [] for name in models}
        self._turns: set[asyncio.Task[None]] = set()

    async def models(self) -> Mapping[str, Sequence[str]]:
        """Return the models by name, with the names that each finds."""
        return {name: model.names for name, model in self._models.items()}

    async def find(self, model: str, asked: Asked) -> Found:
        """Answer a request; Refusal where that cannot be."""
        answer: asyncio.Future[Found | Refusal] = asyncio.get_running_loop().create_future()
        self._waiting[model].append((asked, answer))
        turn = asyncio.create_task(self._take_turn(model))
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)
        found = await answer
        if isinstance(found, Refusal):
            raise found
        return found

    async def _take_turn(self, model: str) -> None:
        """Answer what waits for a model when the thread is free; nothing does where an earlier turn took it along."""
        await asyncio.get_running_loop().run_in_executor(self._thread, int)  # the turn comes when those before are over
        waiting = self._waiting[model]
        now = [(asked, answer) for asked, answer in waiting[: self._batch] if not answer.done()]
        del waiting[: self._batch]
        if not now:
            return
        work = asyncio.get_running_loop().run_in_executor(
            self._thread, self._models[model], [asked for asked, _ in now]
        )
        try:
            found = await work
        except Exception as error:
            for _, answer in now:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), each in zip(now, found, strict=True):
            if not answer.done():  # whose time was up
                answer.set_result(each)
