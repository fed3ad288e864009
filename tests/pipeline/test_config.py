"""params.yaml: what loads, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import load_config
from pipeline.errors import ConfigError, MissingInputError

ROOT = Path(__file__).resolve().parents[2]


def load_with(tmp_path: Path, change: str, value: Any) -> Any:
    """Load the shipped params with one dotted setting replaced (or removed, for ``...``)."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    *sections, name = change.split(".")
    section = params
    for part in sections:
        section = section[part]
    if value is ...:
        del section[name]
    else:
        section[name] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return load_config(path)


def test_shipped_params_load() -> None:
    config = load_config(ROOT / "params.yaml")
    assert set(config.train.runs) == {"teacher", "student", "control"}
    assert config.train.runs["student"].steps == config.train.runs["control"].steps


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("train.optim.lerning_rate", 0.1, "train.optim.lerning_rate is not a setting; did you mean learning_rate?"),
        ("pseudo_label.num_actors", ..., "pseudo_label.num_actors is missing"),
        ("pseudo_label.min_score", 1.5, "pseudo_label.min_score is 1.5; expected 0 to 1"),
        ("train.optim.learning_rate", "1e-4", "train.optim.learning_rate is '1e-4'; expected float (write 1.0e-4"),
        ("train.optim.batch_size", True, "train.optim.batch_size is True; expected int"),
        ("train.optim.schedule", "linear", "train.optim.schedule is 'linear'; expected one of steps, cosine"),
        ("evaluate.splits", "dev", "evaluate.splits is 'dev'; expected a list"),
        ("evaluate.splits", ["val"], "evaluate.splits[0] is 'val'; expected one of dev, test"),
        ("train.runs.student.mixture", {"pseudos": 1.0}, "train.runs.student.mixture names 'pseudos'"),
        ("train.runs.student.mixture", {"pseudo": 0.0}, "no weight above 0"),
        ("prepare.embedded.max_objects", 0, "prepare.embedded.max_objects is 0; expected at least 1"),
        ("model.preset", "glip_xl", "model.preset is 'glip_xl'; expected one of"),
        ("model.overrides.chanels", 8, "chanels is not a model setting"),
        ("model.overrides.channels", 97, "channels (=97) must be divisible by norm_groups"),
        ("phrases", 3, "phrases is 3; expected a mapping"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_with(tmp_path, change, value)
    assert message in str(caught.value)
    assert str(tmp_path / "params.yaml") in str(caught.value)


def test_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="--params"):
        load_config(tmp_path / "none.yaml")


def test_broken_yaml_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config(path)


def test_an_integer_serves_where_a_float_is_expected(tmp_path: Path) -> None:
    assert load_with(tmp_path, "pseudo_label.min_score", 1).pseudo_label.min_score == 1.0
