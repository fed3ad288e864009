"""``RAY_ADDRESS``: a cluster that is not there, one that grows, and how work is divided on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster

from pipeline.errors import ConfigError
from pipeline.ray_session import ray_session, share_cluster

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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
import os, ray
from ray.experimental.internal_kv import _internal_kv_get
from pipeline.ray_session import on_gpu_machines, ray_session, share_cluster
def is_set_up():
    return (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_WAIT_POLICY"]) == ("0", "as the driver says")
with ray_session():
    share = share_cluster(4)
    print("SHARE", share.workers, share.gpus, _internal_kv_get("autoscaler_resource_request"))
    print("MACHINES", on_gpu_machines(is_set_up), on_gpu_machines(lambda: not is_set_up()))
"""


def test_the_work_is_divided_when_the_machines_have_come() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "GLIP_RESOURCES": '{"GPU": 2}'}
        environment["OMP_WAIT_POLICY"] = "as the driver says"
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
    assert "MACHINES True False" in output
    assert output.count('"GPU": 1') == 2  # what an autoscaler is asked for
