"""``RAY_ADDRESS``: the stages on a cluster of two nodes that was started beforehand, and on one that is not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster

from pipeline.data.records import GroundingRecord
from pipeline.data.shards import list_shards, read_shard
from pipeline.errors import ConfigError
from pipeline.ray_session import ray_session, share_cluster

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def address() -> Iterator[str]:
    """Start two nodes of one CPU each, in another folder than the stages run in."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def stage(folder: Path, address: str, name: str, *words: str) -> str:
    """Run a stage as DVC does, from ``folder`` with relative paths; return what it printed."""
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


NODES = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 9), "GPU": st.integers(0, 2)}), min_size=1, max_size=5)


@given(NODES, st.integers(1, 20))
def test_every_worker_of_a_shared_cluster_finds_a_node(sizes: list[dict[str, int]], wanted: int) -> None:
    nodes = [{"Alive": True, "Resources": size} for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}])
        share = share_cluster(wanted)
    cores, gpus = sum(size["CPU"] for size in sizes), sum(size["GPU"] for size in sizes)
    if gpus:
        assert (share.workers, share.gpus, share.cpus) == (min(wanted, gpus), 1, 0)
        assert all(share.threads * size["GPU"] <= max(size["CPU"], size["GPU"]) for size in sizes)
    elif cores:
        assert share.workers == min(wanted, cores)
        assert share.threads == share.cpus
        assert sum(size["CPU"] // share.cpus for size in sizes) >= share.workers
        assert sum(size["CPU"] // (share.cpus + 1) for size in sizes) < share.workers  # none could have more


def test_stages_join_the_cluster_and_share_out_their_work(address: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"].update(rows_per_shard=4)
    params["prepare"]["embedded"].update(human_detection=8, human_grounding=8, web=8, dev=4, test=4)
    params["train"]["optim"].update(batch_size=4)
    params["train"]["runs"]["teacher"].update(steps=2)
    params["pseudo_label"].update(min_score=0.05)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    stage(tmp_path, address, "prepare", "--out", "records")
    log = stage(tmp_path, address, "train", "teacher", "--human", "records/human", "--out", "teacher")
    assert "2 steps" in log
    stage(tmp_path, address, "phrases", "--records", "records/web", "--out", "phrases")
    words = ["--records", "records/web", "--phrases", "phrases", "--teacher", "teacher", "--out", "labels"]
    log = stage(tmp_path, address, "pseudo_label", *words)
    assert "Traceback" not in log
    labelled = [row for path in list_shards(tmp_path / "labels") for row in read_shard(path, GroundingRecord)]
    assert len(labelled) == 8
    words = ["--model", "teacher", "--records", "records", "--out", "predictions", "--metrics", "teacher.json"]
    stage(tmp_path, address, "evaluate", *words)
    assert json.loads((tmp_path / "teacher.json").read_text())["test"]["detection"]["embedded"]["all"]["AP"] >= 0


def test_a_cluster_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "stages.prepare", "--out", tmp_path, "--params", ROOT / "params.yaml"],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
    assert done.returncode == 2
    assert f"error: RAY_ADDRESS={address}: no Ray cluster answers there" in done.stderr


@pytest.mark.parametrize("text", ["8", '{"GPU": 0}', '{"GPU": "8"}', "GPU"])
def test_wanted_resources_that_are_none_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # a Ray of other tests may be running
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("GLIP_RESOURCES", text)
    with pytest.raises(ConfigError, match=r"GLIP_RESOURCES=.*expected whole numbers"), ray_session():
        pass


GROW = """
import ray
from ray.experimental.internal_kv import _internal_kv_get
from pipeline.ray_session import ray_session, share_cluster
with ray_session():
    share = share_cluster(4)
    print("SHARE", share.workers, share.gpus, _internal_kv_get("autoscaler_resource_request"))
"""


def test_the_work_is_divided_when_the_machines_have_come() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "GLIP_RESOURCES": '{"GPU": 2}'}
        stage = subprocess.Popen(
            [sys.executable, "-c", GROW], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        cluster.add_node(num_cpus=1, num_gpus=1)
        with pytest.raises(subprocess.TimeoutExpired):
            stage.communicate(timeout=10)  # it waits for the second one
        cluster.add_node(num_cpus=1, num_gpus=1)
        output, _ = stage.communicate(timeout=60)
    finally:
        cluster.shutdown()
    assert "SHARE 2 1" in output
    assert output.count('"GPU": 1') == 2  # what an autoscaler is asked for
