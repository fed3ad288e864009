"""What makes a tuned model forget less: replay, other names, distillation, low-rank changes, weights between two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glip_model.glip import GLIP
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.adapters import merged
from pipeline.training.averaging import Trial, choose, interpolate, save_interpolated
from pipeline.training.distillation import LOSS, Distillation
from pipeline.training.loop import Trainer
from pipeline.training.model_folder import BEST_FOLDER, save_model
from pipeline.training.progress import Progress
from pipeline.training.prompts import DetectionPrompter, OtherNames
from pipeline.training.rows import Rows, make_sources
from pipeline.training.settings import RunConfig, SamplesConfig, TrainConfig
from pipeline.training.tuning import freeze_for

OTHERS = OtherNames(("table", "Apple", "chair", "lamp"), 2, are_unknown=True)


def count_words(text: str) -> int:
    return len(text.split())


def run_of(**settings: Any) -> RunConfig:
    return RunConfig(init="teacher", **{"steps": 3, "mixture": {"detection": 1.0}, **settings})


def trained(trainer: Trainer) -> list[Progress]:
    reports: list[Progress] = []
    trainer.run(reports.append)
    return reports


@pytest.mark.parametrize("are_unknown", [True, False])
@pytest.mark.parametrize("prompts", ["all", "sampled"])
def test_other_names_join_a_prompt_and_are_never_those_of_ones_own(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, prompts: Any, are_unknown: bool
) -> None:
    config = replace(samples_config, detection_prompts=prompts)
    others = replace(OTHERS, are_unknown=are_unknown)
    folder = tiny.write_detection(tmp_path, [tiny.detection_record("a", ["apple", "sea"])])
    rows = Rows(folder, DetectionPrompter(config, count_words, others=others))
    alone = Rows(folder, DetectionPrompter(config, count_words))
    places = set()
    for seed in range(20):
        sample = rows.sample(0, np.random.default_rng(seed))
        plain = alone.sample(0, np.random.default_rng(seed))
        assert sample is not None
        assert plain is not None
        joined = [i for i, name in enumerate(sample.prompt.phrases) if name in ("table", "chair", "lamp")]
        assert len(joined) == 2
        assert sorted(set(sample.prompt.phrases) - {"table", "chair", "lamp"}) == sorted(plain.prompt.phrases)
        assert list(sample.ignored_phrases) == (joined if are_unknown else [])
        named = [sample.prompt.phrases[i] for (i,) in sample.box_phrases]
        assert named == ["apple", "sea"]
        places.update(joined)
    assert len(places) > 2  # they stand anywhere


def test_other_names_give_way_to_ones_own(tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig) -> None:
    config = replace(samples_config, detection_prompts="all", max_prompt_tokens=2 + 2 * len(tiny.CATEGORIES) + 2)
    folder = tiny.write_detection(tmp_path, [tiny.detection_record("a", ["apple"])])
    sample = Rows(folder, DetectionPrompter(config, count_words, others=OTHERS)).sample(0, np.random.default_rng(0))
    assert sample is not None
    assert len(sample.prompt.phrases) == len(tiny.CATEGORIES) + 1


def test_replay_shows_rows_of_either_kind(
    tmp_path: Path, human: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    config = replace(samples_config, detection_prompts="all")
    for kind in ("detection", "grounding"):
        weights = {"detection": 0.5, "replay": 0.5}
        sources = make_sources(human, None, weights, config, tokenizer, replay=human / kind)
        assert set(sources) == {"detection", "replay"}
        assert sources["replay"].sample(0, np.random.default_rng(0)) is not None
    with pytest.raises(TrainingError, match="pass --replay"):
        make_sources(human, None, {"replay": 1.0}, config, tokenizer)


def test_distillation_has_a_slow_oracle_and_keeps_only_what_nobody_knows(
    human: Path, make_model: Callable[..., GLIP], tokenizer: Any, train_config: TrainConfig
) -> None:
    model = make_model().eval()
    start = copy.deepcopy(model)
    sources = make_sources(human, None, {"detection": 1.0}, train_config.samples, tokenizer, others=OTHERS)
    trainer = Trainer(model, tokenizer, sources, train_config, run_of(), 0)
    batch = trainer._inputs(trainer._batches.make(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        output, before = model(batch), start(batch)
        found = Distillation(start, 2.0)(output, batch)
    total, kept = 0.0, 0.0
    assert batch.targets is not None
    for row, target in enumerate(batch.targets):
        assert target.token_mask is not None
        for token in range(batch.attention_mask.shape[1]):
            if not batch.attention_mask[row, token] or target.token_mask[token]:
                continue
            wanted = before.token_logits[row, :, token].sigmoid().double()
            said = output.token_logits[row, :, token].sigmoid().double()
            entropy = -(wanted * said.log() + (1 - wanted) * (1 - said).log())
            total += float((entropy * (said - wanted) ** 2).sum())
            kept += float(wanted.sum())
    assert total > 0
    assert float(found) == pytest.approx(2 * total / max(kept, 1.0), rel=1e-4)
    assert float(Distillation(start, 1.0)(before, batch)) == pytest.approx(0.0, abs=1e-9)


def test_a_training_with_distillation_reports_its_loss_and_leaves_the_starting_model_alone(
    human: Path, make_model: Callable[..., GLIP], tokenizer: Any, train_config: TrainConfig
) -> None:
    model = make_model()
    distillation = Distillation(model, 1.0)
    weights = [value.clone() for value in distillation._model.state_dict().values()]
    sources = make_sources(human, None, {"detection": 1.0}, train_config.samples, tokenizer, others=OTHERS)
    trainer = Trainer(model, tokenizer, sources, train_config, run_of(), 0, distillation=distillation)
    reports = trained(trainer)
    assert all(entry.losses[LOSS] >= 0 for entry in reports)
    assert reports[-1].losses[LOSS] > 0
    names = [name for name in reports[-1].losses if name != "loss"]
    assert reports[-1].losses["loss"] == pytest.approx(sum(reports[-1].losses[name] for name in names), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(weights, distillation._model.state_dict().values(), strict=True))


def test_low_rank_changes_start_from_nothing_and_become_weights(
    human: Path, make_model: Callable[..., GLIP], tokenizer: Any, train_config: TrainConfig, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="needs the extra tune")
    model, before = make_model().eval(), make_model().eval()
    run = run_of(tuning="lora", lora_rank=2)
    freeze_for(run, model)
    sources = make_sources(human, None, run.mixture, train_config.samples, tokenizer)
    trainer = Trainer(model, tokenizer, sources, train_config, run, 0)
    batch = trainer._inputs(trainer._batches.make(0))
    with torch.no_grad():
        assert torch.allclose(model(batch).token_logits, before(batch).token_logits, atol=1e-6)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_" in name for name in names)
    assert all("lora_" in name or name.startswith("head.") for name in names)
    trained(trainer)
    whole = trainer.whole_model()
    assert whole is not None
    assert set(whole.state_dict()) == set(before.state_dict())
    with torch.no_grad():
        assert torch.allclose(whole.eval()(batch).token_logits, model.eval()(batch).token_logits, atol=1e-4)
        assert not torch.allclose(whole(batch).token_logits, before(batch).token_logits, atol=1e-4)
    save_model(whole, tokenizer, tmp_path / "whole")
    GLIP.from_pretrained(tmp_path / "whole")
    assert merged(before) is before


def test_weights_between_two_models(make_model: Callable[..., GLIP]) -> None:
    start, tuned = make_model(), make_model()
    tuned.add_text_offset()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 1
    ends = {0.0: start, 1.0: tuned}
    for share in (0.0, 0.25, 1.0):
        found = interpolate(start, tuned, share).state_dict()
        for name, value in tuned.state_dict().items():
            old = start.state_dict().get(name, torch.zeros_like(value))
            assert torch.allclose(found[name], old + share * (value - old), atol=1e-6), name
    assert all(
        torch.equal(value, interpolate(start, tuned, 1.0).state_dict()[name])
        for name, value in ends[1.0].state_dict().items()
    )


POINTS = st.floats(0, 100, allow_nan=False)


@given(st.lists(st.tuples(POINTS, POINTS), min_size=2, max_size=6), st.floats(0, 20))
def test_the_best_that_stays_within_the_budget_is_chosen(found: list[tuple[float, float]], may_lose: float) -> None:
    trials = [Trial(i / (len(found) - 1), *each) for i, each in enumerate(found)]
    chosen, keeps = choose(trials, may_lose)
    start = found[0][1]
    within = [trial for trial in trials[1:] if start - trial.other <= may_lose]  # type: ignore[operator]
    assert keeps == bool(within)
    assert chosen.share > 0
    if within:
        assert chosen in within
        assert chosen.own == max(trial.own for trial in within)
    else:
        assert chosen.other == max(trial.other for trial in trials[1:])  # type: ignore[type-var]


def test_what_judges_chooses_between_before_and_after(
    make_model: Callable[..., GLIP], tokenizer: Any, tmp_path: Path
) -> None:
    start, tuned = make_model(), make_model()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 1.0
    save_model(start, tokenizer, tmp_path / "start")
    save_model(start, tokenizer, tmp_path / "tuned")  # the last of the training, not the best
    save_model(tuned, tokenizer, tmp_path / "tuned" / BEST_FOLDER)
    first = next(iter(start.state_dict().values())).mean()

    def share(model: GLIP) -> float:
        return float(next(iter(model.state_dict().values())).mean() - first)

    def own(model: GLIP, _: Any, __: Path) -> dict[str, float]:
        return {"own": 10 + 40 * share(model)}

    def other(model: GLIP, _: Any, __: Path) -> dict[str, float]:
        return {"other": 50 - 10 * share(model)}

    out = tmp_path / "out"
    trials, keeps = save_interpolated(tmp_path / "start", tmp_path / "tuned", own, other, 6.5, out)
    assert keeps
    assert [trials[0].share, len(trials)] == [0.6, 6]
    assert share(GLIP.from_pretrained(out)) == pytest.approx(0.6, abs=1e-4)
    trials, keeps = save_interpolated(tmp_path / "start", tmp_path / "tuned", own, None, 0.0, out)
    assert (keeps, trials[0].share, trials[0].other) == (True, 1.0, None)
    assert share(GLIP.from_pretrained(out)) == pytest.approx(1.0, abs=1e-4)


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ConfigError, match="distillation is set, but no other_names"):
        run_of(distillation=1.0)
    with pytest.raises(ConfigError, match="expected detection, grounding, pseudo, reviewed, replay"):
        run_of(mixture={"reply": 1.0})
