"""What comes back from a cluster: hashes, metrics, plots and reports, through DVC's remote, beside the data there."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from dvc.config import NoRemoteError
from dvc.repo import Repo

from pipeline.errors import MissingInputError, StorageError
from pipeline.store.atomic import replacing
from pipeline.submission.package import LOCK


def has_remote(project: Path) -> bool:
    """Tell whether DVC knows where to send data."""
    with Repo(str(project)) as repo:
        try:
            repo.cloud.get_remote()
        except NoRemoteError:
            return False
        return True


def send_results(project: Path, run: str) -> None:
    """Put the run's hashes and all outputs that are files into DVC's remote, under the run's name."""
    with Repo(str(project)) as repo, tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "results.tar.gz"
        with tarfile.open(bundle, "w:gz") as archive:
            for path in [project / LOCK, *_small_outputs(repo)]:
                if path.is_file():
                    archive.add(path, path.relative_to(project))
        remote = repo.cloud.get_remote()
        place = remote.fs.join(remote.path, *_place(run))
        remote.fs.makedirs(remote.fs.parent(place), exist_ok=True)
        remote.fs.put_file(str(bundle), place)


def fetch_results(project: Path, run: str) -> list[str]:
    """Put what a run sent into the project, over what is there; return the names.

    Raises:
        MissingInputError: the run has sent nothing.
        StorageError: what it sent is no such bundle.
    """
    with Repo(str(project)) as repo, tempfile.TemporaryDirectory() as folder:
        remote = repo.cloud.get_remote()
        place = remote.fs.join(remote.path, *_place(run))
        bundle = Path(folder) / "results.tar.gz"
        try:
            remote.fs.get_file(place, str(bundle))
        except FileNotFoundError as error:
            raise MissingInputError(f"{place}: the run {run} has sent no results; submit it again") from error
        expected = [PurePosixPath(path.relative_to(project)) for path in [project / LOCK, *_small_outputs(repo)]]
        try:
            with tarfile.open(bundle) as archive:
                members = [member for member in archive.getmembers() if member.isfile()]
                for member in members:
                    if PurePosixPath(member.name) not in expected:
                        raise StorageError(f"{place}: holds {member.name}, which is no output of dvc.yaml")
                aside = Path(folder) / "new"
                archive.extractall(aside, members, filter="data")
        except tarfile.TarError as error:
            raise StorageError(f"{place}: no bundle of results ({error})") from error
        for member in members:
            with replacing(project / member.name) as beside:  # the temporary folder may be on another disk
                shutil.copyfile(aside / member.name, beside)
        return [member.name for member in members]


def _place(run: str) -> tuple[str, str]:
    return "submitted", f"{run}.tar.gz"


def _small_outputs(repo: Repo) -> list[Path]:
    """Return the outputs that are files: metrics, plots and reports; data and models are folders, without a suffix."""
    paths = [Path(out.fs_path) for out in repo.index.outs if out.protocol == "local"]
    return [path for path in paths if path.suffix]
