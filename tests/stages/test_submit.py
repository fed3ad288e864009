"""``glip submit`` and ``glip jobs`` on clusters of several nodes, with S3 as store and as DVC's remote.

A person at a machine without data or models sends the whole run, is cut off, comes back, stops it, goes on, and takes
home what DVC needs to know. Then nodes that share no folder: everything rests in the store, and is the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster
from upath import UPath

from pipeline.store.manifest import describe_shards
from pipeline.store.records import CaptionRecord
from pipeline.store.shards import list_shards, read_shard, write_shard
from pipeline.store.storage import list_below, name_below

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass
class Laptop:
    """Where the commands are given: a git repository with the project, and nothing else."""

    project: Path
    folder: Path
    """Of the run, on the cluster."""
    environment: dict[str, str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *words: str, status: int = 0) -> str:
        process = self.start(*words)
        output, _ = process.communicate()
        assert process.returncode == status, output
        return output

    def submit_all(self) -> subprocess.Popen[str]:
        return self.start("stages.glip", "submit", "all", "--run", "mine", "--folder", str(self.folder))

    def at(self, name: str, **environment: str) -> Laptop:
        """Return another machine with the same project, in a folder beside this one."""
        other = dataclasses.replace(self, project=self.project.with_name(name))
        shutil.copytree(self.project, other.project, ignore=shutil.ignore_patterns("metrics", "plots", "reports"))
        (other.project / "dvc.lock").unlink(missing_ok=True)
        other.environment = self.environment | {"PYTHONPATH": str(other.project)} | environment
        return other

    def git(self, *words: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *identity, *words], cwd=self.project, check=True)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read a process's output up to the first line that holds a text."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            return output
    raise AssertionError(f"ended with {process.wait()} before {text!r}:\n{output}")


@pytest.fixture(scope="module")
def laptop(s3_variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """Start the cluster and its job server; make the project with the whole graph, for a few rows and steps."""
    home = tmp_path_factory.mktemp("submit")
    project = home / "project"
    for room in ("glip_model", "pipeline", "stages"):
        shutil.copytree(ROOT / room, project / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dvcignore", ".gitignore", "pyproject.toml"):
        shutil.copyfile(ROOT / name, project / name)
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    for name in ("control", "one_round"):  # models as the teacher is one: two stages each, on both clusters
        del graph["vars"][0]["baselines"][name]
    graph["plots"] = []
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False), encoding="utf-8")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"].update(rows_per_shard=4)
    params["prepare"]["embedded"].update(human_detection=8, human_grounding=8, web=8, dev=4, test=4)
    params["train"]["num_workers"] = 1  # labelling has two, one a node
    params["train"]["optim"].update(batch_size=4)
    params["rounds"] = {"round_1": {"teacher": "teacher"}}
    for run in params["train"]["runs"].values():
        run.update(steps=1)
    params["pseudo_label"].update(min_score=0.05)
    params["evaluate"].update(num_actors=1)
    params["report"].update(bootstrap_samples=10)
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_"))]:
            patch.delenv(name)
        for name, value in s3_variables.items():
            patch.setenv(name, value)
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.delenv("PYTHONPATH", raising=False)
        bucket = UPath("s3://submitted")
        bucket.fs.mkdir(bucket.path)
        node = {"num_cpus": 1, "dashboard_agent_listen_port": 0}
        # Ray's jobs join the cluster that its temporary folder names: beside other clusters it must be its own.
        temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short names
        head = {"include_dashboard": True, "dashboard_port": 0, "temp_dir": temporary}
        head |= {"no_monitor": True, "include_log_monitor": False}  # nobody scales it; jobs keep their own logs
        cluster = Cluster(initialize_head=True, head_node_args=head | node)
        # As "ray start" writes it; without, a job joins whichever cluster of this machine it finds first.
        Path(temporary, "ray_current_cluster").write_text(cluster.address, encoding="utf-8")
        try:
            cluster.add_node(**node)
            environment = os.environ | {
                "PYTHONPATH": str(project),
                "PYTHONUNBUFFERED": "1",
                "RAY_API_SERVER_ADDRESS": f"http://{cluster.webui_url}",
            }
            made = Laptop(project, home / "run", environment)
            made.git("init", "--quiet")
            made.call("dvc", "init", "--quiet")
            made.call("dvc", "remote", "add", "--default", "store", "s3://submitted/dvc")
            yield made
        finally:
            cluster.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def finished(laptop: Laptop) -> str:
    """Send the run, cut the client off, attach, stop, submit again; return the log of the end."""
    client = laptop.submit_all()
    assert "job mine-1: sent" in read_until(client, "job mine-1")
    read_until(client, "Running stage 'prepare'")
    client.kill()
    client.communicate()

    listed = laptop.call("stages.glip", "jobs")
    assert "mine-1  running" in listed
    client = laptop.submit_all()
    log = read_until(client, "Running stage 'train_baseline@teacher'")
    assert "job mine-1: is running already" in log
    assert "Running stage 'prepare'" in log  # from the beginning
    assert laptop.call("stages.glip", "jobs", "--stop", "mine-1").startswith("mine-1  stopped")
    output, _ = client.communicate()
    assert "job mine-1: stopped" in output
    assert client.returncode != 0

    client = laptop.submit_all()
    log, _ = client.communicate()
    assert client.returncode == 0, log
    assert "job mine-2: sent" in log
    assert "Stage 'prepare' didn't change, skipping" in log
    assert "job mine-2: succeeded" in log
    return log


def test_ctrl_c_leaves_the_job_alone_and_its_status_is_that_of_who_follows(laptop: Laptop) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, and so inherited, in a shell's background
    seen = laptop.project.with_name("seen")
    wait = f"[time.sleep(0.1) for _ in range(6000) if not os.path.exists({str(seen)!r})]"
    work = f"import os, time; print('at it', flush=True); {wait}; exit(7)"
    client = laptop.start("stages.glip", "submit", "--run", "short", "--", "python", "-c", work)
    read_until(client, "at it")
    client.send_signal(signal.SIGINT)
    output, _ = client.communicate()
    assert client.returncode == 130
    assert "job short-1 goes on; see it: glip jobs --follow short-1; stop it: glip jobs --stop short-1" in output
    seen.touch()
    assert "job short-1: failed" in laptop.call("stages.glip", "jobs", "--follow", "short-1", status=7)
    assert "no job 'short-9'; the last ones: " in laptop.call("stages.glip", "jobs", "--stop", "short-9", status=2)


def test_hashes_and_figures_come_home_and_dvc_finds_nothing_to_do(laptop: Laptop, finished: str) -> None:
    assert not (laptop.project / "data").exists()
    assert not (laptop.project / "models").exists()
    assert json.loads((laptop.project / "metrics/labels/round_1.json").read_text())["rows"] == 8
    judged = json.loads((laptop.project / "metrics/models/round_1.json").read_text())
    assert judged["test"]["detection"]["embedded"]["all"]["AP"] >= 0
    assert "</html>" in (laptop.project / "reports/report.html").read_text(encoding="utf-8")
    laptop.git("add", "--all")
    laptop.git("commit", "--quiet", "--message", "run")
    clone = dataclasses.replace(laptop, project=laptop.project.with_name("clone"))
    clone.environment = laptop.environment | {"PYTHONPATH": str(clone.project)}
    laptop.git("clone", "--quiet", str(laptop.project), str(clone.project))
    clone.call("dvc", "pull", "--quiet")
    assert list_shards(clone.project / "data/pseudo_labels/round_1")
    assert "Data and pipelines are up to date." in clone.call("dvc", "repro")


def test_another_run_may_not_write_there(laptop: Laptop, finished: str) -> None:
    where = str(laptop.folder / "data/pseudo_labels/round_1")
    output = laptop.call(
        "stages.glip", "submit", "--run", "other", "--", "python", "-c", "1/0", "--out", where, status=2
    )
    assert f"error: {laptop.folder}: belongs to the run 'mine' since 20" in output
    assert "and this is 'other'" in output
    assert "ZeroDivisionError" not in output


def test_dvc_drives_the_cluster_and_a_changed_shard_is_labelled_alone(laptop: Laptop, finished: str) -> None:
    store = UPath("s3://submitted/large")
    rooms = ("records/web", "records/human/detection", "records/human/grounding", "phrases")
    made = {name: f"data/{name}" for name in rooms} | {"pseudo_labels": "data/pseudo_labels/round_1"}
    for folder, place in made.items():
        for shard in list_shards(laptop.folder / place):
            (store / folder / shard.name).write_bytes(shard.read_bytes())
    graph = yaml.safe_load((ROOT / "cluster/large.yaml").read_text(encoding="utf-8"))
    via = "python -m stages.glip submit --run large --take-over --"  # of whom wrote the shards, the store says nothing
    graph["vars"][0] = {"store": str(store), "teacher": str(laptop.folder / "models/teacher"), "via": via}
    here = dataclasses.replace(laptop, project=laptop.project.with_name("large"))
    here.project.mkdir()
    (here.project / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False), encoding="utf-8")
    shutil.copyfile(laptop.project / "params.yaml", here.project / "params.yaml")
    here.call("dvc", "init", "--no-scm", "--quiet")

    before = describe_shards(store / "pseudo_labels")
    changed = store / "records/web/part-00001.parquet"
    rows = [dataclasses.replace(row, caption="two dogs on a sofa") for row in read_shard(changed, CaptionRecord)]
    write_shard(changed, rows, CaptionRecord)
    log = here.call("dvc", "repro")
    assert "phrases: 1 of 2 shards were finished already" in log
    assert "pseudo_label: 1 of 2 shards were finished already" in log
    after = json.loads((here.project / "manifests/pseudo_labels.json").read_text())["shards"]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]
    log = here.call("dvc", "repro")  # reads the manifest anew, and has nothing to do
    assert "Stage 'phrases' didn't change, skipping" in log
    assert "Stage 'pseudo_label' didn't change, skipping" in log


HIDDEN = [*(ROOT / room for room in ("glip_model", "pipeline", "stages", "tests")), Path(tempfile.gettempdir())]
"""Folders that each node has to itself, and empty: the project, and where all else that is written lies."""


def can_hide_folders() -> bool:
    """Tell whether a process may have folders of its own here."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def apart(laptop: Laptop) -> Iterator[Laptop]:
    """Start a cluster of three nodes that share no folder; give a machine from which it can be reached."""
    if not can_hide_folders():
        pytest.skip("no mount namespaces here: they take rights of root")
    gcs, dashboard = free_port(), free_port()
    hide = " && ".join(f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}" for folder in HIDDEN)
    ports = (
        "--dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0"  # any, as the nodes share a machine
    )
    common = f"--num-cpus=1 --node-ip-address=127.0.0.1 {ports} --disable-usage-stats --block"
    client = free_port()
    head = (
        f"--head --port={gcs} --ray-client-server-port={client} --include-dashboard=true --dashboard-port={dashboard}"
    )
    roles = [head, *2 * [f"--address=127.0.0.1:{gcs}"]]
    environment = {name: value for name, value in laptop.environment.items() if name != "PYTHONPATH"}
    environment["RAY_AUTH_MODE"] = "disabled"  # "ray start" asks for a token, which would lie in the home of all nodes
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for role in roles:
            words = ["unshare", "--mount", "bash", "-c", f"{hide} && cd /tmp && exec ray start {role} {common}"]
            nodes.append(subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True))
            wait_for(lambda: num_nodes(dashboard) == len(nodes), nodes)
        yield laptop.at("apart", RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{dashboard}")
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            try:
                node.wait(60)  # Ray drains it for 30 s
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()


def num_nodes(dashboard: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/v0/nodes") as answer:
            found = json.load(answer)["data"]["result"]["result"]
    except (OSError, KeyError, TypeError, ValueError):
        return 0
    return sum(node["state"] == "ALIVE" for node in found)


def wait_for(condition: Callable[[], bool], nodes: Sequence[subprocess.Popen[bytes]], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(node.poll() is None for node in nodes), "a node has ended"
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


def test_nodes_that_share_no_folder_make_the_same_in_a_store(laptop: Laptop, apart: Laptop, finished: str) -> None:
    store = UPath("s3://submitted/apart")
    submit = ("stages.glip", "submit", "all", "--run", "apart", "--folder", str(store))
    client = apart.start(*submit)
    read_until(client, "Running stage 'phrases'")
    apart.call("stages.glip", "jobs", "--stop", "apart-1")
    client.communicate()
    log = apart.call(*submit)
    assert "Stage 'prepare' didn't change, skipping" in log
    assert "job apart-2: succeeded" in log

    made = {name_below(store, path): path.read_bytes() for path in list_below(store)}
    there = {
        name_below(laptop.folder, path): path
        for room in ("data", "models")
        for path in list_below(laptop.folder / room)
    }
    assert made.keys() - there.keys() == {"glip-run.json", "results.tar.gz"}
    assert [name for name, path in there.items() if made.get(name) != path.read_bytes()] == []
    for name in ("teacher", "round_1"):
        results = Path("metrics/models", f"{name}.json")
        assert (apart.project / results).read_bytes() == (laptop.project / results).read_bytes()
    assert "</html>" in (apart.project / "reports/report.html").read_text(encoding="utf-8")
    assert not (apart.project / "dvc.lock").exists()
