"""Where weights are looked for: folders, installed packages, the hub; and what is said when they are nowhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from glip_model.pretrained import resolve_folder, resolve_source

NOT_FOUND = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/owner/model"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package that can be found but fails when it is imported."""
    folder = tmp_path / "site" / "fruit_weights"
    (folder / "model" / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "site" / "secret.txt").write_text("outside", encoding="utf-8")
    (tmp_path / "site" / "single_file.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


# Sources


@pytest.mark.parametrize("name", ["/no/such/folder", "model", "owner/model", "./a b/c.pth", "", "packages:x/y"])
def test_any_other_name_is_left_as_it_is(name: str) -> None:
    assert resolve_source(name) == name


@pytest.mark.parametrize("inside", ["model", "model/config.json", "model/deep", ""])
def test_what_a_package_carries_is_found_without_importing_it(package: Path, inside: str) -> None:
    assert Path(resolve_source(f"package:fruit_weights/{inside}")) == package / inside
    assert "fruit_weights" not in sys.modules


def test_the_package_alone_is_its_folder(package: Path) -> None:
    assert resolve_source("package:fruit_weights") == str(package)


@pytest.mark.parametrize(
    "name",
    ["no_such_package", "", "/model", "single_file", "fruit_weights.model", "no_such_package.part", "../site", "a b"],
)
@pytest.mark.usefixtures("package")
def test_a_package_that_is_not_installed_is_an_error_with_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^package:{name}/model: the package '.*' is not installed; install it"):
        resolve_source(f"package:{name}/model")
    assert "fruit_weights" not in sys.modules


@pytest.mark.parametrize("inside", ["weights.pth", "model/nothing", "../secret.txt", "model/../../secret.txt", "/etc"])
def test_what_the_package_does_not_hold_is_an_error_with_the_place(package: Path, inside: str) -> None:
    with pytest.raises(ValueError, match=f"holds no '{inside}'") as caught:
        resolve_source(f"package:fruit_weights/{inside}")
    assert str(package) in str(caught.value)


def test_a_link_that_leads_out_of_the_package_is_not_followed(package: Path) -> None:
    (package / "link.txt").symlink_to(package.parent / "secret.txt")
    with pytest.raises(ValueError, match=r"holds no 'link\.txt'"):
        resolve_source("package:fruit_weights/link.txt")


# Folders


class FakeHub:
    """Delivers one folder, or fails, and notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, delivered: Path | Exception) -> None:
        self.delivered = delivered
        self.asked: list[tuple[str, str | None]] = []
        self.patterns: list[str] = []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self)

    def __call__(self, name: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        self.asked.append((name, revision))
        self.patterns = allow_patterns
        if isinstance(self.delivered, Exception):
            raise self.delivered
        return str(self.delivered)


def test_a_folder_here_is_taken_and_the_hub_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, tmp_path / "from the hub")
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder(tmp_path) == tmp_path
    assert resolve_folder(str(tmp_path)) == tmp_path
    assert resolve_folder("owner/model") == Path("owner/model")
    assert hub.asked == []


def test_a_folder_inside_a_package_is_taken(package: Path) -> None:
    assert resolve_folder("package:fruit_weights/model") == package / "model"


@pytest.mark.parametrize("revision", [None, "v1.0", "0123abc"])
def test_a_hub_id_is_fetched_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    hub = FakeHub(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("some-owner/GLIP_t.v2", revision) == tmp_path
    assert hub.asked == [("some-owner/GLIP_t.v2", revision)]


def test_nothing_that_could_run_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    resolve_folder("owner/model")
    files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    refused = ["modeling.py", "pytorch_model.bin", "model.pth", "model.pkl", "model.ckpt", "README.md"]
    allowed = list(huggingface_hub.utils.filter_repo_objects([*files, *refused], allow_patterns=hub.patterns))
    assert allowed == files


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "/no/such/folder", "./owner/model", "owner/", "/model", "owner/mo del", "~/model"]
)
def test_a_name_that_no_hub_has_is_an_error_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub = FakeHub(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no such folder; expected one written by save_pretrained, or a hub id"):
        resolve_folder(name)
    assert hub.asked == []


def test_a_path_is_never_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="owner/model: no such folder"):
        resolve_folder(Path("owner/model"))
    assert hub.asked == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "glip.pth"
    file.write_bytes(b"weights")
    with pytest.raises(ValueError, match="no such folder"):
        resolve_folder(file)


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("cannot reach the hub"),
        RepositoryNotFoundError("no such model", response=NOT_FOUND),
        HFValidationError("ids are not written like this"),
        OSError("disk is full"),
    ],
    ids=["offline", "not there", "invalid", "disk"],
)
def test_what_the_hub_does_not_deliver_is_an_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    FakeHub(monkeypatch, error)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^owner/model: neither a folder here nor .* the hub delivers") as caught:
        resolve_folder("owner/model")
    assert str(error) in str(caught.value)
