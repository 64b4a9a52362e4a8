"""The card of pruned weights: what a stranger must know to use them, written from the masks themselves.

A card is the README.md of a repository on the Hub, or of the folder of a pruned model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from zlib import crc32

from multiflow.base.display import percent
from multiflow.base.types import short
from multiflow.masks.masks import Masks

PLAIN = (str, int, float, bool)
NAMED = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""A model on the Hub."""


def mask_card(masks: Mapping[float, Masks], repository: str, files: Sequence[str] = ()) -> str:
    """Write the card of a repository of masks.

    Args:
        masks: sparsity as it was asked for -> masks of one pruning.
        repository: ``user/name``, for the lines that show how to use it.
        files: names of the files in the repository, each said in a line.
    """
    first = next(iter(masks.values()))
    asked = short(next(iter(masks)))
    base = str(first.settings.get("base_model") or first.settings.get("model") or "")
    return "\n".join(
        [
            *_header(base, ["pruning", "sparsity", "multiflow"]),
            f"# Masks of {_cell(base or 'a model')}, pruned by {_method(first)}",
            "",
            "One bit a weight says which weights of the prunable layers are kept. The model itself is not in here.",
            "",
            *zeros_table(masks),
            "",
            "## How to use them",
            "",
            "```python",
            "import multiflow as mf",
            "",
            f"model = mf.load_model({_quoted(base or 'the model that was pruned')}, masks={_quoted(repository)}, "
            f"sparsity={asked})",
            "```",
            "",
            *_weights_note(first),
            *how_made(first),
            *([f"Files: {', '.join(f'`{name}`' for name in files)}", ""] if files else []),
        ]
    )


def model_card(masks: Masks, model: str, command: str = "", data: str = "") -> str:
    """Write the card of a folder that holds a pruned model.

    Args:
        masks: that were applied to it.
        model: the dense model that was pruned, as it was named.
        command: that wrote the folder; empty = none.
        data: what the masks were made on; empty = none, or nobody knows.
    """
    asked = masks.settings.get("sparsity", masks.sparsity)
    return "\n".join(
        [
            *_header(model, ["pruning", "sparsity", "multiflow"]),
            f"# {_cell(model)}, {percent(masks.sparsity)} of its prunable weights zero",
            "",
            "An ordinary folder of transformers: the weights that were pruned by "
            f"{_method(masks)} are stored as zeros. Zeros alone make a model "
            "neither smaller nor faster; `multiflow export` and `multiflow speed` say what they can buy.",
            "",
            *zeros_table({float(asked): masks}),
            "",
            *how_made(masks)[:-1],
            *([f"- data: {_cell(data)}"] if data else []),
            *_versions(masks),
            "",
            *(["Written by", "", "```bash", command, "```", ""] if command else []),
        ]
    )


def zeros_table(masks: Mapping[float, Masks]) -> list[str]:
    """Write a Markdown table: a row a sparsity, the share of zeros in every group."""
    groups = list(dict.fromkeys(group for one in masks.values() for group in one.layout.groups))
    rows = [
        [short(asked), percent(one.sparsity), *(percent(one.group_sparsities()[group]) for group in groups)]
        for asked, one in masks.items()
    ]
    head = ["asked", "zeros", *(_cell(group) for group in groups)]
    return [_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *map(_row, rows)]


def how_made(masks: Masks) -> list[str]:
    """Write the settings of a pruning and the fingerprint of the weights that it was made for."""
    said = {name: value for name, value in masks.settings.items() if isinstance(value, PLAIN)}
    lines = [f"- {_cell(name.replace('_', ' '))}: {_cell(value)}" for name, value in said.items()]
    print_of = fingerprint(masks)
    lines += [f"- fingerprint of the dense weights: `{print_of}`"] if print_of else []
    return ["## How they were made", "", f"{len(masks)} layers, {masks.layout.size:,} weights.", "", *lines, ""]


def _versions(masks: Masks) -> list[str]:
    """The libraries that made masks, as one line of a list."""
    versions = masks.settings.get("versions")
    if not isinstance(versions, Mapping):
        return []
    return ["- versions: " + ", ".join(f"{_cell(name)} {_cell(version)}" for name, version in versions.items())]


def fingerprint(masks: Masks) -> str:
    """Hash the hashes of the weights that masks were made for: eight hexadecimal digits; empty where none are known."""
    if not masks.weights:
        return ""
    return f"{crc32(chr(10).join(f'{name} {masks.weights[name]}' for name in sorted(masks.weights)).encode()):08x}"


def _weights_note(masks: Masks) -> list[str]:
    if not masks.settings.get("changes_weights"):
        return []
    return ["The method also changes the weights that it keeps: they lie beside the masks, and belong to them.", ""]


def _header(base: str, tags: Sequence[str]) -> list[str]:
    """The block of YAML that the Hub reads; a base model is named where it can be one of the Hub's."""
    named = [f"base_model: {base}"] if NAMED.fullmatch(base) else []
    return ["---", "library_name: multiflow", *named, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def _method(masks: Masks) -> str:
    return _cell(masks.settings.get("method") or "an unknown method")


def _quoted(text: str) -> str:
    """A text as it stands in a line of Python, without what would end the line or the block that it is in."""
    return json.dumps(" ".join(text.split())).replace("`", "'")


def _cell(value: object) -> str:
    """Text in which nothing is markup: it may come from a stranger's file."""
    text = " ".join(str(value).split())
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, f"\\{sign}")
    return text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
