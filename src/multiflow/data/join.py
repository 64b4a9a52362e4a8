"""Several data sets as one: those of a kind one after the other, pairs and regions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.data.dataset import AnyData, Dataset, Mixed, Pair, RegionItem


def join(sources: Sequence[AnyData]) -> AnyData:
    """Join data sets: items of one kind follow each other, pairs and regions become `Mixed`.

    Errors: MultiflowError if questions are among other kinds, or if there is nothing to join.

    >>> join([open_data("coco"), open_data("cc3m"), open_data("vg")])   # doctest: +SKIP
    Mixed(...)
    """
    parts = [p for data in sources for p in ((data.pairs, data.regions) if isinstance(data, Mixed) else (data,))]
    by_kind: dict[str, list[Dataset[Any]]] = {}
    for part in parts:
        by_kind.setdefault(part.kind, []).append(part)
    if not by_kind or ("questions" in by_kind and len(by_kind) > 1):
        raise MultiflowError(
            f"these data sets cannot be joined: {'; '.join(map(str, sources)) or 'none was given'}; "
            "expected pairs and regions, or questions alone"
        )
    joined = {kind: _one_after_the_other(listed) for kind, listed in by_kind.items()}
    return Mixed(joined["pairs"], joined["regions"]) if len(joined) > 1 else next(iter(joined.values()))


def whole_images(data: AnyData) -> AnyData:
    """Take regions as whole images with the texts of their regions as captions, for models that know no regions.

    Alone they become pairs; in `Mixed` they stay apart, so that every batch holds as many of them as before.
    """
    match data:
        case Mixed():
            return Mixed(data.pairs, _without_boxes(data.regions))
        case Dataset(kind="regions"):
            return _without_boxes(data)
    return data


def _without_boxes(data: Dataset[Any]) -> Dataset[Pair]:
    if data.kind == "pairs":
        return data
    layout = f"{data.layout}, whole images"
    return Dataset("pairs", layout, data.source, len(data), partial(_read_whole, data.read), skipped=data.skipped)


def _read_whole(read: Any, index: int) -> Pair:
    item: RegionItem = read(index)
    return Pair(item.image, tuple(text for region in item.regions for text in region.captions), item.key)


def _one_after_the_other(parts: Sequence[Dataset[Any]]) -> Dataset[Any]:
    if len(parts) == 1:
        return parts[0]
    kind, ends = parts[0].kind, np.cumsum([len(part) for part in parts])
    return Dataset(
        kind,
        " + ".join(dict.fromkeys(part.layout for part in parts)),
        " + ".join(part.source for part in parts),
        int(ends[-1]),
        partial(_read, tuple(part.read for part in parts), ends),
        texts=np.concatenate([part.texts for part in parts if part.texts is not None]) if kind == "regions" else None,
        known=partial(_read, tuple(part.known for part in parts), ends),
        skipped=tuple(skip for part in parts for skip in part.skipped),
    )


def _read(readers: tuple[Any, ...], ends: np.ndarray, index: int) -> Any:
    number = int(np.searchsorted(ends, index, "right"))
    return readers[number](index - (int(ends[number - 1]) if number else 0))
