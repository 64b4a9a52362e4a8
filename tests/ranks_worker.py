"""What `test_ranks` runs in each of two processes: ``python -m tests.ranks_worker RANK WORLD PORT FOLDER``.

Every case returns what it found; all results of a process go to one file. A case that ends with an error leaves its
sentence, and the cases after it show that the processes are still in step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # now: imported inside a group, its default arguments keep that group and its threads
from torch import Tensor, nn

import multiflow as mf
from multiflow import ranks
from tests import golden_data
from tests.small import ADAPTER, towers_batches, two_towers

SPARSITIES = [0.63, 0.75, 0.9]
STEPS = {"steps": 3, "batches_per_step": 2}
SHORT = {"steps": 2, "batches_per_step": 3}
TRAINING = {"steps": 4, "lr": 0.3}


def faint(adapter: mf.Adapter, factor: float = 1e-6) -> mf.Adapter:
    """Make gradients so small that AdamW's steps are no longer all alike, and no scores are tied."""
    return replace(adapter, loss=lambda model, batch: adapter.loss(model, batch) * factor)


FAINT = faint(ADAPTER)

PRUNED: dict[str, tuple[str, str, int, dict[str, Any]]] = {  # case -> model, method, batches, settings
    "forward": ("xvlm", "wanda", 4, {}),
    "forward, odd": ("xvlm", "multiflow", 5, {}),
    "gradient": ("xvlm", "snip", 4, {}),
    "gradient, odd": ("dino", "snip", 5, {}),
    "gradient, one batch": ("dino", "snip", 1, {}),
    "in steps": ("xvlm", "itersnip", 6, STEPS),
    "in steps, odd": ("dino", "itersnip", 5, SHORT),
    "rows": ("xvlm", "chita", 5, {"batches_per_step": 5}),
    "rows, in steps": ("dino", "chita++", 4, SHORT),
    "data-free": ("xvlm", "lamp", 0, {}),
}
GROUPED: dict[str, tuple[str, int, dict[str, Any]]] = {  # case -> method, batches of BLIP, settings
    "queue": ("snip", 4, {}),
    "queue, odd": ("snip", 5, {}),
    "queue, in steps": ("itersnip", 6, {"steps": 2, "batches_per_step": 4}),
    "queue, in steps, odd": ("itersnip", 5, SHORT),
    "queue, learned": ("tamt", 4, {"steps": 2, "lr": 0.1}),
}


def kept(result: mf.Result) -> dict[str, Tensor]:
    """Masks and changed weights of a result, by sparsity and layer."""
    found = {f"mask/{s}/{name}": mask for s, masks in result.masks.items() for name, mask in masks.items()}
    for s, weights in (result.weights or {}).items():
        found |= {f"weight/{s}/{name}": weight for name, weight in weights.items()}
    return found


def prune_golden(family: str, method: str, count: int, settings: dict[str, Any]) -> dict[str, Tensor]:
    data = golden_data.batches(family)[:count] if count else None
    return kept(mf.prune(golden_data.model(family), method, SPARSITIES, data, **settings))


def blip_batches(count: int) -> list[dict[str, Any]]:
    """Batches of BLIP, the fourth with another one as its region part."""
    found: list[dict[str, Any]] = golden_data.batches("blip")[:count]
    return [batch | ({"region": found[0]} if number == 3 else {}) for number, batch in enumerate(found)]


def prune_blip(method: str, count: int, settings: dict[str, Any]) -> dict[str, Tensor]:
    model = golden_data.model("blip")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = faint(mf.adapter_for(model), 1e-5) if method == "tamt" else None
    found = kept(mf.prune(model, method, SPARSITIES, blip_batches(count), adapter=adapter, **settings))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return found


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


class Killed(Exception):
    pass


def killed(data: list[Any], count: int) -> Iterator[Any]:
    yield from data[:count]
    raise Killed


def go_on(folder: Path) -> dict[str, Any]:
    """Kill a calibration after 6 of 9 batches, then lose the file of one process on the way as well."""
    data, place = towers_batches(*range(1, 10)), mf.Checkpoint(folder / "stats.safetensors", every=3)

    def calibrate(batches: Any) -> mf.Stats:
        return mf.calibrate(two_towers(), batches, adapter=ADAPTER, checkpoint=place)

    whole = mf.calibrate(two_towers(), data, adapter=ADAPTER)
    found: dict[str, Any] = {"whole": dict(whole["input_norm"])}
    for case in ("killed", "one file lost"):
        try:
            calibrate(killed(data, 6))
        except (Killed, mf.MultiflowError) as error:
            found["error"] = type(error).__name__
        found["files"] = sorted(path.name for path in folder.iterdir())
        ranks.exchange("look")
        if case == "one file lost" and ranks.rank() == 1:
            (folder / "stats-rank1.safetensors").unlink()
        found[case] = dict(calibrate(data)["input_norm"])
        ranks.exchange("look")
    found["left"] = sorted(path.name for path in folder.iterdir())
    return found


