"""What pruners keep of the dense score over all models and tasks, and how far their differences may be luck."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations

import numpy as np

from multiflow.bench.records import DENSE, Cell
from multiflow.report.bench.bootstrap import Difference, Each, common_seeds, ends, item_means, over_seeds
from multiflow.report.bench.values import Entry, Overall, Place


def each_of(cells: Iterable[Cell]) -> Each:
    """Return the figures of the test items, seed by seed, of cells that have them."""
    return {cell.seed: np.asarray(cell.each, float) for cell in cells if len(cell.each)}


def best_of(means: Mapping[str, float], found: Mapping[tuple[str, str], Difference]) -> str:
    """Return the pruner that is ahead of most others on the seeds they share; where that ties, the highest mean.

    With the same seeds everywhere it is the highest mean. A mean over fewer seeds does not win by luck of the seed.
    """

    def ahead(name: str) -> tuple[int, float]:
        return sum(found[name, b].value > 0 for b in means if (name, b) in found), means[name]

    return max(means, key=ahead)


def compare_overall(
    entries: Mapping[tuple[Place, str], Entry], pruners: Sequence[str]
) -> tuple[dict[tuple[float, str], Overall], dict[tuple[float, str, str], Difference]]:
    """Return the share of the dense score at each sparsity, and the differences of every two pruners, both ways round.

    A share is the mean over seeds relative to the dense mean over the same seeds, the mean of that over the models and
    tasks that have the sparsity. Two pruners are compared on the seeds that both and the dense baseline have
    everywhere. Test items and seeds are drawn as for one place; the dense scores are taken as they are.
    """
    shares: dict[tuple[float, str], Overall] = {}
    found: dict[tuple[float, str, str], Difference] = {}
    places = list(dict.fromkeys(place for place, _ in entries if place.sparsity))
    for sparsity in sorted({place.sparsity for place in places}):
        here = [place for place in places if place.sparsity == sparsity]
        if all((place.dense, DENSE) in entries for place in here):
            dense = [each_of(entries[place.dense, DENSE].cells) for place in here]
            names = [name for name in pruners if name != DENSE and all((place, name) in entries for place in here)]
            own = {name: [each_of(entries[place, name].cells) for place in here] for name in names}
            made, pairs = _compare(sparsity, own, dense)
            shares |= {(sparsity, name): one for name, one in made.items()}
            found |= {(sparsity, a, b): difference for (a, b), difference in pairs.items()}
    return shares, found


def _compare(
    sparsity: float, own: Mapping[str, Sequence[Each]], dense: Sequence[Each]
) -> tuple[dict[str, Overall], dict[tuple[str, str], Difference]]:
    """The shares of one sparsity; ``own`` and ``dense`` hold the figures of the items, place by place."""
    seeds = {name: _seeds(each, dense) for name, each in own.items()}
    seeds = {name: these for name, these in seeds.items() if these and min(_means(dense, these)) > 0}

    @cache
    def drawn(name: str, seeds: tuple[int, ...]) -> tuple[float, np.ndarray]:
        whole = _means(dense, seeds)
        share = np.mean([mean / of for mean, of in zip(_means(own[name], seeds), whole, strict=True)])
        draws = [over_seeds(item_means({s: each[s] for s in seeds}), seeds) for each in own[name]]
        return 100 * float(share), 100 * np.mean([d / of for d, of in zip(draws, whole, strict=True)], axis=0)

    pairs = {}
    for a, b in combinations(seeds, 2):
        if both := tuple(seed for seed in seeds[a] if seed in seeds[b]):
            (share_a, draws_a), (share_b, draws_b) = drawn(a, both), drawn(b, both)
            pairs[a, b] = Difference(round(share_a - share_b, 9), *ends(draws_a - draws_b), both)
    pairs |= {(b, a): -difference for (a, b), difference in pairs.items()}
    shares = {name: drawn(name, these)[0] for name, these in seeds.items()}
    best = best_of(shares, pairs) if shares else ""
    made = {
        name: Overall(
            *(sparsity, name, share, *ends(drawn(name, seeds[name])[1]), seeds[name], len(dense)),
            to_best=pairs.get((name, best)),
            best=name == best,
        )
        for name, share in shares.items()
    }
    return made, pairs


def _seeds(each: Sequence[Each], dense: Sequence[Each]) -> tuple[int, ...]:
    """The seeds that a pruner and the dense baseline have at every place."""
    common = [set(common_seeds(own, whole)) for own, whole in zip(each, dense, strict=True)]
    return tuple(sorted(set.intersection(*common)))


def _means(each: Sequence[Each], seeds: tuple[int, ...]) -> list[float]:
    return [float(np.mean([figures[seed].mean() for seed in seeds])) for figures in each]
