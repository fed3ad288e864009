"""The pages: every command that they show is understood by the program that it calls, and what is cheap is run."""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from dvc.cli import parse_args
from PIL import Image
from ray.scripts import scripts

from pipeline.cli import call
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import shard_name, write_shard
from pipeline.submission.package import check_stage
from stages import glip

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "cluster/README.md")),
    *sorted((ROOT / "pipeline").rglob("README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_THE_MAP = re.compile(r"[\w.]+/? {2,}|\w+\.yaml {2,}|(\w+/(, )?)+$")
"""Lines of the README's map, which are no commands."""
NOT_HERE = {"docker", "source", "kubectl", "sbatch", "ssh", "tensorboard"}
"""Programs of other machines or other people: of their lines, the files are looked for and nothing else."""


def blocks(language: str) -> list[tuple[Path, str]]:
    found = ((page, *block) for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8")))
    return [(page, text) for page, name, text in found if name == language]


def commands() -> Iterator[str]:
    """Yield the lines of all blocks without a language: continued ones joined, without comments."""
    for _, text in blocks(""):
        for line in text.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command and not IN_THE_MAP.match(command):
                yield from (part.strip(" &") for part in command.split("&&"))


COMMANDS = list(dict.fromkeys(commands()))


def words_of(command: str) -> list[str]:
    """Return the words without settings of the environment."""
    return list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), shlex.split(command)))


def parse(module: str, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    importlib.import_module(module).add_arguments(parser)
    if "--params" not in {option for action in parser._actions for option in action.option_strings}:
        parser.add_argument("--params", type=Path)
    found = parser.parse_args(words)
    params = getattr(found, "params", None)
    assert params is None or str(params) == "mine.yaml" or (ROOT / params).is_file()  # a file of the reader's own
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command: str) -> None:
    program, *words = words_of(command)
    if program == "make":
        subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif program == "dvc":
        found = parse_args(words)
        for stage in words[1:] if words[0] == "repro" else []:
            check_stage(ROOT, ROOT, stage)
        assert found.func is not None
    elif program == "glip":
        parse(glip.COMMANDS[words[0]], words[1:])
        if words[0] == "submit" and words[1] not in ("all", "--"):
            check_stage(ROOT, ROOT, words[1])
    elif program == "python" and words[0] != "-m":
        assert (ROOT / words[0]).is_file()
    elif program == "python":
        parse(words[1], words[2:])
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words if not word.startswith("-"))
    elif program == "ray":
        assert CliRunner().invoke(scripts.cli, [words[0], "--help"]).exit_code == 0
        known = {option for parameter in scripts.cli.commands[words[0]].params for option in parameter.opts}
        assert {word.split("=")[0] for word in words[1:] if word.startswith("-")} <= known
    else:
        assert program in NOT_HERE, f"nothing here checks lines that call {program}"
    assert all((ROOT / word).is_file() for word in words if word.startswith("cluster/"))


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_compiles_and_finds_what_it_imports(page: Path, text: str) -> None:
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, type_ignores=[]), str(page), "exec"), {})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder as a finished run leaves it, as far as the commands below look at it."""
    image = tmp_path / "dog.png"
    Image.new("RGB", (40, 30), "grey").save(image)
    box = ScoredBox(xyxy=(1, 2, 20, 20), score=0.4)
    row = GroundingRecord(
        key="KEY",
        image=ImageRef(bytes=image.read_bytes()),
        height=30,
        width=40,
        caption="a dog",
        source="web",
        phrases=(Phrase(text="a dog", char_spans=((0, 5),), boxes=(box,)),),
    )
    for folder in ("data/pseudo_labels/round_1", "data/pseudo_labels/round_2", "labels", "data/own/labels"):
        write_shard(tmp_path / folder / shard_name(0), [row], GroundingRecord)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = [
    command
    for command in COMMANDS
    if command.startswith(("glip inspect", "glip manifest --shards data"))
    or (command.startswith("glip train") and "--dry-run" in command)
]


@pytest.mark.parametrize("command", RUN)
def test_command_does_what_it_says(command: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = words_of(command)
    module, words = (glip.COMMANDS[words[0]], words[1:]) if program == "glip" else (words[1], words[2:])
    assert call(importlib.import_module(module).run, parse(module, words)) == 0, capsys.readouterr().err
    for option in ("--html", "--save", "--out"):
        assert option not in words or (project / words[words.index(option) + 1]).exists()


def test_pages_show_commands_of_every_kind() -> None:
    assert len(RUN) >= 8
    assert {words_of(command)[0] for command in COMMANDS} >= {"make", "dvc", "glip", "python", "ray", *NOT_HERE}


def test_every_command_is_shown_on_a_page() -> None:
    """In a block or within a sentence; what the site generates from the parsers does not count."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = {name.replace("-", "_") for name in re.findall(r"(?:\bglip |\bstages\.)([a-z_-]+)", text)}
    assert set(glip.COMMANDS) - shown == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Links, anchors and names of the Python reference are checked by the build; a warning ends it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    commands_page = (tmp_path / "reference/commands.html").read_text(encoding="utf-8")
    assert all(f"glip {name}" in commands_page for name in glip.COMMANDS)
    settings_page = (tmp_path / "reference/settings.html").read_text(encoding="utf-8")
    assert "pseudo_label.min_score" in settings_page
    assert "train.optim.learning_rate" in settings_page
    assert "from_pretrained" in (tmp_path / "reference/python.html").read_text(encoding="utf-8")


def test_links_of_pages_lead_somewhere() -> None:
    """Links as they are followed in the repository, where the site's build does not look."""
    link = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")
    targets = {
        (page, found) for page in PAGES for found, _ in link.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
    }
    here_or_generated = [
        f"{page.relative_to(ROOT)} → {found}"
        for page, found in targets
        if not (page.parent / found).exists() and ROOT / "docs" not in page.parents
    ]
    assert targets
    assert here_or_generated == []
