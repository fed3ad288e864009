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
    student = stages["train@student"]
    assert student.cmd == (
        f"python -m stages.train_only student --human {STORE}/data/records/human "
        f"--pseudo-labels {STORE}/data/pseudo_labels --teacher {STORE}/models/teacher "
        f"--out {STORE}/models/student --metrics metrics/train_student.json --log plots/train_student.csv"
    )
    deps = {str(dep) for dep in student.deps}
    assert {f"{STORE}/data/pseudo_labels", f"{STORE}/models/teacher", "glip_model", "pipeline/training"} <= deps
    remote = {name for name in outs if name.startswith(STORE)}
    # The cache goes with the machine: the next one would make such an output anew.
    assert {name for name, out in outs.items() if out.use_cache} == set()
    assert {f"{STORE}/data/records/web", f"{STORE}/models/student", f"{STORE}/data/predictions/control"} <= remote
    assert {name.split("/")[0] for name in outs.keys() - remote} == {"metrics", "plots", "reports"}
    assert stages["prepare"].desc == "raw data sets into records"


def test_every_stage_comes_behind_what_it_needs(project: Path) -> None:
    put_in_store(project / "dvc.yaml", STORE)
    order = stages_in_order(project, None)
    assert order[0] == "prepare"
    assert order[-1] == "report"
    assert len(order) == 11
    assert order.index("pseudo_label") < order.index("train@student") < order.index("evaluate@student")
    assert stages_in_order(project, "pseudo_label") == ["prepare", "phrases", "train@teacher", "pseudo_label"]
    assert stages_in_order(project, "train")[-1] == "train@student"
    with pytest.raises(ConfigError, match=r"no stage 'labels'; there are .*prepare"):
        stages_in_order(project, "labels")


def test_a_folder_that_could_be_any_word_is_refused(tmp_path: Path) -> None:
    graph = tmp_path / "dvc.yaml"
    graph.write_text(yaml.safe_dump({"stages": {"a": {"cmd": "make labels", "outs": ["labels"]}}}))
    with pytest.raises(ConfigError, match="labels: expected outputs in folders, such as data/labels"):
        put_in_store(graph, STORE)
