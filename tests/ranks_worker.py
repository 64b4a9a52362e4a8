"""What `test_ranks` runs in each of two processes.

Every case returns what it found; all results of a process go to one file. A case that ends with an error leaves its
sentence, and the cases after it show that the processes are still in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # now: imported inside a group, its default arguments keep that group and its threads
from torch import Tensor

import multiflow as mf
from multiflow.base import parallel
from tests import golden_data
from tests.ranks_pruning import FAINT, GROUPED, PRUNED, SHORT, SPARSITIES, TRAINING, kept, prune_blip, prune_golden
from tests.ranks_resuming import go_on, go_on_in_steps, go_on_with_blip, keep_a_file
from tests.small import ADAPTER, towers_batches, two_towers


def learn() -> dict[str, Tensor]:
    return kept(mf.prune(two_towers(), "tamt", SPARSITIES, towers_batches(4, 4, 4), adapter=FAINT, **TRAINING))


def learn_from_one() -> dict[str, Tensor]:
    return kept(mf.prune(two_towers(), "tamt", SPARSITIES, towers_batches(4), adapter=FAINT, **TRAINING))


class Numbered:
    """Batches that can be made by number, and remember which were; the third is broken."""

    def __init__(self, data: list[Any], broken: int | None = None) -> None:
        self.data, self.made, self.broken = data, [], broken

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("all batches were made")

    def numbered(self, numbers: Iterable[int]) -> Iterator[Any]:
        for number in numbers:
            self.made.append(number)
            yield None if number == self.broken else self.data[number]


def by_number() -> dict[str, Any]:
    data = Numbered(towers_batches(4, 3, 2, 1, 5))
    one = kept(mf.prune(two_towers(), "snip", SPARSITIES, data, adapter=ADAPTER))
    steps = Numbered(towers_batches(4, 3, 2, 1, 5))
    many = kept(mf.prune(two_towers(), "itersnip", [0.75], steps, adapter=ADAPTER, **SHORT))
    return {"once": one, "in steps": many, "made": data.made, "made in steps": steps.made}


def broken() -> dict[str, Any]:
    sizes = (4, 3, 2, 1)
    stats = mf.calibrate(two_towers(), Numbered(towers_batches(*sizes), broken=1), adapter=ADAPTER)
    gradients = mf.prune(two_towers(), "snip", 0.5, Numbered(towers_batches(*sizes), broken=1), adapter=ADAPTER)
    rows = Numbered(towers_batches(*sizes), broken=1)
    chita = mf.prune(two_towers(), "chita", 0.5, rows, adapter=ADAPTER, batches_per_step=4)
    learned = mf.prune(two_towers(), "tamt", 0.5, Numbered(towers_batches(4, 4), broken=1), adapter=FAINT, **TRAINING)
    found = {"norms": dict(stats["input_norm"]), "gradients": dict(gradients.stats["gradient"])}
    return found | {"rows": kept(chita), "learned": kept(learned)}


def from_generators() -> dict[str, Tensor]:
    return kept(mf.prune(two_towers(), "snip", SPARSITIES, iter(towers_batches()), adapter=ADAPTER))


def statistics() -> dict[str, Any]:
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER)
    return {"batches": stats.batches, "counts": dict(stats.counts["input_norm"]), "norms": dict(stats["input_norm"])}


def report() -> list[Any]:
    said: list[Any] = []
    mf.prune(
        two_towers(), "wanda", 0.5, towers_batches(4, 3, 2), adapter=ADAPTER, progress=lambda *args: said.append(args)
    )
    return [step for step in said if step[0] == "calibrate"]


def with_other(name: str) -> None:
    mine = parallel.rank()
    options: dict[str, Any] = {
        "method": ("snip", "wanda")[mine if name == "method" else 0],
        "sparsity": (0.5, 0.75)[mine if name == "sparsity" else 0],
        "seed": mine if name == "seed" else 0,
        "batches": towers_batches(*(2,) * (3 + (mine if name == "batches" else 0))),
    }
    mf.prune(two_towers(mine if name == "weights" else 0), adapter=ADAPTER, **options)


def with_hyper() -> None:
    mf.prune(two_towers(), "ria", 0.5, towers_batches(), adapter=ADAPTER, alpha=0.25 + parallel.rank())


def with_nan(method: str) -> None:
    data = towers_batches(4, 4, 4)
    data[1]["pixels"][0, 0, 0] = torch.nan
    mf.prune(two_towers(), method, 0.5, data, adapter=ADAPTER)


def with_bug(method: str) -> None:
    """Fail in the forward of BLIP in one process, while the other waits for its features."""
    model, data = golden_data.model("blip"), golden_data.batches("blip")[:4]
    if parallel.rank() == 1:
        model.vision_model.register_forward_pre_hook(lambda *_: 1 / 0)
    mf.prune(model, method, 0.5, data)


def with_more_batches() -> None:
    data = iter(towers_batches(*(2,) * (3 + parallel.rank())))
    mf.prune(two_towers(), "wanda", 0.5, data, adapter=ADAPTER)


def with_unknown_method() -> None:
    mf.prune(two_towers(), "wandaa" if parallel.rank() else "wanda", 0.5, towers_batches(), adapter=ADAPTER)


def without_batches() -> None:
    mf.prune(two_towers(), "wanda", 0.5, [], adapter=ADAPTER)


def until_stable() -> None:
    mf.prune(two_towers(), "wanda", 0.5, towers_batches(), adapter=ADAPTER, until_stable=0.99)


def padding_alone() -> None:
    """Nothing but padding in all texts, of which a process without a batch knows nothing."""
    batch = towers_batches(4)[0]
    mf.prune(two_towers(), "wanda", 0.5, [batch | {"mask": torch.zeros_like(batch["mask"])}], adapter=ADAPTER)


def primitives() -> dict[str, Any]:
    mine = parallel.rank()
    whole, part = torch.full((3, 2), 1.0 + mine), torch.arange(6.0).view(2, 3).T
    parallel.sum_over_ranks_([whole, part])
    rows = [torch.full((mine, 2), 5.0), torch.full((1 + mine, 2), float(mine)), torch.zeros(0, 2)]
    return {
        "place": (mine, parallel.world()),
        "exchange": parallel.exchange("place", mine),
        "sums": [whole, part.contiguous()],
        "rows": [parallel.gather_rows(of) for of in rows],
    }


def out_of_step() -> None:
    with parallel.together():
        parallel.exchange(("here", "there")[parallel.rank()])


def nested() -> None:
    with parallel.together(), parallel.together():
        if parallel.rank() == 1:
            try:
                raise mf.MultiflowError("the inner one is wrong")
            except mf.MultiflowError as error:
                raise mf.MultiflowError(f"{error} indeed") from error


CASES: dict[str, Callable[..., Any]] = {
    **{case: lambda plan=plan: prune_golden(*plan) for case, plan in PRUNED.items()},
    **{case: lambda plan=plan: prune_blip(*plan) for case, plan in GROUPED.items()},
    **{
        f"other {name}": lambda name=name: with_other(name)
        for name in ("method", "sparsity", "seed", "weights", "batches")
    },
    **{f"NaN, {method}": lambda method=method: with_nan(method) for method in ("wanda", "snip", "tamt")},
    **{f"bug, {method}": lambda method=method: with_bug(method) for method in ("snip", "multiflow")},
    "learned": learn,
    "learned from one batch": learn_from_one,
    "by number": by_number,
    "broken": broken,
    "generators": from_generators,
    "statistics": statistics,
    "progress": report,
    "other hyper": with_hyper,
    "more batches": with_more_batches,
    "unknown method": with_unknown_method,
    "no batches": without_batches,
    "until stable": until_stable,
    "padding": padding_alone,
    "primitives": primitives,
    "out of step": out_of_step,
    "nested": nested,
}
IN_FOLDERS: dict[str, Callable[[Path], Any]] = {
    "goes on": go_on,
    "goes on with queues": go_on_with_blip,
    "goes on in steps": go_on_in_steps,
    "keeps a file": keep_a_file,
}


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    found: dict[str, Any] = {}
    for name, case in (CASES | IN_FOLDERS).items():
        own = [folder / name.replace(" ", "-")] if name in IN_FOLDERS else []
        for path in own:
            path.mkdir(exist_ok=True)
        parallel.exchange("next", name)
        try:
            found[name] = case(*own)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"found-{parallel.rank()}.pt")
    dist.destroy_process_group()
