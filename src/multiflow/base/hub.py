"""The Hugging Face Hub: whether something is there, files from it, files to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.base.files import beside


def reach_hub(repository: str) -> None:
    """Ask the Hub for a repository; transformers itself would retry for up to a minute where there is no network.

    Raises:
        OSError: there is no such repository, or no network; the message says what the Hub's library said.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repository, timeout=5)
    except Exception as error:  # its HTTP library, and with it the class of a failed connection, differs by version
        raise OSError(" ".join(str(error).split())) from error


def fetch(repository: str, names: Sequence[str], revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder of a repository's files, from the Hub or, without a network, from its cache.

    Args:
        repository: ``user/name``.
        names: patterns of the names of files; others are not loaded.
        revision: a branch, tag or commit; None = the main branch.
        token: for a private repository; None = the one that the Hub's client has stored.

    Raises:
        MultiflowError: there is no such repository, neither there nor in the cache.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return Path(HfApi(token=token).snapshot_download(repository, revision=revision, allow_patterns=list(names)))
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise MultiflowError(
            f"'{repository}' is no file or folder here, nor on Hugging Face ({said}); check the name, the network and, "
            f"for a private repository, the token{beside(repository)}"
        ) from error
    finally:
        logging.set_verbosity(level)


def publish(folder: Path, repository: str, private: bool = False, token: str | None = None, message: str = "") -> str:
    """Upload all files of a folder in one commit, into a repository that is made where there is none.

    Args:
        folder: its files keep their names; others of the repository stay.
        repository: ``user/name``.
        private: whether one that is made is private.
        token: with the right to write; None = the one that the Hub's client has stored.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        MultiflowError: the Hub refuses, or cannot be reached; what it said is in the message.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=made.repo_id, commit_message=message)
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise MultiflowError(
            f"cannot write to '{repository}' on Hugging Face ({said}); log in with 'hf auth login' or pass token=, and "
            "name a repository of your own, 'user/name'"
        ) from error
    return str(made)
