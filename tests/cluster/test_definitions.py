"""The definitions below cluster/, by the tools and the schemas of those who will read them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.iterdir() if path.is_file())
LAUNCHERS = ["aws", "gcp"]
KUBERAY = ["raycluster", "rayjob"]
PLACEHOLDER = re.compile(r"YOUR-[A-Z]+(?:-[A-Z]+)*")
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|(?i:(secret|password|passwd|access_key|api_key)\w*\s*[:=]\s*[\"']?[\w/+]{8,})"
    r"|ghp_\w{20,}|hf_\w{20,}|ya29\."
)


# The fields of ray.io/v1 by the operator's API reference; a strict API server refuses any other.
CLUSTER_FIELDS = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headServiceAnnotations",
    "suspend",
    "headGroupSpec",
    "workerGroupSpecs",
}
AUTOSCALER_FIELDS = {
    "resources",
    "image",
    "imagePullPolicy",
    "env",
    "envFrom",
    "volumeMounts",
    "securityContext",
    "idleTimeoutSeconds",
    "upscalingMode",
}
HEAD_FIELDS = {"serviceType", "headService", "enableIngress", "rayStartParams", "template"}
WORKER_FIELDS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "numOfHosts",
    "rayStartParams",
    "template",
    "scaleStrategy",
}
JOB_FIELDS = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
    "submitterPodTemplate",
    "clusterSelector",
    "entrypoint",
    "runtimeEnvYAML",
    "jobId",
    "submissionMode",
    "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes",
    "suspend",
}
KUBERNETES = "1.37"


def load(name: str) -> dict[str, Any]:
    """Return the last document of a YAML file."""
    *_, last = yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text(encoding="utf-8"))
    return dict(last)


def ray_cluster(name: str) -> dict[str, Any]:
    found = load(name)
    return found["spec"]["rayClusterSpec"] if found["kind"] == "RayJob" else found["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_rays_launcher_takes_the_file(name: str) -> None:
    config = prepare_config(load(name))
    validate_config(config)
    types = config["available_node_types"]
    assert config["max_workers"] == sum(types[kind]["max_workers"] for kind in ("cpu", "gpu"))
    assert types["gpu"]["resources"]["GPU"] > 0
    assert "GPU" not in types["cpu"]["resources"]
    assert types["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_rays_launcher_refuses_a_field_that_does_not_exist(name: str) -> None:
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config(load(name) | {"idle_timeout": 3}))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_workers_may_be_taken_away_and_the_head_may_not(name: str) -> None:
    types = load(name)["available_node_types"]
    cheap = {"aws": ("InstanceMarketOptions", {"MarketType": "spot"}), "gcp": ("scheduling", None)}
    field, value = cheap[name]
    assert field not in types["head"]["node_config"]
    for kind in ("cpu", "gpu"):
        config = types[kind]["node_config"]
        assert config[field] == value if value else {"preemptible": True} in config[field]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_start_commands_have_options_that_ray_knows(name: str) -> None:
    config = load(name)
    known = {option for parameter in scripts.start.params for option in parameter.opts}
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        options = {word.split("=")[0] for word in shlex.split(command) if word.startswith("--")}
        assert options <= known, command
    head = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config" in head


@pytest.mark.parametrize("name", KUBERAY)
def test_rays_autoscaler_reads_the_kuberay_groups(name: str) -> None:
    spec = ray_cluster(name)
    assert spec["enableInTreeAutoscaling"]
    resource = {"metadata": {"name": "glip", "namespace": "default"}, "spec": spec}
    types = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["cpu"]["resources"]["CPU"] == 16
    assert not types["cpu"]["resources"].get("GPU")
    assert types["gpu"]["max_workers"] > types["gpu"]["min_workers"] == 0


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_knows_every_field(name: str) -> None:
    *others, last = yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text(encoding="utf-8"))
    for document in others:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert (last["apiVersion"], set(last)) == ("ray.io/v1", {"apiVersion", "kind", "metadata", "spec"})
    if last["kind"] == "RayJob":
        assert set(last["spec"]) <= JOB_FIELDS
    spec = ray_cluster(name)
    assert set(spec) <= CLUSTER_FIELDS
    assert set(spec["autoscalerOptions"]) <= AUTOSCALER_FIELDS
    assert set(spec["headGroupSpec"]) <= HEAD_FIELDS
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        template = {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= WORKER_FIELDS


def test_kubernetes_refuses_a_pod_field_that_does_not_exist() -> None:
    template = ray_cluster("raycluster")["headGroupSpec"]["template"]
    template["spec"]["runAsNonRoot"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "template": template}, KUBERNETES, strict=True
        )


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_few_rights_and_bounds(name: str) -> None:
    spec = ray_cluster(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["serviceAccountName"] == "glip"
        assert any(volume.get("emptyDir", {}).get("medium") == "Memory" for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"] == container["resources"]["requests"]
    head = spec["headGroupSpec"]
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    if name == "raycluster":
        assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    else:
        kinds = [each["kind"] for each in yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8"))]
        assert "NetworkPolicy" in kinds


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_need_no_volume_that_others_see(name: str) -> None:
    spec = ray_cluster(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert [set(volume) - {"name"} for volume in pod["volumes"]] == [{"emptyDir"}]
        assert [mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]] == ["shm"]


def test_places_of_the_job_are_urls() -> None:
    words = shlex.split(load("rayjob")["spec"]["entrypoint"])[2].split()
    places = {option: words[i + 1] for i, option in enumerate(words) if option.startswith("--")}
    assert places.keys() == {"--records", "--phrases", "--teacher", "--out"}
    assert all(place.startswith("s3://YOUR-BUCKET/") for place in places.values())


@pytest.mark.parametrize("name", KUBERAY)
def test_the_ray_of_the_manifests_is_that_of_the_lock_file(name: str) -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert f"ray=={ray_cluster(name)['rayVersion']} " in lock


def tool(name: str) -> str:
    """Return a program that is installed with the tests."""
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert program, f"{name} is not installed; it comes with: make setup"
    return program


@pytest.mark.parametrize(
    ("program", "file"), [("shellcheck", "slurm.sbatch"), ("hadolint", "Dockerfile")], ids=["shellcheck", "hadolint"]
)
def test_linters_find_nothing(program: str, file: str) -> None:
    done = subprocess.run([tool(program), CLUSTER / file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_a_user_with_locked_packages() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (\S+)", text, re.M)[-1:] == ["1000"]
    assert "--require-hashes" in text
    assert not re.search(r"^(ADD|ARG)\b", text, re.M)
    assert "rm -rf /var/lib/apt/lists/*" in text
    assert text.count("pip install") == text.count("--no-cache-dir")
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M) for word in line.split()[:-1]}
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert all((ROOT / word).exists() for word in copied)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_secret_or_opens_a_dashboard(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not SECRETS.search(text)
    assert "0.0.0.0" not in text
    assert not re.search(r"LoadBalancer|NodePort", text)


def test_the_page_lists_every_name_to_fill_in() -> None:
    page = (CLUSTER / "README.md").read_text(encoding="utf-8").split("## Names to fill in")[1].split("\n## ")[0]
    used = {name for path in FILES if path.name != "README.md" for name in PLACEHOLDER.findall(path.read_text())}
    assert used == set(PLACEHOLDER.findall(page))


def test_policies_give_no_more_than_objects_below_their_prefixes() -> None:
    policy = json.loads((CLUSTER / "s3-policy.json").read_text(encoding="utf-8"))
    for statement in policy["Statement"]:
        if statement["Effect"] == "Allow":
            assert not any("*" in action for action in statement["Action"])
            assert statement["Resource"] != "*"
    bindings = json.loads((CLUSTER / "gcs-policy.json").read_text(encoding="utf-8"))["bindings"]
    assert all("condition" in binding and "admin" not in binding["role"].lower() for binding in bindings)