def go_on_with_blip(folder: Path) -> dict[str, Any]:
    """Kill BLIP, whose queues and momentum copies a checkpoint holds too; then lose the file of one process as well."""
    data, place = blip_batches(5), mf.Checkpoint(folder / "stats.safetensors", every=2)

    def measure(batches: Any, checkpoint: mf.Checkpoint | None = place) -> dict[str, Tensor]:
        model = golden_data.model("blip")
        stats = mf.calibrate(model, batches, statistics=["gradient"], checkpoint=checkpoint)
        return dict(stats["gradient"])

    found: dict[str, Any] = {"whole": measure(data, None)}
    for case in ("killed", "one file lost"):
        with suppress(Killed, mf.MultiflowError):
            measure(killed(data, 3))
        found["files"] = sorted(path.name for path in folder.iterdir())
        ranks.exchange("look")
        if case == "one file lost" and ranks.rank() == 0:
            (folder / "stats.safetensors").unlink()
        found[case] = measure(data)
        ranks.exchange("look")
    return found


def go_on_in_steps(folder: Path) -> dict[str, Any]:
    """Kill methods that work in steps; keep one file to be resumed by a single process."""
    data, found = towers_batches(4, 3, 2, 1, 5), {}
    for method, settings in (("itersnip", SHORT), ("tamt", TRAINING)):
        place = mf.Checkpoint(folder / f"{method}.safetensors", every=1)

        def prune(batches: Any, of=method, using=settings, at=place) -> dict[str, Tensor]:
            return kept(mf.prune(two_towers(), of, 0.75, batches, adapter=FAINT, checkpoint=at, **using))

        for stop in (4, 2):  # the second kill comes before the second step: nothing new is saved
            with suppress(Killed, mf.MultiflowError):
                prune(killed(data, stop))
        files = sorted(path.name for path in folder.glob(f"{method}*"))
        ranks.exchange("look")
        found[method] = {"files": files, "masks": prune(data)}
        ranks.exchange("look")
    found["left"] = sorted(path.name for path in folder.iterdir())
    return found


def keep_a_file(folder: Path) -> None:
    """Leave the checkpoint of a calibration by two processes, for one that is alone."""
    place = mf.Checkpoint(folder / "stats.safetensors", every=1)
    mf.calibrate(two_towers(), killed(towers_batches(), 2), adapter=ADAPTER, checkpoint=place)


def with_other(name: str) -> None:
    mine = ranks.rank()
    options: dict[str, Any] = {
        "method": ("snip", "wanda")[mine if name == "method" else 0],
        "sparsity": (0.5, 0.75)[mine if name == "sparsity" else 0],
        "seed": mine if name == "seed" else 0,
        "batches": towers_batches(*(2,) * (3 + (mine if name == "batches" else 0))),
    }
    mf.prune(two_towers(mine if name == "weights" else 0), adapter=ADAPTER, **options)


def with_hyper() -> None:
    mf.prune(two_towers(), "ria", 0.5, towers_batches(), adapter=ADAPTER, alpha=0.25 + ranks.rank())


def with_nan(method: str) -> None:
    data = towers_batches(4, 4, 4)
    data[1]["pixels"][0, 0, 0] = torch.nan
    mf.prune(two_towers(), method, 0.5, data, adapter=ADAPTER)


def with_bug(method: str) -> None:
    """Fail in the forward of BLIP in one process, while the other waits for its features."""
    model, data = golden_data.model("blip"), golden_data.batches("blip")[:4]
    if ranks.rank() == 1:
        model.vision_model.register_forward_pre_hook(lambda *_: 1 / 0)
    mf.prune(model, method, 0.5, data)


def with_more_batches() -> None:
    data = iter(towers_batches(*(2,) * (3 + ranks.rank())))
    mf.prune(two_towers(), "wanda", 0.5, data, adapter=ADAPTER)


