"""What comes back from a cluster: hashes, metrics, plots and reports, through DVC's remote or the run's own store."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from dvc.config import NoRemoteError
from dvc.repo import Repo

from pipeline.errors import MissingInputError, StorageError
from pipeline.store.atomic import replacing
from pipeline.store.copies import scratch
from pipeline.store.storage import Place, fetched
from pipeline.submission.package import LOCK

BUNDLE = "results.tar.gz"
"""Name of what is sent, in a run's store."""


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
    with Repo(str(project)) as repo, scratch() as folder:
        remote = repo.cloud.get_remote()
        place = remote.fs.join(remote.path, *_place(run))
        remote.fs.makedirs(remote.fs.parent(place), exist_ok=True)
        remote.fs.put_file(str(_bundle(repo, project, folder)), place)


def fetch_results(project: Path, run: str) -> list[str]:
    """Put what a run sent into the project, over what is there; return the names.

    Raises:
        MissingInputError: the run has sent nothing.
        StorageError: what it sent is no such bundle.
    """
    with Repo(str(project)) as repo, scratch() as folder:
        remote = repo.cloud.get_remote()
        place = remote.fs.join(remote.path, *_place(run))
        bundle = folder / BUNDLE
        try:
            remote.fs.get_file(place, str(bundle))
        except FileNotFoundError as error:
            raise MissingInputError(f"{place}: the run {run} has sent no results; submit it again") from error
        return _unbundle(repo, project, bundle, place)


def keep_results(project: Path, store: Place) -> None:
    """Put hashes and all outputs that are files into a run's store, beside its data; StorageError as ``replacing``."""
    with Repo(str(project)) as repo, replacing(store / BUNDLE) as bundle:
        _bundle(repo, project, bundle.parent)


def kept_results(project: Path, store: Place, *, with_lock: bool) -> list[str]:
    """Put what ``keep_results`` kept into the project, over what is there; return the names, if there are any.

    Args:
        project: folder of the graph.
        store: of the run.
        with_lock: with the hashes, which are those of the graph in the store.

    Raises:
        StorageError: it is no such bundle, or the store gives no answer.
    """
    try:
        with Repo(str(project)) as repo, fetched(store / BUNDLE) as bundle:
            return _unbundle(repo, project, bundle, str(store / BUNDLE), () if with_lock else (LOCK,))
    except FileNotFoundError:
        return []


def _bundle(repo: Repo, project: Path, folder: Path) -> Path:
    bundle = folder / BUNDLE
    with tarfile.open(bundle, "w:gz") as archive:
        for path in [project / LOCK, *_small_outputs(repo)]:
            if path.is_file():
                archive.add(path, path.relative_to(project))
    return bundle


def _unbundle(repo: Repo, project: Path, bundle: Path, origin: str, left_out: Collection[str] = ()) -> list[str]:
    expected = [PurePosixPath(path.relative_to(project)) for path in [project / LOCK, *_small_outputs(repo)]]
    with scratch() as aside:
        try:
            with tarfile.open(bundle) as archive:
                members = [member for member in archive.getmembers() if member.isfile()]
                for member in members:
                    if PurePosixPath(member.name) not in expected:
                        raise StorageError(f"{origin}: holds {member.name}, which is no output of dvc.yaml")
                archive.extractall(aside, members, filter="data")
        except tarfile.TarError as error:
            raise StorageError(f"{origin}: no bundle of results ({error})") from error
        names = [member.name for member in members if member.name not in left_out]
        for name in names:
            with replacing(project / name) as beside:  # the temporary folder may be on another disk
                shutil.copyfile(aside / name, beside)
        return names


def _place(run: str) -> tuple[str, str]:
    return "submitted", f"{run}.tar.gz"


def _small_outputs(repo: Repo) -> list[Path]:
    """Return the outputs that are files: metrics, plots and reports; data and models are folders, without a suffix."""
    paths = [Path(out.fs_path) for out in repo.index.outs if out.protocol == "local"]
    return [path for path in paths if path.suffix]
