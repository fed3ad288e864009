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


def test_what_git_ignores_stays_here(project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rules are git's: the nearest file decides, and nothing comes back out of a folder that is left out."""
    files = {
        ".gitignore": "*.local.yaml\n/pipeline/scratch/\n/metrics/own.json\n*.ckpt",
        "pipeline/a.local.yaml": "",
        "pipeline/scratch/deep/notes.txt": "",
        "pipeline/scratch/.gitignore": "!notes.txt",
        "stages/.gitignore": "!kept.ckpt",
        "stages/kept.ckpt": "",
        "stages/other.ckpt": "",
        "metrics/own.json": "{}",
    }
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    known = {"calibrate": {"cmd": "b", "outs": [{"path": "metrics/own.json", "md5": "3"}]}}
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": known}))
    with caplog.at_level("INFO"):
        package.pack(project, project, True, tmp_path / "sent")
    sent = names(tmp_path / "sent")
    assert not {name.rpartition("/")[2] for name in sent} & {"a.local.yaml", "notes.txt", "other.ckpt", "own.json"}
    assert "stages/kept.ckpt" in sent
    assert yaml.safe_load((tmp_path / "sent/dvc.lock").read_text()) == {"stages": {}}
    assert "3 files stay here, because .gitignore names them" in caplog.text
    (project / ".gitignore").write_text("params.yaml")
    with pytest.raises(ConfigError, match=r"params\.yaml: the job needs it, and \.gitignore names it"):
        package.pack(project, project, False, tmp_path / "again")


def test_an_installation_that_its_repository_ignores_travels(project: Path, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("/project/")
    package.pack(project, project, False, tmp_path / "sent")
    assert "glip_model/glip.py" in names(tmp_path / "sent")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"-----BEGIN RSA PRIVATE KEY-----\nMIIE"),
        ("notes.txt", "-----BEGIN OPENSSH PRIVATE KEY-----\n".encode("utf-16")),
        ("account.json", b'{"type": "service_account", "project_id": "a"}'),
        ("words.txt", b"id AKIA" + b"Q" * 16),
        ("words.txt", b"aws_secret_access_key = " + b"aB3/" * 10 + b"\n"),
        ("settings.yaml", b"wandb_api_key: " + b"0123456789abcdef0123 # mine"),
        ("load.py", b"TOKEN = 'hf_" + b"a" * 34 + b"'"),
        ("load.py", b"x = 'ghp_" + b"a1" * 18 + b"'"),
        ("hosts", b"machine host.example\n  login me\n  password abc\n"),
        ("azure.txt", b"DefaultEndpointsProtocol=https;AccountKey=" + b"a" * 40),
        ("id_ed25519", b"abc"),
        ("server.pem", b"abc"),
        ("netrc", b"abc"),
        ("credentials.json", b"{}"),
    ],
)
def test_what_looks_like_a_key_is_refused(name: str, content: bytes, project: Path, tmp_path: Path) -> None:
    (project / "pipeline" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"pipeline/{name} \(.*looks like a secret.*in \.gitignore") as raised:
        package.pack(project, project, False, tmp_path / "sent")
    assert not (tmp_path / "sent").exists()
    assert "abc" not in str(raised.value)
    (project / ".gitignore").write_text(name)
    package.pack(project, project, False, tmp_path / "sent")


def test_keys_are_seen_in_settings_and_in_metrics_too(project: Path, tmp_path: Path) -> None:
    known = {"calibrate": {"cmd": "b", "outs": [{"path": "metrics/a.json", "md5": "3"}]}}
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": known}))
    (project / "metrics").mkdir()
    for path in (project / "params.yaml", project / "metrics/a.json"):
        before = path.read_text() if path.exists() else "{}"
        path.write_text("key: AKIA" + "Q" * 16)
        with pytest.raises(ConfigError, match=rf"{path.name} \(a key of AWS\): looks like a secret"):
            package.pack(project, project, True, tmp_path / "sent")
        path.write_text(before)


def test_the_project_itself_has_no_secrets(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    package.pack(root, root, True, tmp_path / "sent")
    assert (tmp_path / "sent/params.yaml").is_file()


@pytest.mark.parametrize(
    "line",
    [
        "secret_access_key = abc",
        "password = abc",
        "passphrase = 'abc'",
        "# sas_token = abc",
        "url = https://me:abc@host/dvc",
        'url = "https://me:abc@host/dvc"',
        "url = https://host/dvc?sv=2022&sig=abc",
        "url = https://host/dvc?token=abc",
        "url = https://host/dvc?X-Amz-Signature=abc",
        "url = https://host/dvc?%73ig=abc",
        "url = https://host/dvc#access_token=abc",
        "endpointurl = http://host?AWSAccessKeyId=abc",
    ],
)
def test_secrets_of_dvc_do_not_travel(line: str, project: Path, tmp_path: Path) -> None:
    (project / ".dvc/config").write_text(f"['remote \"store\"']\n    {line}\n")
    with pytest.raises(ConfigError, match="looks like a secret") as raised:
        package.pack(project, project, True, tmp_path / "sent")
    assert "abc" not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    ["ask_password = true", "password = ", "url = s3://bucket/signatures/tokens", "url = https://host/dvc?version=1"],
)
def test_what_is_no_secret_of_dvc_travels(line: str, project: Path, tmp_path: Path) -> None:
    (project / ".dvc/config").write_text(f"['remote \"store\"']\n    {line}\n")
    package.pack(project, project, True, tmp_path / "sent")
    assert line in (tmp_path / "sent/.dvc/config").read_text()


def test_a_stage_is_one_of_the_graph(project: Path, tmp_path: Path) -> None:
    for name in ("prepare", "train", "train@x"):
        package.check_stage(project, project, name)
    with pytest.raises(ConfigError, match="no stage 'trian'; there are all, prepare, train;"):
        package.check_stage(project, project, "trian")
    with pytest.raises(ConfigError, match="not the project's folder"):
        package.check_stage(project, tmp_path, "train")
