"""params.yaml: what loads, and what a mistake is told."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import jsonschema
import pytest
import yaml

from pipeline.errors import ConfigError, MissingInputError
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.phrases.settings import PhrasesConfig
from pipeline.prepare.raw import Url
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.settings import extended_files, json_schema, load, load_all, parse_options, to_yaml
from pipeline.training.settings import OptimConfig, RunConfig, SamplesConfig, TrainConfig, TrainingSettings

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "pipeline/training/recipes").glob("*.yaml"))


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
    return load_all(path)


def test_shipped_params_load() -> None:
    config = load_all(ROOT / "params.yaml")
    runs = config.train.runs
    assert set(runs) == {"teacher", *config.rounds, "control", "one_round"}
    steps = sum(runs[name].steps for name in config.rounds)
    assert runs["control"].steps == steps  # what is compared had as many
    assert runs["round_1"].steps + runs["one_round"].steps == steps
    assert runs["one_round"].mixture == runs["round_1"].mixture


@pytest.mark.parametrize("name", ["params.yaml", "pipeline/training/recipes/glip_l.yaml"])
def test_settings_that_are_written_load_as_they_were(tmp_path: Path, name: str) -> None:
    config = load_all(ROOT / name)
    (tmp_path / "settings.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_all(tmp_path / "settings.yaml") == config


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
        ("train.runs.round_1.mixture", {"pseudos": 1.0}, "train.runs.round_1.mixture names 'pseudos'"),
        ("train.runs.round_1.steps", ..., "steps is 0 and epochs is 0; one of them must be above 0"),
        ("train.runs.round_1.epochs", 2, "steps is 400 and epochs is 2; one of them must be above 0"),
        ("train.runs.round_1.mixture", {"pseudo": 0.0}, "no weight above 0"),
        ("train.runs.round_1.mixture", {"pseudo": -1.0}, "mixture.pseudo is -1.0; expected at least 0"),
        ("train.runs.round_1.mixture", {"pseudo": math.inf}, "mixture.pseudo is inf; expected a finite number"),
        ("pseudo_label.min_box_side", math.nan, "pseudo_label.min_box_side is nan; expected a finite number"),
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


def test_what_files_of_before_lack_is_as_in_the_projects_own(tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections: dict[Any, dict[str, Any]] = {
        TrainConfig: params["train"],
        OptimConfig: params["train"]["optim"],
        SamplesConfig: params["train"]["samples"],
        PhrasesConfig: params["phrases"],
        PseudoLabelConfig: params["pseudo_label"],
        EvaluateConfig: params["evaluate"],
        type(load_all(ROOT / "params.yaml")): params,
    }
    for section, values in sections.items():
        for name in section.ADDED:
            del values[name]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    assert load_all(tmp_path / "params.yaml") == load_all(ROOT / "params.yaml")


def test_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="--params"):
        load_all(tmp_path / "none.yaml")


def test_broken_yaml_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_all(path)


@pytest.mark.parametrize("text", ["prepare: {human: &a [*a]}", 'phrases: {spacy_model: "\\ud800"}'])
def test_yaml_that_is_no_json_is_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(f"extends: {ROOT / 'params.yaml'}\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml: the file is not what YAML can say in JSON"):
        load_all(tmp_path / "params.yaml")


def test_an_integer_serves_where_a_float_is_expected(tmp_path: Path) -> None:
    assert load_with(tmp_path, "pseudo_label.min_score", 1).pseudo_label.min_score == 1.0


# Files that extend others


def write(path: Path, **settings: Any) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    write(tmp_path / "recipes/a.yaml", extends="../params.yaml", seed=3, train={"optim": {"batch_size": 7}})
    runs = {"only": {"init": "teacher", "epochs": 2, "mixture": {"detection": 1}}}
    optim = {"learning_rate": 0.5}
    path = write(tmp_path / "recipes/b.yaml", extends="a.yaml", train={"optim": optim, "runs": runs})
    base, found = load_all(tmp_path / "params.yaml"), load_all(path)
    changed = replace(base.train.optim, batch_size=7, learning_rate=0.5)
    only = RunConfig(init="teacher", epochs=2, mixture={"detection": 1.0})
    assert found == replace(base, seed=3, train=replace(base.train, optim=changed, runs={"only": only}))
    assert extended_files(path) == [path, path.parent / "a.yaml", path.parent / "../params.yaml"]


def test_what_is_no_section_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", extends=str(ROOT / "params.yaml"), model={"overrides": {"channels": 128}})
    assert load_all(path).model.overrides == {"channels": 128}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "a"}, "a.yaml: extends {}/a.yaml, which extends it in turn"),
        ({"a": "b", "b": "c", "c": "b"}, "c.yaml: extends {}/b.yaml, which extends it in turn"),
        ({"a": "gone"}, "a.yaml: extends {}/gone.yaml, which is not there"),
    ],
)
def test_chains_that_lead_nowhere_are_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, below in files.items():
        write(tmp_path / f"{name}.yaml", extends=f"{below}.yaml")
    with pytest.raises(ConfigError) as caught:
        load_all(tmp_path / "a.yaml")
    assert message.format(tmp_path) in str(caught.value)


def test_mistakes_are_told_of_the_file_that_has_them(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", extends=str(ROOT / "params.yaml"), train={"optim": {"lerning_rate": 0.1}})
    path = write(tmp_path / "top.yaml", extends="base.yaml", train={"optim": {"batch_size": 3}})
    with pytest.raises(ConfigError, match=r"base\.yaml: train\.optim\.lerning_rate is not a setting; did you mean"):
        load_all(path)
    with pytest.raises(ConfigError, match=r"odd\.yaml: extends is 3; expected the path"):
        load_all(write(tmp_path / "odd.yaml", extends=3))
    with pytest.raises(ConfigError, match=r"flat\.yaml: train is 3; expected a mapping"):
        load_all(write(tmp_path / "flat.yaml", extends=str(ROOT / "params.yaml"), train=3))


# One section, and what is made by hand


def test_a_room_reads_its_own_section_but_every_mistake_is_found(tmp_path: Path) -> None:
    shipped = load_all(ROOT / "params.yaml")
    assert load(ROOT / "params.yaml", EvaluateConfig) == shipped.evaluate
    training = load(ROOT / "params.yaml", TrainingSettings)
    assert (training.seed, training.model, training.train) == (shipped.seed, shipped.model, shipped.train)
    path = write(tmp_path / "a.yaml", extends=str(ROOT / "params.yaml"), report={"gallery_rows": 0})
    with pytest.raises(ConfigError, match=r"a\.yaml: report\.gallery_rows is 0; expected at least 1"):
        load(path, EvaluateConfig)


def test_sections_made_by_hand_are_checked() -> None:
    optim = load_all(ROOT / "params.yaml").train.optim
    with pytest.raises(ConfigError, match="batch_size is 0; expected at least 1"):
        replace(optim, batch_size=0)
    with pytest.raises(ConfigError, match="bf16 and fp16 are both true"):
        replace(optim, bf16=True, fp16=True)
    with pytest.raises(ConfigError, match="stepz is not a setting; did you mean steps"):
        RunConfig(init="teacher", stepz=2, mixture={"detection": 1.0})  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        optim.batch_size = 3


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_sections_reach_other_processes(pickler: Any) -> None:
    settings = load(ROOT / "params.yaml", TrainingSettings)
    assert pickle.loads(pickler.dumps(settings)) == settings


def test_numbers_are_of_the_type_that_hashes_of_shards_know(tmp_path: Path) -> None:
    found = load_with(tmp_path, "pseudo_label.min_score_by_source", {"a": 1})
    assert json.dumps(dataclasses.asdict(found.pseudo_label)["min_score_by_source"]) == '{"a": 1.0}'
    assert json.dumps(found.pseudo_label.decode_timeout_s) == "30.0"
    assert json.dumps(found.model.overrides["backbone"]["frozen_stages"]) == "2"


def test_runs_and_options_of_readers_are_told_by_their_names(tmp_path: Path) -> None:
    run = {"init": "teacher", "step": 2, "mixture": {"detection": 1}}
    with pytest.raises(ConfigError, match=r"train\.runs\.a\.step is not a setting; did you mean steps\?"):
        load_with(tmp_path, "train.runs", {"a": run})
    hints, defaults = {"folder": Url, "parts": Mapping[str, tuple[int, ...]]}, {"parts": None}
    options = parse_options(hints, defaults, {"folder": "x"}, "here[0]")
    assert (options, type(options["folder"])) == ({"folder": "x", "parts": None}, Url)
    assert parse_options(hints, defaults, {"folder": "x", "parts": {"a": [1]}}, "")["parts"] == {"a": (1,)}
    with pytest.raises(ConfigError, match=r"here\[0\]\.parts\.a\[1\] is 'b'; expected int"):
        parse_options(hints, defaults, {"folder": "x", "parts": {"a": [1, "b"]}}, "here[0]")
    with pytest.raises(ConfigError, match=r"here\[0\]\.folder is 3; expected Url"):
        parse_options(hints, defaults, {"folder": 3}, "here[0]")


# The schema for editors


def test_the_schema_is_that_of_the_sections() -> None:
    kept = json.loads((ROOT / "pipeline/params.schema.json").read_text(encoding="utf-8"))
    assert kept == json_schema(), "write it anew: glip settings --schema > pipeline/params.schema.json"
    jsonschema.Draft202012Validator.check_schema(kept)


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *RECIPES], ids=lambda path: path.stem)
def test_params_files_follow_the_schema_that_they_name(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = text.splitlines()[0].partition("$schema=")[2]
    schema = json.loads((path.parent / named).read_text(encoding="utf-8"))
    jsonschema.validate(yaml.safe_load(text), schema)


def test_the_schema_knows_what_files_must_say() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid({"extends": "params.yaml", "train": {"log_every": 3}})
    assert not validator.is_valid({"extends": "params.yaml", "train": {"log_every": 0}})
    assert not validator.is_valid({"extends": "params.yaml", "train": {"log_evry": 3}})
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    del shipped["train"]["optim"]["bf16"]
    assert not validator.is_valid(shipped)
    assert validator.is_valid(shipped | {"extends": "params.yaml"})