def with_unknown_method() -> None:
    mf.prune(two_towers(), "wandaa" if ranks.rank() else "wanda", 0.5, towers_batches(), adapter=ADAPTER)


def without_batches() -> None:
    mf.prune(two_towers(), "wanda", 0.5, [], adapter=ADAPTER)


def until_stable() -> None:
    mf.prune(two_towers(), "wanda", 0.5, towers_batches(), adapter=ADAPTER, until_stable=0.99)


def padding_alone() -> None:
    """Nothing but padding in all texts, of which a process without a batch knows nothing."""
    batch = towers_batches(4)[0]
    mf.prune(two_towers(), "wanda", 0.5, [batch | {"mask": torch.zeros_like(batch["mask"])}], adapter=ADAPTER)


def primitives() -> dict[str, Any]:
    mine = ranks.rank()
    whole, part = torch.full((3, 2), 1.0 + mine), torch.arange(6.0).view(2, 3).T
    ranks.sum_over_ranks_([whole, part])
    rows = [torch.full((mine, 2), 5.0), torch.full((1 + mine, 2), float(mine)), torch.zeros(0, 2)]
    return {
        "place": (mine, ranks.world()),
        "exchange": ranks.exchange("place", mine),
        "sums": [whole, part.contiguous()],
        "rows": [ranks.gather_rows(of) for of in rows],
    }


def out_of_step() -> None:
    with ranks.together():
        ranks.exchange(("here", "there")[ranks.rank()])


def nested() -> None:
    with ranks.together(), ranks.together():
        if ranks.rank() == 1:
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


def group_loss(size: int) -> Callable[[nn.Module, list[Any]], Tensor]:
    """The loss of one process that takes the batches of ``size`` processes as a group.

    All see the same queues and the same momentum copies, part by part; the queues then take in the features of all.
    """

    def loss(model: Any, group: list[Any]) -> Tensor:
        queues = {name: model.get_buffer(name) for name in ("image_queue", "text_queue")}
        parts = [
            [{k: v for k, v in b.items() if k != "region"}, *([b["region"]] if "region" in b else [])] for b in group
        ]
        total = torch.zeros(())
        for step in range(max(map(len, parts))):
            before = {name: value.clone() for name, value in model.named_buffers()}
            features: dict[str, list[Tensor]] = {name: [] for name in queues}
            for of in parts:
                if step >= len(of):
                    continue
                with torch.no_grad():
                    for name, value in model.named_buffers():
                        value.copy_(before[name])
                total = total + model(**of[step], alpha=0.0).loss / len(of)
                start, count = int(before["queue_ptr"]), len(of[step]["input_ids"])
                for name, queue in queues.items():
                    features[name].append(queue[:, torch.arange(start, start + count) % queue.shape[1]].clone())
            with torch.no_grad():
                for name, queue in queues.items():
                    taken = torch.cat(features[name], dim=1)
                    queue.copy_(before[name])
                    queue[:, (start + torch.arange(taken.shape[1])) % queue.shape[1]] = taken
                model.get_buffer("queue_ptr").copy_(before["queue_ptr"] + taken.shape[1]).remainder_(queue.shape[1])
        return total / size

    return loss


def prune_groups(method: str, count: int, settings: dict[str, Any], size: int = 2) -> dict[str, Tensor]:
    """Prune BLIP with one process that takes its batches in groups; groups of a step do not reach into the next."""
    model = golden_data.model("blip")
    data, each = blip_batches(count), settings.get("batches_per_step", count)
    if method == "tamt":
        each = size
    adapter = replace(mf.adapter_for(model), loss=group_loss(size))
    if method == "tamt":
        adapter = faint(adapter, 1e-5)
    positions = [at % count for at in range(each * settings.get("steps", 1))]
    steps = [positions[at : at + each] for at in range(0, len(positions), each)]
    groups = [[data[at] for at in step[i : i + size]] for step in steps for i in range(0, each, size)]
    if "batches_per_step" in settings:
        settings = settings | {"batches_per_step": len(groups) // settings["steps"]}
    return kept(mf.prune(model, method, SPARSITIES, groups, adapter=adapter, **settings))


def main(rank: int, world: int, port: str, folder: Path) -> None:
    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    found: dict[str, Any] = {}
    for name, case in (CASES | IN_FOLDERS).items():
        own = [folder / name.replace(" ", "-")] if name in IN_FOLDERS else []
        for path in own:
            path.mkdir(exist_ok=True)
        ranks.exchange("next", name)
        try:
            found[name] = case(*own)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"found-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
