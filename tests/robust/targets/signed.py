"""Files of strangers whose checksums are right: a header or facts say whatever they want, and are signed anew."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

import multiflow as mf
from multiflow.base.artifacts import check_regular, read_tensors, write_facts, write_tensors
from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_json
from multiflow.base.packed import packed_parts, read_packed, write_packed
from multiflow.base.structure import STRUCTURE_FILE
from multiflow.calibration import Checkpoint
from multiflow.cli.apply import data_of
from multiflow.cli.console import find_run, show_run
from multiflow.cli.masks import show_masks
from multiflow.families.opening import load_model
from multiflow.masks.cards import mask_card, model_card
from multiflow.report.pruned import write
from tests.robust.fuzz import Target
from tests.robust.targets.artifacts import SETTINGS, evaluation, figures, result_of, state
from tests.robust.targets.folders import _smaller
from tests.small import ADAPTER, two_towers

HEADER, TENSORS = "header.json", "tensors.safetensors"


def _apart(make: Callable[[Path], Path], folder: Path) -> None:
    """Write the header of a file of ours as JSON, and its tensors as a plain safetensors file."""
    folder.mkdir()
    with tempfile.TemporaryDirectory() as place:
        path = make(Path(place) / "made")
        whole = (lambda header: [of["name"] for of in header["layers"]]) if path.name.startswith("mask") else None
        tensors, header = read_tensors(path, "file", whole=whole)
    save_file({name: of.contiguous() for name, of in tensors.items()}, folder / TENSORS)
    own = ("checksum", "tensors", *(("format",) if whole is None else ()))
    (folder / HEADER).write_text(json.dumps({name: of for name, of in header.items() if name not in own}))


def _signed(folder: Path, name: str) -> Path:
    """Put the two together again, with the checksum of what is there now."""
    header = read_json(folder / HEADER)
    try:
        check_regular(folder / TENSORS, "tensors")
        tensors = load_file(folder / TENSORS)
        whole = [of["name"] for of in header["layers"]] if name.startswith("mask") else None
        return write_tensors(folder / name, tensors, header, whole)
    except Exception as error:  # nobody could have written such a file
        raise MultiflowError("no such file can be") from error


def _mask(folder: Path) -> Path:
    result_of("magnitude", folder)
    return folder / "mask-0.5.safetensors"


def read_masks(folder: Path) -> Any:
    """Load masks, show them, write their cards, apply them."""
    path = _signed(folder, "mask.safetensors")
    masks = mf.Masks.load(path)
    cards = [mask_card({0.5: masks}, "user/name", [path.name]), model_card(masks, "model", "command", "data")]
    assert not re.search(r"(?<!\\)<script", "".join(cards))  # as a text it has a backslash before it
    for card in cards:
        assert set(yaml.safe_load(card.split("---\n")[1])) <= {"library_name", "base_model", "tags"}
    with redirect_stdout(io.StringIO()):
        show_masks(str(path))
    masks.apply_(two_towers())
    return None


def _weights(folder: Path) -> Path:
    result_of("lobs", folder)
    return folder / "weights-0.5.safetensors"


def read_weights(folder: Path) -> Any:
    """Load changed weights whose masks vouch for them, and apply them."""
    from multiflow.base.artifacts import checksum_of
    from multiflow.pruning.result import changed_weights

    path = _signed(folder, "weights-0.5.safetensors")
    masks = mf.prune(two_towers(), "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    told = {**masks.settings, "changes_weights": True, "sparsity": 0.5, "weights_checksum": checksum_of(path)}
    found = changed_weights(folder / "mask-0.5.safetensors", replace(masks, settings=told))
    return sorted(found or {})


def _statistics(folder: Path) -> Path:
    from tests.robust.targets.artifacts import statistics

    folder.mkdir()
    statistics(folder)
    return next(path for path in folder.iterdir())


def read_statistics(folder: Path) -> Any:
    """Load statistics and prune by them."""
    stats = mf.Stats.load(_signed(folder, "stats.safetensors"))
    return str(mf.prune(two_towers(), "wanda", 0.5, stats, adapter=ADAPTER).masks)


def _packed(compress: str, folder: Path) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    sparse = torch.randn(20, 30) * (torch.rand(20, 30) > 0.7)
    return write_packed(folder / "packed.safetensors", {"a.weight": sparse, "b": torch.ones(3)}, "int8", compress)


def read_packed_file(folder: Path) -> Any:
    """Unpack, and say what takes how much."""
    path = _signed(folder, "packed.safetensors")
    packed_parts(path)
    return sorted(read_packed(path))


def _state(folder: Path) -> Path:
    state(folder)
    return folder / "state.safetensors" if (folder / "state.safetensors").exists() else folder / "state"


def read_signed_state(folder: Path) -> Any:
    """Read where a method in steps stands."""
    like = {"mask/a": torch.zeros(9, dtype=torch.uint8), "weight/a": torch.zeros(3, 2).bfloat16()}
    found = Checkpoint(_signed(folder, "state.safetensors")).load_state(SETTINGS, like, {"step": 9})
    return found and sorted(found[0])


def _facts(make: Callable[[Path], None], folder: Path) -> None:
    make(folder)
    for path in folder.glob("*.json"):
        if isinstance(said := json.loads(path.read_text()), dict):
            own = ("checksum", "format")
            path.write_text(json.dumps({name: of for name, of in said.items() if name not in own}))


def _sign_facts(folder: Path) -> None:
    for path in folder.glob("*.json"):
        said = read_json(path)
        if not isinstance(said, Mapping):
            continue
        try:
            write_facts(path, said)
        except (TypeError, ValueError, RecursionError) as error:
            raise MultiflowError("no such file can be") from error


def read_run(folder: Path) -> Any:
    """Show a run, and make a page of it if it is a pruning."""
    _sign_facts(folder)
    with redirect_stdout(io.StringIO()) as said:
        if find_run(str(folder)):
            show_run(folder)
    if (folder / "result.json").exists():
        data_of(folder / "mask-0.5.safetensors")
        page = write(mf.Result.load(folder), folder / "page.html").read_text()
        assert "<script>x" not in page
    return said.getvalue()


def _structure(folder: Path) -> None:
    _smaller("packed", folder)
    said = json.loads((folder / STRUCTURE_FILE).read_text())
    (folder / STRUCTURE_FILE).write_text(json.dumps({k: v for k, v in said.items() if k not in ("checksum", "format")}))


def read_structure(folder: Path) -> Any:
    """Load a smaller model whose sizes say what they want."""
    if (folder / STRUCTURE_FILE).exists():
        said = read_json(folder / STRUCTURE_FILE)
        if not isinstance(said, Mapping):
            raise MultiflowError("no such file can be")
        write_facts(folder / STRUCTURE_FILE, said)
    return len(load_model(folder).state_dict())


TARGETS = [
    Target("signed-masks", partial(_apart, _mask), read_masks),
    Target("signed-weights", partial(_apart, _weights), read_weights, weight=0.5),
    Target("signed-statistics", partial(_apart, _statistics), read_statistics),
    Target("signed-packed", partial(_apart, partial(_packed, "none")), read_packed_file),
    Target("signed-packed-zlib", partial(_apart, partial(_packed, "zlib")), read_packed_file),
    Target("signed-state", partial(_apart, _state), read_signed_state, weight=0.5),
    Target("signed-result", partial(_facts, partial(result_of, "magnitude")), read_run, weight=0.5),
    Target("signed-figures", partial(_facts, figures), read_run, weight=0.5),
    Target("signed-evaluation", partial(_facts, evaluation), read_run, weight=0.5),
    Target("signed-structure", _structure, read_structure, weight=0.3),
]
