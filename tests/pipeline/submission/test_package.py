"""What travels to a cluster, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.submission import package


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "glip_model/glip.py": "",
        "pipeline/store/words.txt": "cat",
        "pipeline/.env": "KEY=1",
        "pipeline/__pycache__/cli.pyc": "",
        "stages/train.py": "",
        "params.yaml": "seed: 0",
        "dvc.yaml": "stages: {prepare: {cmd: a}, train: {foreach: [x], do: {cmd: b}}}",
        "dvc.lock": "schema: '2.0'",
        ".dvc/config": "[core]\n    remote = store\n",
        ".dvc/config.local": "['remote \"store\"']\n    secret_access_key = abc\n",
        "data/part-00000.parquet": "pictures",
        "notes.txt": "mine",
    }
    for name, text in files.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "project/pipeline/link.txt").symlink_to("/etc/hostname")
    (tmp_path / "project/pipeline/params.yaml").symlink_to("../params.yaml")
    return tmp_path / "project"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_code_and_settings_travel_and_nothing_else(project: Path, tmp_path: Path) -> None:
    code = {"glip_model/glip.py", "pipeline/store/words.txt", "pipeline/params.yaml", "stages/train.py", "params.yaml"}
    package.pack(project, project, False, tmp_path / "command")
    assert names(tmp_path / "command") == code
    assert not (tmp_path / "command/pipeline/params.yaml").is_symlink()
    package.pack(project, project, True, tmp_path / "stage")
    assert names(tmp_path / "stage") == code | {"dvc.yaml", "dvc.lock", ".dvc/config"}


def test_the_hash_is_of_code_and_settings(project: Path, tmp_path: Path) -> None:
    before = package.pack(project, project, True, tmp_path / "a")
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}")
    (project / "notes.txt").write_text("other")
    assert package.pack(project, project, True, tmp_path / "b") == before
    (project / "params.yaml").write_text("seed: 1")
    assert package.pack(project, project, True, tmp_path / "c") != before


def test_unpacked_it_replaces_code_and_leaves_data_and_the_lock(project: Path, tmp_path: Path) -> None:
    folder, sent = tmp_path / "run", tmp_path / "sent"
    package.pack(project, project, True, sent)
    package.unpack(sent, folder)
    assert names(folder) == names(sent)
    for name in ("data/new.txt", "pipeline/old.py", "dvc.lock"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("of the run")
    package.unpack(sent, folder)
    assert names(folder) == names(sent) | {"data/new.txt"}
    assert (folder / "dvc.lock").read_text() == "of the run"


def test_the_lock_travels_with_the_files_it_speaks_of_and_speaks_of_no_others(project: Path, tmp_path: Path) -> None:
    data = {"path": "data/phrases", "md5": "1.dir"}
    known = {
        "phrases": {"cmd": "a", "outs": [data, {"path": "metrics/phrases.json", "md5": "2"}]},
        "calibrate": {"cmd": "b", "outs": [{"path": "metrics/gone.json", "md5": "3"}]},
        "train": {"cmd": "c"},
    }
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": known}))
    (project / "metrics").mkdir()
    (project / "metrics/phrases.json").write_text("{}")
    package.pack(project, project, True, tmp_path / "sent")
    package.unpack(tmp_path / "sent", tmp_path / "run")
    lock = yaml.safe_load((tmp_path / "run/dvc.lock").read_text())
    assert lock == {"schema": "2.0", "stages": {name: known[name] for name in ("phrases", "train")}}
    assert (tmp_path / "run/metrics/phrases.json").read_text() == "{}"
    (tmp_path / "run/metrics/phrases.json").write_text("of the run")
    package.unpack(tmp_path / "sent", tmp_path / "run")
    assert (tmp_path / "run/metrics/phrases.json").read_text() == "of the run"


def test_too_much_is_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", 20)
    (project / "pipeline/large.bin").write_bytes(bytes(30))
    with pytest.raises(ConfigError, match=r"the largest file is pipeline/large\.bin; keep data outside"):
        package.pack(project, project, False, tmp_path / "sent")


@pytest.mark.parametrize("line", ["secret_access_key = abc", "password = abc", "url = https://me:abc@host/dvc"])
def test_secrets_of_dvc_do_not_travel(line: str, project: Path, tmp_path: Path) -> None:
    (project / ".dvc/config").write_text(f"['remote \"store\"']\n    {line}\n")
    with pytest.raises(ConfigError, match="looks like a secret") as raised:
        package.pack(project, project, True, tmp_path / "sent")
    assert "abc" not in str(raised.value)


def test_a_stage_is_one_of_the_graph(project: Path, tmp_path: Path) -> None:
    for name in ("prepare", "train", "train@x"):
        package.check_stage(project, project, name)
    with pytest.raises(ConfigError, match="no stage 'trian'; there are all, prepare, train;"):
        package.check_stage(project, project, "trian")
    with pytest.raises(ConfigError, match="not the project's folder"):
        package.check_stage(project, tmp_path, "train")
