"""Tuning: what trains, what stays as it was, and what prompt tuning adds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glip_model.glip import GLIP
from pipeline.errors import TrainingError
from pipeline.training.loop import Trainer
from pipeline.training.rows import make_sources
from pipeline.training.settings import RunConfig, TrainConfig
from pipeline.training.tuning import freeze_for


def run_of(**settings: Any) -> RunConfig:
    return RunConfig(init="teacher", **{"steps": 2, "mixture": {"detection": 1.0}, **settings})


def trained(model: GLIP) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_full_tuning_leaves_the_model_as_it_is(make_model: Callable[..., GLIP]) -> None:
    model = make_model()
    before = trained(model)
    freeze_for(run_of(), model)
    assert trained(model) == before


def test_linear_tuning_trains_the_published_layers_of_the_head(make_model: Callable[..., GLIP]) -> None:
    model = make_model(frozen_text=False)
    freeze_for(run_of(tuning="linear"), model)
    layers = [f"head.{name}.{kind}" for name in ("bbox_pred", "centerness") for kind in ("weight", "bias")]
    projection = ["head.text_projection.weight", "head.text_projection.bias"]
    assert trained(model) == {*layers, *projection, "head.log_scale", "head.bias_lang", "head.bias0"}


@pytest.mark.parametrize("frozen_text", [True, False])
@pytest.mark.parametrize("tuning", ["linear", "prompt"])
def test_only_what_trains_moves(
    make_model: Callable[..., GLIP],
    human: Path,
    tokenizer: Any,
    train_config: TrainConfig,
    tmp_path: Path,
    tuning: str,
    frozen_text: bool,
) -> None:
    model, before = make_model(frozen_text=frozen_text, dropout=0.2), make_model(frozen_text=frozen_text, dropout=0.2)
    run = run_of(tuning=tuning)
    freeze_for(run, model)
    sources = make_sources(human, None, run.mixture, train_config.samples, tokenizer)
    trainer = Trainer(model, tokenizer, sources, train_config, run, seed=0)
    trainer.run()
    moves = trained(model)
    for name, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]) is (name not in moves), name
    assert not model.tower.training
    assert trainer._text_states is not None  # a frozen encoder runs once for every string
    model.save_pretrained(tmp_path / "tuned")
    again = GLIP.from_pretrained(tmp_path / "tuned")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_prompt_tuning_starts_from_what_the_model_says(
    make_model: Callable[..., GLIP], human: Path, tokenizer: Any, train_config: TrainConfig
) -> None:
    model = make_model(frozen_text=False).eval()
    sources = make_sources(human, None, {"detection": 1.0}, train_config.samples, tokenizer)
    trainer = Trainer(model, tokenizer, sources, train_config, run_of(), seed=0)
    batch = trainer._batches.make(0).inputs
    with torch.no_grad():
        expected = model(batch).token_logits
        freeze_for(run_of(tuning="prompt"), model)
        assert torch.equal(model(batch).token_logits, expected)
        assert trained(model) == {"text_offset"}
        assert model.text_offset is not None
        model.text_offset += 1
        assert not torch.equal(model(batch).token_logits, expected)
    offset = model.text_offset.clone()
    freeze_for(run_of(tuning="prompt"), model)  # tuned further, not anew
    assert torch.equal(model.text_offset, offset)


def test_stages_are_frozen_and_set_free(make_model: Callable[..., GLIP]) -> None:
    model = make_model()
    free = trained(model)
    freeze_for(run_of(frozen_stages=2), model)
    frozen = free - trained(model)
    assert frozen
    front = ("backbone.body.patch_embed", "backbone.body.layers.0", "backbone.body.layers.1")
    assert all(name.startswith(front) for name in frozen)
    freeze_for(run_of(frozen_stages=0), model)
    assert trained(model) == free
    with pytest.raises(TrainingError, match=r"frozen_stages is 99, the backbone has \d stages"):
        freeze_for(run_of(frozen_stages=99), model)
