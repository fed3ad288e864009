"""Work done ahead: in order, beside its use, ended when its user is."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest
import torch

from pipeline.errors import ShardError, TrainingError
from pipeline.training.loading import PREFETCHED, load_ahead


def about_process(number: int) -> tuple[int, int, int]:
    return number, os.getpid(), torch.get_num_threads()


def fail_at_two(number: int) -> int:
    if number == 2:
        raise ShardError("part-00002.parquet: broken")
    return number


def die(number: int) -> int:
    os._exit(3)


def test_thread_works_ahead_but_not_further_than_it_should() -> None:
    threads: list[threading.Thread] = []
    made = load_ahead(lambda number: threads.append(threading.current_thread()), range(100), 0)
    next(made)
    made.close()
    assert 1 <= len(threads) <= 1 + PREFETCHED
    assert threading.main_thread() not in threads


class Pinnable:
    def __init__(self) -> None:
        self.pinned_by: threading.Thread | None = None

    def pin_memory(self) -> Pinnable:
        self.pinned_by = threading.current_thread()
        return self


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_thread_puts_what_it_made_where_a_gpu_fetches_it(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    for made, number in load_ahead(lambda number: (Pinnable(), number), range(4), 0):
        assert number in range(4)
        assert (made.pinned_by is not None) == has_gpu
        assert made.pinned_by is not threading.main_thread()


def test_processes_keep_the_order_and_have_one_thread_each() -> None:
    numbers, processes, threads = zip(*load_ahead(about_process, range(3, 9), 2), strict=True)
    assert numbers == tuple(range(3, 9))
    assert len(set(processes)) == 2
    assert os.getpid() not in processes
    assert set(threads) == {1}


def test_processes_end_when_nobody_asks_any_longer() -> None:
    made = load_ahead(about_process, range(100), 1)
    next(made)
    made.close()
    end = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [0, 1])
def test_errors_come_as_they_were_raised_and_in_their_place(processes: int) -> None:
    made = load_ahead(fail_at_two, range(5), processes)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ShardError, match=r"^part-00002.parquet: broken$"):
        next(made)


def test_process_that_dies_is_an_error_that_says_so() -> None:
    with pytest.raises(TrainingError, match="a process that makes batches died"):
        next(load_ahead(die, range(5), 1))


def test_nothing_to_do_starts_nothing() -> None:
    assert list(load_ahead(about_process, range(0), 2)) == []
