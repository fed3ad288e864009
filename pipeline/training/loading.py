"""Work that is done ahead of its use, in order: in one thread, or in processes of torch's DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory  # as the DataLoader does it

from pipeline.cli import quiet_libraries
from pipeline.errors import PipelineError, TrainingError

T = TypeVar("T")

PREFETCHED = 3
"""Results that wait to be used: of the thread, or of each process."""


def load_ahead(make: Callable[[int], T], numbers: Sequence[int], processes: int) -> Generator[T, None, None]:
    """Yield what ``make`` makes of every number, in order, made ahead; closing the iterator ends threads and processes.

    Args:
        make: a function of the number alone; pickled where there are processes. Where there is a GPU, what it makes is
            put where the GPU fetches it from beside other work, by ``pin_memory`` of its own or as torch does.
        numbers: asked for one after the other.
        processes: 0 for a thread.

    Raises:
        PipelineError: whatever ``make`` raises of it, as it is.
        TrainingError: a process died.
    """
    return _in_processes(make, numbers, processes) if processes and numbers else _in_thread(make, numbers)


def _in_thread(make: Callable[[int], T], numbers: Sequence[int]) -> Generator[T, None, None]:
    has_gpu = torch.cuda.is_available()

    def make_ready(number: int) -> Any:
        made = make(number)
        return pin_memory(made) if has_gpu else made  # type: ignore[no-untyped-call]

    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(make_ready, number) for number in numbers[:PREFETCHED]]
        for i in range(len(numbers)):
            made = pending.pop(0).result()
            if i + PREFETCHED < len(numbers):
                pending.append(pool.submit(make_ready, numbers[i + PREFETCHED]))
            yield made


def _in_processes(make: Callable[[int], T], numbers: Sequence[int], processes: int) -> Generator[T, None, None]:
    # A process that Ray, Arrow or a GPU run threads in cannot be forked safely.
    loader = DataLoader(
        _Made(make, numbers),
        batch_size=None,
        num_workers=min(processes, len(numbers)),
        prefetch_factor=PREFETCHED,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
        worker_init_fn=_prepare_process,
        multiprocessing_context="spawn",
    )
    try:
        for made in loader:
            if isinstance(made, PipelineError):
                raise made
            yield made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process that makes batches died ({' '.join(str(error).split())}); with too little memory, lower "
            "train.loader_processes or train.samples.shuffle_window"
        ) from error


class _Made(Dataset[T | PipelineError], Generic[T]):
    """A dataset of ``make(number)``.

    A PipelineError is returned as a value: torch would replace its message if it were raised.
    """

    def __init__(self, make: Callable[[int], T], numbers: Sequence[int]) -> None:
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> T | PipelineError:
        try:
            return self._make(self._numbers[place])
        except PipelineError as error:
            return error


def _as_it_is(made: T) -> T:
    return made


def _prepare_process(number: int) -> None:
    """Keep a loader process to one core, as the DataLoader does for torch."""
    pa.set_cpu_count(1)
    quiet_libraries()
