"""Models whose Python code comes with them: what must be allowed, which class it is, which files go along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_json

PROCESSING = ("AutoProcessor", "AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor")
ELSEWHERE = "--"  # in a name of code: it lies in another repository


def auto_class(source: str, own_code: Any, architecture: str, trust: bool) -> str:
    """Return the auto class that loads a model of code of its own; whoever has not allowed that is told so.

    Args:
        source: folder or id of the model.
        own_code: ``auto_map`` of its config.
        architecture: the class that its config names.
        trust: whether its code may run.
    """
    entries = {str(key): str(value) for key, value in own_code.items()} if isinstance(own_code, Mapping) else {}
    if not trust:
        files = ", ".join(sorted({f"{value.rpartition(ELSEWHERE)[2].split('.')[0]}.py" for value in entries.values()}))
        raise MultiflowError(
            f"'{source}' is a model whose Python code ({files or architecture}) comes with it, and to load it is to "
            "run that code on this machine; read it first, then allow it with {trust_remote_code=True}",
            field="trust_remote_code",
        )
    named = [
        key for key, value in entries.items() if value.endswith(f".{architecture}") and key.startswith("AutoModel")
    ]
    return next(iter(named), "AutoModel")


def refuse_processing_code(source: str, files: Iterable[Path]) -> None:
    """Refuse a processor or tokenizer of a class that transformers does not know: its code comes with it.

    Args:
        source: folder or id of the processor.
        files: JSON files of it, which name such code in their ``auto_map``.
    """
    import transformers

    code: dict[str, None] = {}
    for file in files:
        for key, values in _entries(file):
            if key in PROCESSING and not any(hasattr(transformers, value.rpartition(".")[2]) for value in values):
                code |= dict.fromkeys(f"{value.rpartition(ELSEWHERE)[2].split('.')[0]}.py" for value in values)
    if code:
        raise MultiflowError(
            f"the processor in '{source}' brings Python code of its own ({', '.join(code)}), and to load it is to run "
            "that code on this machine; read it first, then allow it with {trust_remote_code=True}",
            field="trust_remote_code",
        )


def own_class(source: str, own_code: Mapping[str, Any], auto: str) -> Any:
    """Import the class of a model of code of its own, which goes along when the model is saved; that runs the code."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    kind: Any = get_class_from_dynamic_module(own_code[auto], source)
    kind.register_for_auto_class(auto)
    kind.config_class.register_for_auto_class()
    return kind


def runs_own_code(model: Any) -> bool:
    """Tell whether a model runs Python code that came with it, which was allowed when it was loaded."""
    from transformers.dynamic_module_utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

    return type(model).__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")


def code_files(files: Iterable[Path]) -> list[Path]:
    """Return the Python files beside some JSON files that they name in their ``auto_map``, and what those import."""
    found: dict[Path, None] = {}
    for file in files:
        for name in _named(file):
            path = file.parent / f"{name}.py"
            if path.is_file():
                from transformers.dynamic_module_utils import get_relative_import_files

                beside = (Path(other) for other in get_relative_import_files(path))
                found |= dict.fromkeys([path, *(other for other in beside if other.is_file())])
    return list(found)


def _named(file: Path) -> Iterator[str]:
    """Give the modules that a JSON file names in its ``auto_map``; none of one that is no such file."""
    for _, values in _entries(file):
        yield from (value.split(".")[0] for value in values if ELSEWHERE not in value and "/" not in value)


def _entries(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Give the auto classes for which a JSON file names code, and the classes there; none of a file of another kind."""
    try:
        entries = read_json(file).get("auto_map", {}).items()
    except (MultiflowError, AttributeError):
        return
    for key, entry in entries:
        values = [value for value in (entry if isinstance(entry, list | tuple) else (entry,)) if isinstance(value, str)]
        if values:
            yield key, values
