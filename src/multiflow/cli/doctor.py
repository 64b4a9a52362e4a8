"""``multiflow doctor``: what is installed, what is missing for which feature, and where files are kept."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement

from multiflow import DISTRIBUTION, __version__
from multiflow.base.errors import MultiflowError
from multiflow.calibration.memory import free_memory
from multiflow.cli.console import show, table
from multiflow.tasks.captioning.metrics import missing_caption_metrics

EXTRAS = {
    "audio": "speech: reading, resampling, word error rates",
    "data": "Hugging Face data sets and parquet files",
    "eval": "caption metrics (with a Java runtime)",
    "track": "TensorBoard",
    "wandb": "Weights & Biases",
    "ray": "benchmarks on a Ray cluster",
    "slurm": "benchmarks by Slurm",
    "coreml": "models for Apple's devices (multiflow export --format coreml)",
    "onnx": "models for other runtimes (multiflow export --format onnx)",
    "zstd": "packed files with zstd",
    "vlm": "what some processors need (SmolVLM, Idefics 3)",
}
"""Extra of the package -> what it is for; one that is not described here is listed by its name alone."""

DEVELOPMENT = ("dev", "docs", "real", "release")  # extras that no user needs


@dataclass(frozen=True)
class DoctorSettings:
    """What is installed, what is missing, where files are kept; it takes no options."""


def doctor(settings: DoctorSettings) -> int:
    """Print what was found; the exit code is 1 where a package that the library needs is missing or too old."""
    required, extras = requirements()
    broken = [name for name, said in required.items() if said.startswith("MISSING")]
    show(
        table("", ["package", "installed"], list(required.items())),
        table("", ["extra", "for", "state"], [(name, EXTRAS.get(name, ""), said) for name, said in extras.items()]),
        table("", ["what", "here"], [*machine().items(), *places().items(), *captions().items()]),
    )
    if broken:
        show(f"not everything is there: {', '.join(broken)}; {install()}")
    return 1 if broken else 0


def requirements() -> tuple[dict[str, str], dict[str, str]]:
    required = {"multiflow": __version__, "python": platform.python_version()}
    extras: dict[str, list[str]] = {}
    try:
        own = distribution(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise MultiflowError(
            f"multiflow runs from '{Path(__file__).parents[2]}', but is not installed; "
            "in the checkout: pip install -c constraints.txt -e ."
        ) from error
    for line in own.requires or []:
        requirement = Requirement(line)
        said = _state(requirement)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            required[requirement.name] = said
            continue
        for extra in own.metadata.get_all("Provides-Extra") or []:
            if extra not in DEVELOPMENT and requirement.marker.evaluate({"extra": extra}):
                extras.setdefault(extra, []).append(
                    said if said.startswith("MISSING") else f"{requirement.name} {said}"
                )
    missing = {extra: [said for said in all_of if said.startswith("MISSING")] for extra, all_of in extras.items()}
    return required, {
        extra: f"{install(extra)} ({'; '.join(missing[extra])})" if missing[extra] else ", ".join(all_of)
        for extra, all_of in extras.items()
    }


def install(extra: str | None = None) -> str:
    """Say how to install what is missing, in a checkout or where a wheel was installed."""
    if (Path(__file__).parents[3] / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]'" if extra else "in the checkout: pip install -c constraints.txt -e ."
    return f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install --upgrade {DISTRIBUTION}"


def machine() -> dict[str, str]:
    import torch

    found = {"processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"}
    if (free := free_memory(torch.device("cpu"))) is not None:
        found["free memory"] = f"{free / 2**30:.1f} GiB"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found[f"cuda:{number}"] = torch.cuda.get_device_name(number)
    else:
        built = torch.version.cuda
        found["CUDA"] = f"no GPU is seen by this build of torch (for CUDA {built})" if built else "torch is a CPU build"
    return found


def places() -> dict[str, str]:
    from huggingface_hub import constants

    cache, here = Path(constants.HF_HUB_CACHE), Path.cwd()
    offline = " (offline: HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    return {
        "models of the hub": f"{cache}{'' if cache.is_dir() else ' (nothing there so far)'}{offline}",
        "room here": f"{shutil.disk_usage(here).free / 2**30:.1f} GiB in {here}",
    }


def captions() -> dict[str, str]:
    missing = missing_caption_metrics()
    reasons: dict[str, list[str]] = {}
    for metric, why in missing.items():
        reasons.setdefault(why, []).append(metric)
    return {"caption metrics": "; ".join(f"no {', '.join(names)}: {why}" for why, names in reasons.items()) or "all"}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "MISSING"


def _state(requirement: Requirement) -> str:
    found = _version(requirement.name)
    if found == "MISSING" or not requirement.specifier.contains(found, prereleases=True):
        why = "" if found == "MISSING" else f", {found} is installed"
        return f"MISSING: {requirement.name}{requirement.specifier}{why}"
    return found
