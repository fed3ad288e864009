"""Sends a folder to a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError, StorageError

Kind = Literal["model", "dataset"]


def check_name(repository: str) -> None:
    """Refuse what is no name of a repository: ConfigError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its own pages name it

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repository}: expected USER/NAME: {error}") from error
    if "/" not in repository:
        raise ConfigError(f"--repo {repository}: expected USER/NAME")


def send(folder: Path, repository: str, kind: Kind, *, is_private: bool, message: str) -> str:
    """Make the repository where there is none, send the folder as a commit, and return its URL.

    The token is that of ``hf auth login`` or of ``HF_TOKEN``; it is in no message. Files that are there already are not
    sent again.

    Raises:
        StorageError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, get_token

    api = HfApi()
    try:
        api.create_repo(repository, repo_type=kind, private=is_private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type=kind, commit_message=message)
    except Exception as error:  # also what its HTTP library raises, which is another one from version to version
        token, text = get_token(), f"{type(error).__name__}: {error}"
        told = text.replace(token, "***") if token else text
        raise StorageError(
            f"{repository}: the hub took nothing, or not all: {told}; a token with the right to write comes from: "
            "hf auth login, or HF_TOKEN; the same command goes on"
        ) from None
    return f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"
