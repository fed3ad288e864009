"""The graph of a run whose data is in a store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipeline.errors import ConfigError
from pipeline.submission.graph import put_in_store, stages_in_order

ROOT = Path(__file__).resolve().parents[3]
STORE = "s3://bucket/run"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    Repo.init(str(tmp_path), no_scm=True).close()
    return tmp_path


def test_folders_of_data_and_models_rest_in_the_store_and_nothing_else(project: Path) -> None:
    put_in_store(project / "dvc.yaml", f"{STORE}/")
    with Repo(str(project)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        outs = {str(out): out for stage in stages.values() for out in stage.outs}
    student = stages["train@round_2"]
    assert student.cmd == (
        "python -m stages.in_round round_2 --after metrics/models/round_1.json train_only round_2 "
        f"--human {STORE}/data/records/human --pseudo-labels {STORE}/data/pseudo_labels/round_2 "
        f"--calibration plots/calibration/round_2.csv --teacher {STORE}/models/round_1 "
        f"--out {STORE}/models/round_2 --metrics metrics/train/round_2.json --log plots/train/round_2.csv"
    )
    deps = {str(dep) for dep in student.deps}
    assert {f"{STORE}/data/pseudo_labels/round_2", f"{STORE}/models/round_1", "glip_model", "pipeline/training"} <= deps
    remote = {name for name in outs if name.startswith(STORE)}
    # The cache goes with the machine: the next one would make such an output anew.
    assert {name for name, out in outs.items() if out.use_cache} == set()
    assert {f"{STORE}/data/records/web", f"{STORE}/models/round_2", f"{STORE}/data/predictions/control"} <= remote
    assert {name.split("/")[0] for name in outs.keys() - remote} == {"metrics", "plots", "reports"}
    assert stages["prepare"].desc == "raw data sets into records"


def test_every_stage_comes_behind_what_it_needs(project: Path) -> None:
    put_in_store(project / "dvc.yaml", STORE)
    order = stages_in_order(project, None)
    assert order[0] == "prepare"
    assert order[-1] == "report"
    assert len(order) == 17
    chain = ["pseudo_label@round_1", "train@round_1", "evaluate@round_1", "pseudo_label@round_2", "train@round_2"]
    assert [name for name in order if name in chain] == chain
    assert stages_in_order(project, "pseudo_label@round_1") == [
        "prepare",
        "phrases",
        "train_baseline@teacher",
        "evaluate_baseline@teacher",
        "pseudo_label@round_1",
    ]
    assert stages_in_order(project, "train")[-1] == "train@round_2"
    with pytest.raises(ConfigError, match=r"no stage 'labels'; there are .*prepare"):
        stages_in_order(project, "labels")


def test_a_folder_that_could_be_any_word_is_refused(tmp_path: Path) -> None:
    graph = tmp_path / "dvc.yaml"
    graph.write_text(yaml.safe_dump({"stages": {"a": {"cmd": "make labels", "outs": ["labels"]}}}))
    with pytest.raises(ConfigError, match="labels: expected outputs in folders, such as data/labels"):
        put_in_store(graph, STORE)
