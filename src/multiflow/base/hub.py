"""Asking the Hugging Face Hub whether something is there, once and quickly."""

from __future__ import annotations


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
