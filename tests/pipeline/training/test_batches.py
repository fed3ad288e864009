"""Batches: a function of seed and step, divided among workers, robust against pictures that cannot be read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config import RunConfig, TrainConfig
from pipeline.data.records import ImageRef
from pipeline.errors import TrainingError
from pipeline.training import batches
from pipeline.training.batches import BatchMaker, TrainingBatch, Worker
from pipeline.training.samples import make_sources

Make = Callable[..., BatchMaker]


@pytest.fixture
def make_batches(human: Path, tiny: SimpleNamespace, tokenizer: Any, train_config: TrainConfig) -> Make:
    def make(
        folder: Path = human,
        mixture: dict[str, float] | None = None,
        seed: int = 0,
        worker: Worker | None = None,
        steps: int = 6,
        sides: tuple[int, ...] = (64,),
    ) -> BatchMaker:
        run = RunConfig(init="pretrained", steps=steps, mixture=mixture or {"detection": 1.0, "grounding": 1.0})
        config = replace(train_config, samples=replace(train_config.samples, short_sides=sides))
        sources = make_sources(folder, None, run.mixture, config.samples, tokenizer)
        return BatchMaker(sources, config, run, tiny.model_config(), tokenizer, seed, worker or Worker())

    return make


def same(a: TrainingBatch, b: TrainingBatch) -> bool:
    return (a.keys, a.segments) == (b.keys, b.segments) and torch.equal(a.inputs.pixel_values, b.inputs.pixel_values)


def test_batches_made_ahead_are_those_of_the_steps(make_batches: Make) -> None:
    ahead = list(make_batches().ahead(2))
    maker = make_batches()
    assert len(ahead) == 4
    for step, batch in enumerate(ahead, 2):
        assert same(batch, maker.make(step))


def test_batches_are_made_while_another_is_used(make_batches: Make) -> None:
    maker = make_batches()
    threads: list[threading.Thread] = []
    original = maker.make
    maker.make = lambda step: threads.append(threading.current_thread()) or original(step)  # type: ignore[method-assign]
    batches_ahead = maker.ahead(0)
    next(batches_ahead)
    batches_ahead.close()
    assert 1 <= len(threads) <= 1 + batches.PREFETCHED_BATCHES
    assert threading.main_thread() not in threads


def test_order_depends_on_the_seed(make_batches: Make) -> None:
    assert same(make_batches().make(1), make_batches().make(1))
    assert not same(make_batches().make(1), make_batches(seed=1).make(1))


def test_workers_divide_the_batch(make_batches: Make) -> None:
    whole = make_batches().make(3)
    halves = [make_batches(worker=Worker(rank, 2)).make(3) for rank in range(2)]
    assert halves[0].keys + halves[1].keys == whole.keys
    assert halves[0].segments + halves[1].segments == whole.segments
    pixels = torch.cat([half.inputs.pixel_values for half in halves])
    assert torch.equal(pixels, whole.inputs.pixel_values)
    assert whole.inputs.targets is not None


def test_batch_that_cannot_be_divided_is_an_error(make_batches: Make) -> None:
    with pytest.raises(TrainingError, match=r"batch_size \(=4\) must be divisible by train.num_workers \(=3\)"):
        make_batches(worker=Worker(0, 3))


def test_size_varies_by_step_and_is_the_same_for_all_workers(make_batches: Make) -> None:
    makers = [make_batches(sides=(32, 64, 96), steps=20, worker=Worker(rank, 2)) for rank in range(2)]
    sizes = [[maker.make(step).inputs.image_sizes for step in range(20)] for maker in makers]
    assert sizes[0] == sizes[1]
    assert {size for step in sizes[0] for size in step} == {(32, 32), (64, 64), (96, 96)}
    assert all(len(set(step)) == 1 for step in sizes[0])


def test_unreadable_pictures_give_way_to_others_and_are_counted(
    make_batches: Make, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    rows = [tiny.detection_record(f"d{i}", ["apple"], i) for i in range(6)]
    rows[1] = replace(rows[1], image=ImageRef(bytes=b"no picture"))
    rows[4] = replace(rows[4], image=ImageRef(path=str(tmp_path / "gone.png")))
    tiny.write_detection(tmp_path / "detection", rows)
    runs = []
    for _ in range(2):
        maker = make_batches(folder=tmp_path, mixture={"detection": 1.0})
        runs.append([maker.make(step).keys for step in range(6)])
        assert maker.unreadable >= 8  # 24 samples run four times through six rows, two of them bad
    assert runs[0] == runs[1]
    assert {key for keys in runs[0] for key in keys} == {"d0", "d2", "d3", "d5"}


def test_nothing_but_unreadable_pictures_is_an_error_that_names_one(
    make_batches: Make, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    record = replace(tiny.detection_record("bad", ["apple"]), image=ImageRef(path=str(tmp_path / "gone.png")))
    tiny.write_detection(tmp_path / "detection", [record])
    maker = make_batches(folder=tmp_path, mixture={"detection": 1.0})
    with pytest.raises(TrainingError, match=r"20 pictures of the detection data in a row .* 'bad': image_missing"):
        next(maker.ahead(0))
