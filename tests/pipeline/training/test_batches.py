"""Batches: a function of seed and step, divided among workers, robust against pictures that cannot be read."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from upath import UPath

from pipeline.errors import TrainingError
from pipeline.store.records import ImageRef
from pipeline.training.batches import BatchMaker, TrainingBatch, Worker
from pipeline.training.rows import make_sources
from pipeline.training.settings import RunConfig, TrainConfig
from pipeline.training.streaming import ORIENTED_STEPS

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
        processes: int = 0,
        allowed: Sequence[str] = (),
        **samples: Any,
    ) -> BatchMaker:
        run = RunConfig(init="pretrained", steps=steps, mixture=mixture or {"detection": 1.0, "grounding": 1.0})
        config = replace(
            train_config,
            samples=replace(train_config.samples, short_sides=sides, **samples),
            loader_processes=processes,
        )
        sources = make_sources(folder, None, run.mixture, config.samples, tokenizer, allowed)
        return BatchMaker(sources, config, run, tiny.model_config(), tokenizer, seed, worker or Worker())

    return make


def same(a: TrainingBatch, b: TrainingBatch) -> bool:
    return (a.keys, a.segments) == (b.keys, b.segments) and torch.equal(a.inputs.pixel_values, b.inputs.pixel_values)


STREAMED = {"shuffle_window": 6, "shuffle_lanes": 2}
ORIENTED = {**STREAMED, "group_by_orientation": True}


@pytest.fixture
def many_shards(tmp_path: Path, tiny: SimpleNamespace) -> Path:
    """Write shards of three rows; every fourth grounding row was rejected."""
    folder = tmp_path / "many"
    for number in range(4):
        keys = range(3 * number, 3 * number + 3)
        tiny.write_detection(
            folder / "detection", [tiny.detection_record(f"d{i}", ["apple"], i) for i in keys], number=number
        )
        rows = [tiny.grounding_record(f"g{i}", ["sea", "coal"], i) for i in keys]
        rows = [
            replace(row, reject_reason="no_boxes") if i % 4 == 0 else row for i, row in zip(keys, rows, strict=True)
        ]
        tiny.write_grounding(folder / "grounding", rows, number=number)
    return folder


@pytest.mark.parametrize(("processes", "samples"), [(0, {}), (0, STREAMED), (2, {}), (2, ORIENTED)])
def test_batches_made_ahead_are_those_of_the_steps(
    make_batches: Make, many_shards: Path, processes: int, samples: dict[str, int]
) -> None:
    ahead = list(make_batches(many_shards, steps=7, processes=processes, **samples).ahead(2))
    maker = make_batches(many_shards, steps=7, **samples)
    assert len(ahead) == 5
    for step, batch in enumerate(ahead, 2):
        assert same(batch, maker.make(step))


def test_streamed_rows_come_once_a_pass_and_rejected_ones_never(make_batches: Make, many_shards: Path) -> None:
    maker = make_batches(many_shards, {"detection": 1.0}, **STREAMED)
    for first in (0, 3):
        shown = [key for step in range(first, first + 3) for key in maker.make(step).keys]
        assert sorted(shown) == sorted(f"d{i}" for i in range(12))
    maker = make_batches(many_shards, {"grounding": 1.0}, **STREAMED)
    shown = [key for step in range(3) for key in maker.make(step).keys]
    assert set(shown) == {f"g{i}" for i in range(12) if i % 4}


def test_lanes_of_streamed_batches_have_one_orientation(
    make_batches: Make, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    for number in range(4):
        records = [tiny.detection_record(f"{number} {i}", ["apple"], i) for i in range(8)]
        tall = [replace(record, key=f"tall {record.key}") for record in records[:3]]  # a square counts as tall
        wide = [replace(record, height=tiny.SIDE - 1) for record in records[3:]]
        tiny.write_detection(tmp_path / "detection", [*tall, *wide], number=number)
    streamed = {"shuffle_window": 16, "shuffle_lanes": 2, "group_by_orientation": True}
    maker = make_batches(tmp_path, {"detection": 1.0}, steps=ORIENTED_STEPS, **streamed)
    batches = [maker.make(step).keys for step in range(ORIENTED_STEPS)]
    lanes = [[key.startswith("tall") for key in keys[start : start + 2]] for keys in batches for start in (0, 2)]
    assert sum(lane == [True, True] for lane in lanes) >= 40
    assert sum(len(set(lane)) > 1 for lane in lanes) <= 2  # the last of each lane
    counts = Counter(key for keys in batches for key in keys)
    assert (min(counts.values()), max(counts.values())) == (8, 8)  # of 32 rows, in 64 steps of four


def test_window_without_a_usable_row_is_an_error(make_batches: Make, tmp_path: Path, tiny: SimpleNamespace) -> None:
    rows = [replace(tiny.grounding_record(f"g{i}", ["sea"]), reject_reason="no_boxes") for i in range(4)]
    tiny.write_grounding(tmp_path / "grounding", rows)
    with pytest.raises(TrainingError, match="no row of a whole window of the grounding data can be shown"):
        make_batches(tmp_path, {"grounding": 1.0}, shuffle_window=4).make(0)


@pytest.mark.parametrize("samples", [{}, STREAMED], ids=["in memory", "streamed"])
def test_order_depends_on_the_seed(make_batches: Make, samples: dict[str, int]) -> None:
    assert same(make_batches(**samples).make(1), make_batches(**samples).make(1))
    assert not same(make_batches(**samples).make(1), make_batches(seed=1, **samples).make(1))


@pytest.mark.parametrize("samples", [{}, STREAMED, ORIENTED], ids=["in memory", "streamed", "oriented"])
def test_workers_divide_the_batch(make_batches: Make, samples: dict[str, int]) -> None:
    whole = make_batches(**samples).make(3)
    halves = [make_batches(worker=Worker(rank, 2), **samples).make(3) for rank in range(2)]
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
    rows[4] = replace(rows[4], image=ImageRef(path=str(tmp_path / "detection/gone.png")))
    tiny.write_detection(tmp_path / "detection", rows)
    maker = make_batches(folder=tmp_path, mixture={"detection": 1.0})
    keys = [maker.make(step).keys for step in range(6)]
    assert maker.unreadable >= 8  # 24 samples run four times through six rows, two of them bad
    for processes in (0, 2):
        ahead = make_batches(folder=tmp_path, mixture={"detection": 1.0}, processes=processes)
        assert [batch.keys for batch in ahead.ahead(0)] == keys
        assert ahead.unreadable == maker.unreadable
    assert {key for step in keys for key in step} == {"d0", "d2", "d3", "d5"}


@pytest.mark.parametrize("processes", [0, 1])
def test_nothing_but_unreadable_pictures_is_an_error_that_names_one(
    make_batches: Make, tmp_path: Path, tiny: SimpleNamespace, processes: int
) -> None:
    record = replace(tiny.detection_record("bad", ["apple"]), image=ImageRef(path=str(tmp_path / "detection/gone.png")))
    tiny.write_detection(tmp_path / "detection", [record])
    maker = make_batches(folder=tmp_path, mixture={"detection": 1.0}, processes=processes)
    with pytest.raises(TrainingError, match=r"^20 pictures of the detection data in a row .* 'bad': image_missing"):
        next(maker.ahead(0))


def test_pictures_outside_of_what_is_allowed_are_not_shown(
    make_batches: Make, tmp_path: Path, tiny: SimpleNamespace, lures: Callable[[Path], list[str]], web: Any
) -> None:
    folder = tmp_path / "human"
    places = lures(folder / "detection")
    rows = [
        replace(tiny.detection_record(f"bad{i}", ["apple"]), image=ImageRef(path=place))
        for i, place in enumerate(places)
    ]
    tiny.write_detection(folder / "detection", rows)
    with pytest.raises(TrainingError, match=r"image_outside_folder .*add the folder or URL above it to image_roots"):
        make_batches(folder=folder, mixture={"detection": 1.0}).make(0)
    tiny.write_detection(folder / "detection", [*rows[:5], tiny.detection_record("good", ["apple"])])
    maker = make_batches(folder=folder, mixture={"detection": 1.0})
    assert set(maker.make(0).keys) == {"good"}
    assert maker.unreadable
    assert web.requests == []
    allowed = [str(tmp_path / "elsewhere")]
    assert set(make_batches(folder=folder, mixture={"detection": 1.0}, allowed=allowed).make(0).keys) > {"good"}


def test_shards_in_a_store_are_streamed(make_batches: Make, many_shards: Path, s3: Any) -> None:
    s3.put(str(many_shards), "raw/records", recursive=True)
    remote = make_batches(UPath("s3://raw/records"), processes=1, steps=3, **STREAMED)
    local = make_batches(many_shards, steps=3, **STREAMED)
    for step, batch in enumerate(remote.ahead(0)):
        assert same(batch, local.make(step))


def test_memory_does_not_grow_with_the_number_of_shards(
    make_batches: Make, tmp_path: Path, tiny: SimpleNamespace
) -> None:
    record = tiny.detection_record("d", ["apple"])
    noise = np.random.default_rng(0).bytes(100_000)  # behind the picture's end, where no decoder looks
    peaks = []
    for shards in (20, 60):  # more than are kept open
        folder = tmp_path / str(shards)
        for number in range(shards):
            image = ImageRef(bytes=record.image.bytes + noise)
            rows = [replace(record, key=f"{number} {i}", image=image) for i in range(4)]
            tiny.write_detection(folder / "detection", rows, number=number)
        before = pa.total_allocated_bytes()
        maker = make_batches(folder, {"detection": 1.0}, steps=shards, shuffle_window=8)
        held = []
        for step in range(shards):
            maker.make(step)
            held.append(pa.total_allocated_bytes() - before)
        peaks.append(max(held))
        del maker
        gc.collect()
    assert peaks[0] > 1e6
    assert peaks[1] < 1.1 * peaks[0]


def test_sizes_that_the_settings_leave_out_are_the_models(
    human: Path,
    tokenizer: Any,
    train_config: TrainConfig,
    tiny: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    samples = replace(train_config.samples, short_sides=None, long_side=None)
    config = replace(train_config, samples=samples)
    run = RunConfig(init="pretrained", steps=2, mixture={"detection": 1.0})
    sources = make_sources(human, None, run.mixture, samples, tokenizer)
    for short_side in (32, 16):
        model = replace(tiny.model_config(), test_short_side=short_side, test_long_side=2 * short_side)
        batches = BatchMaker(sources, config, run, model, tokenizer, 0, Worker())
        assert min(batches.make(0).inputs.image_sizes[0]) == short_side
    (record,) = caplog.records  # pictures of 64 pixels are four times as large as the last model's
    assert (
        "of the detection data have a short side of 64 pixels (median), and training shrinks it to 16" in record.message
    )
