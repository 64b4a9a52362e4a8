"""The sweep over all types: what becomes of each, as a row of docs/models.md.

``python -m tests.families.automatic.sweep [TYPE ...]`` writes the table, or its rows of some types, anew; the tests
compare it row by row.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig

import multiflow as mf
from multiflow.base.adapter import Adapter
from tests.families.automatic import tiny
from tests.families.automatic.contract import check_pruning

TABLE = Path(__file__).parents[3] / "docs" / "models.md"
HEAD = """# Which models work

Every vision-language type that transformers {version} registers for image-text-to-text, zero-shot image classification
and visual question answering, pruned without a hand-written adapter. `tests/families/automatic/sweep.py` writes this
table: for each type it builds a tiny model by rule, prunes it with `multiflow`, `wanda`, `magnitude`, `lobs` and, where
there is a loss, `snip`, at exact sparsity and without changing it; saves it, loads it, finds the same zeros, and trains
it two steps with `keep_sparse`. Groups are those of the type's default config: group and number of layers.
Types of other tasks work by the same rules, FLAVA, LXMERT, VisualBERT and LayoutLMv3 among them
(`tests/families/automatic/test_sequences.py`).
Three types take their tower from timm, which this sweep does without. With timm 1.0.31, tried by hand, PerceptionLM and
FastVLM pass, and Gemma 3n is refused until its tower, all convolutions, is left dense with `--exclude`.

{summary}

| type | class | groups | stays dense, and why | gradient methods | result |
|---|---|---|---|---|---|
"""


def row(kind: str, name: str) -> str:
    """Return the row of a type: built, pruned, saved, loaded and trained."""
    return f"| {kind} | {name} | {' | '.join([*described(kind, name), *outcome(kind, name)])} |"


def described(kind: str, name: str) -> tuple[str, str]:
    """Return the groups of a type and what stays dense, of its default config (the small one where that fails)."""
    for config in (lambda: full_config(kind), lambda: tiny.build_config(kind, name)):
        try:
            with torch.device("meta"):
                model = getattr(transformers, name)(config())
            adapter = adapter_of(model)[0]
        except Exception:  # of transformers, in many classes, or ours, which `outcome` tells
            continue
        groups = {group: len(layers) for group, layers in adapter.layout(model).groups.items()}
        return ", ".join(f"{group} {count}" for group, count in groups.items()), reasons(adapter)
    return "-", "-"


def full_config(kind: str) -> Any:
    """Return the default config of a type, with the parts that it leaves out."""
    default, parts = CONFIG_MAPPING[kind](), CONFIG_MAPPING[kind].sub_configs
    missing = {key: of() for key, of in parts.items() if getattr(default, key, None) is None and of is not AutoConfig}
    return CONFIG_MAPPING[kind](**missing) if missing else default


def reasons(adapter: Adapter) -> str:
    """Return what stays dense, by reason, with numbers of blocks left out."""
    found: dict[str, dict[str, None]] = {}
    for path, why in adapter.dense.items():
        short = re.sub(r"\.\d+(?=\.|$)", ".N", path)
        parts = short.split(".")
        found.setdefault(why, {})[
            ".".join(parts[:-1]) if why.startswith(("never", "head")) and parts[1:] else short
        ] = None
    texts = []
    for why, paths in found.items():
        names = [f"`{path}`" for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
        texts.append(f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}: {why}")
    return "; ".join(texts) or "nothing but embeddings, norms and biases"


def adapter_of(model: Any) -> tuple[Adapter, str | None]:
    """Return the adapter of a model, and what had to be left dense for that, as the error itself says."""
    try:
        return mf.adapter_for(model), None
    except mf.MultiflowError as error:
        if (regex := suggested(error)) is None or "no linear layer" not in str(error):
            raise
        return mf.adapter_for(model, exclude=regex), regex


def suggested(error: Exception) -> str | None:
    """Return the regex of ``exclude=r'...'`` in an error."""
    found = re.search(r"exclude=r'(\S+)'", str(error))
    return found[1] if found else None


def outcome(kind: str, name: str) -> tuple[str, str]:
    """Return whether gradient methods work, and how it went: ``passes``, ``refused: ...`` or why it was not tried."""
    try:
        model = tiny.build(kind, name)
    except Exception as error:  # of transformers, in many classes
        return "-", f"cannot be built: {first_line(error)}"
    try:
        batches = [tiny.batch(model), tiny.batch(model, padded=False)]
        with torch.no_grad():
            model(**batches[0])
    except Exception as error:  # likewise
        return "-", f"no batch by rule: {first_line(error)}"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder).state_dict()
    if any(not torch.equal(value, again[key]) for key, value in model.state_dict().items()):
        return "-", "transformers does not load what it saves of this class"
    try:
        adapter = mf.adapter_for(model)
    except mf.MultiflowError as error:
        return "-", f"refused: {error}"
    left = ""
    try:
        mf.calibrate(model, batches[:1], adapter=adapter)
    except mf.MultiflowError as error:  # no audio, no video
        if "never reached" not in str(error) or (regex := suggested(error)) is None:
            raise
        adapter, left = (
            mf.adapter_for(model, exclude=regex),
            f" with exclude=r'{regex}' (the batches lack what it reads)",
        )
    with tempfile.TemporaryDirectory() as folder:
        check_pruning(model, adapter, batches, Path(folder))
    loss = "no" if adapter.loss is None else "yes"
    return loss, f"passes{left}".replace("|", "\\|")


def first_line(error: Exception) -> str:
    """Return an error's class and first line, shortened, fit for a table."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:120]}".replace("|", "/")


def table(rows: list[str]) -> str:
    """Return docs/models.md."""
    results = [row.rsplit(" | ", 1)[1] for row in rows]
    passed, refused = (sum(r.startswith(word) for r in results) for word in ("passes", "refused"))
    summary = (
        f"Of {len(rows)} types and classes {passed + refused} could be built and run by rule; {passed} of them pass "
        f"and {refused} are refused by name."
    )
    return HEAD.format(version=transformers.__version__, summary=summary) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    wanted = sys.argv[1:]
    before = {tuple(line.split(" | ")[:2]): line for line in TABLE.read_text().splitlines() if line.startswith("| ")}
    TABLE.write_text(
        table(
            [
                row(kind, name) if not wanted or kind in wanted else before[f"| {kind}", name]
                for kind, name in tiny.types()
            ]
        )
    )
