from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

import multiflow as mf
from multiflow.methods.chita import BLOCK, chita
from multiflow.pruning.stages import select_lowest
from tests.small import ADAPTER, chain, every, towers_batches, two_towers

SAMPLES, RIDGE = 2.0, 1e-2


def problem(*shapes, rows=6, seed=0):
    """Weights, and as many rows of gradients."""
    generator = torch.Generator().manual_seed(seed)
    weights = {str(i): torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    return weights, {n: torch.randn(rows, w.numel(), generator=generator) for n, w in weights.items()}


def solve(weights, rows, count, **options):
    options = {"batch_samples": SAMPLES, "ridge": RIDGE} | options
    return chita(weights, count, select_lowest, gradient_rows=rows, **options)


def objective(rows, w0, w, ridge=RIDGE):
    rows, away = rows.double(), (w - w0).double()
    linear = (rows.sum(0) / SAMPLES) @ w.double()
    return float((rows @ away).square().sum() / 2 + linear + len(rows) * ridge / 2 * away.square().sum())


def best_on(support, rows, w0, ridge=RIDGE):
    """The weights of least Q on a support, by a dense system as large as the support."""
    rows, w0 = rows.double(), w0.double()
    own, ridge = rows[:, support], len(rows) * ridge
    right = own.T @ (rows @ w0) + ridge * w0[support] - own.sum(0) / SAMPLES
    solved = torch.zeros_like(w0)
    solved[support] = torch.linalg.solve(own.T @ own + ridge * torch.eye(own.shape[1]).double(), right)
    return solved


@pytest.mark.parametrize("ridge", [1e-2, 1e-5])
@pytest.mark.parametrize("seed", range(12))
def test_comes_close_to_the_best_of_all_supports(seed, ridge):
    """Twelve weights of which seven go: all 792 supports, each with the best weights that it can have."""
    weights, rows = problem((3, 4), rows=20, seed=seed)
    masks, solved = solve(weights, rows, 7, ridge=ridge)
    a, w0 = rows["0"], weights["0"].flatten()
    lowest = {s: objective(a, w0, best_on(list(s), a, w0, ridge), ridge) for s in combinations(range(12), 5)}
    floor = objective(a, w0, best_on(list(range(12)), a, w0, ridge), ridge)  # of dense weights
    reached, ranked = objective(a, w0, solved["0"].flatten(), ridge), sorted(lowest.values())
    support = tuple(masks["0"].flatten().nonzero().flatten().tolist())
    assert reached == pytest.approx(lowest[support], rel=1e-4, abs=1e-4)
    assert reached - floor <= 4 * (ranked[0] - floor)
    assert reached < ranked[len(ranked) // 4]


@pytest.mark.parametrize(("seed", "rows"), [(0, 3), (4, 6)])
def test_leaves_the_support_of_magnitude_where_that_pays(seed, rows):
    weights, rows = problem((3, 4), rows=rows, seed=seed)
    a, w0 = rows["0"], weights["0"].flatten()
    large = w0.abs().topk(5).indices
    reached = objective(a, w0, solve(weights, rows, 7)[1]["0"].flatten())
    assert reached < objective(a, w0, best_on(large, a, w0))


@pytest.mark.parametrize("sizes", [[(30, 40)], [(30, 40), (7, 9), (50, 11)]])
@pytest.mark.parametrize("share", [0.3, 0.63, 0.9])
def test_every_block_has_the_best_weights_on_its_support(sizes, share):
    weights, rows = problem(*sizes)
    count = round(share * sum(weight.numel() for weight in weights.values()))
    masks, solved = solve(weights, rows, count)
    assert sum(int((~mask).sum()) for mask in masks.values()) == count
    for name, weight in weights.items():
        kept = masks[name].flatten()
        expected = best_on(kept, rows[name], weight.flatten())
        torch.testing.assert_close(solved[name].flatten().double(), expected, rtol=1e-3, atol=1e-4)
        assert not solved[name][~masks[name]].any()


def test_a_large_layer_is_cut_into_even_blocks_that_are_solved_apart():
    weights, rows = problem((123, 201), rows=4)  # 24,723 weights: two blocks, the first of 12,362
    assert weights["0"].numel() // BLOCK == 2
    masks, solved = solve(weights, rows, 15_000)
    assert int((~masks["0"]).sum()) == 15_000
    kept, w0, w = masks["0"].flatten(), weights["0"].flatten(), solved["0"].flatten()
    for block in (slice(0, 12_362), slice(12_362, None)):
        a = rows["0"][:, block]
        own = kept[block].nonzero().flatten()
        small = a.double()[:, own]
        ridge = 4 * RIDGE
        right = small.T @ (a.double() @ w0[block].double()) + ridge * w0[block][own] - small.sum(0) / SAMPLES
        left = small.T @ (small @ w[block][own].double()) + ridge * w[block][own]
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


def test_nothing_to_drop_leaves_the_weights_alone():
    weights, rows = problem((3, 4), (2, 2))
    masks, solved = solve(weights, rows, 0)
    assert all(bool(mask.all()) for mask in masks.values())
    assert all(torch.equal(solved[name], weight) for name, weight in weights.items())


def test_everything_to_drop_leaves_zeros():
    weights, rows = problem((3, 4), (2, 2))
    masks, solved = solve(weights, rows, 16)
    assert not any(bool(mask.any()) for mask in masks.values())
    assert not any(bool(weight.any()) for weight in solved.values())


@pytest.mark.parametrize("count", [1, 5, 13])
def test_ties_go_by_position(count):
    weights = {"0": torch.full((3, 4), 0.5), "1": torch.full((2, 3), -0.5)}
    masks, solved = solve(weights, {n: torch.zeros(2, w.numel()) for n, w in weights.items()}, count)
    both = torch.cat([mask.flatten() for mask in masks.values()])
    assert both.tolist() == [False] * count + [True] * (18 - count)
    assert all(torch.equal(solved[name], weight * masks[name]) for name, weight in weights.items())


def test_rows_that_say_nothing_make_it_magnitude_pruning():
    weights, rows = problem((6, 8), rows=3)
    masks, solved = solve(weights, {"0": rows["0"] * 0}, 24)
    border = weights["0"].abs().flatten().sort().values[23]
    assert torch.equal(masks["0"], weights["0"].abs() > border)
    torch.testing.assert_close(solved["0"], weights["0"] * masks["0"])


def test_more_rows_than_weights():
    weights, rows = problem((2, 3), rows=40)
    masks, solved = solve(weights, rows, 3)
    kept = masks["0"].flatten()
    expected = best_on(kept, rows["0"], weights["0"].flatten())
    torch.testing.assert_close(solved["0"].flatten().double(), expected, rtol=1e-4, atol=1e-5)


def test_the_given_tensors_are_left_alone():
    weights, rows = problem((30, 40), (5, 5))
    before = [{name: tensor.clone() for name, tensor in of.items()} for of in (weights, rows)]
    for count in (0, 500):
        solve(weights, rows, count)
        for now, then in zip((weights, rows), before, strict=True):
            assert all(torch.equal(now[name], tensor) for name, tensor in then.items())


@pytest.mark.parametrize("ridge", [0.0, -1e-5])
def test_a_ridge_that_makes_no_system(ridge):
    with pytest.raises(mf.MultiflowError, match=f"ridge={ridge} was given; expected a number above 0"):
        prune("chita", ridge=ridge)


def prune(method, sparsity=0.5, model=None, batches=None, **options):
    return mf.prune(model or two_towers(), method, sparsity, batches or towers_batches(), adapter=ADAPTER, **options)


@pytest.mark.parametrize("method", ["chita", "chita++"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_come_in_the_precision_of_the_model(method, dtype):
    model, batches = two_towers().to(dtype), [b | {"pixels": b["pixels"].to(dtype)} for b in towers_batches()]
    steps = {"steps": 1 if method == "chita" else 2, "batches_per_step": 2}
    result = prune(method, model=model, batches=batches, **steps)
    assert {weight.dtype for weight in result.weights[0.5].values()} == {dtype}
    result.apply_(model, 0.5)
    for name, weight in result.weights[0.5].items():
        assert torch.equal(model.get_submodule(name).weight, weight)
    single = prune(method, **steps)
    same = [float((single.masks[0.5][name] == mask).float().mean()) for name, mask in result.masks[0.5].items()]
    assert min(same) > (0.99 if dtype == torch.float64 else 0.9)


def test_rows_are_the_gradients_of_single_batches_and_samples_their_mean_size():
    seen = {}

    def spy(weights, count, select, *, gradient_rows, batch_samples, ridge=1e-5):
        """Look."""
        seen.update(rows=gradient_rows, samples=batch_samples, count=count, ridge=ridge)
        return chita(weights, count, select, gradient_rows=gradient_rows, batch_samples=batch_samples, ridge=ridge)

    mf.solver("spy")(spy)
    model, batches = two_towers(), towers_batches(4, 4, 3, 1)
    result = prune("spy", 0.63, model, ridge=0.5)
    assert (seen["samples"], seen["count"], seen["ridge"]) == (3.0, round(0.63 * result.masks[0.63].layout.size), 0.5)
    for row, batch in enumerate(batches):
        weights = [model.get_submodule(name).weight for name in seen["rows"]]
        gradients = torch.autograd.grad(ADAPTER.loss(model, batch), weights)
        for name, gradient in zip(seen["rows"], gradients, strict=True):
            torch.testing.assert_close(seen["rows"][name][row], gradient.flatten())


def test_plus_plus_goes_on_from_the_weights_of_the_step_before_and_nothing_comes_back():
    steps = []

    def spy(weights, count, select, *, gradient_rows, batch_samples, ridge=1e-5):
        """Look."""
        rows = {name: of.clone() for name, of in gradient_rows.items()}
        found = chita(weights, count, select, gradient_rows=rows, batch_samples=batch_samples, ridge=ridge)
        steps.append((dict(weights), rows, *found))
        return found

    mf.solver("spy", steps=3)(spy)
    result = prune("spy", 0.75, batches_per_step=2)
    assert len(steps) == 3
    for (_, _, masks, solved), (weights, rows, later, _) in pairwise(steps):
        for name, mask in masks.items():
            assert torch.equal(weights[name], solved[name])
            assert not rows[name][:, ~mask.flatten()].any()
            assert not (later[name] & ~mask).any()
    assert all(torch.equal(steps[-1][3][name], weight) for name, weight in result.weights[0.75].items())


def test_a_gradient_that_is_not_finite_is_told():
    model = chain(4, 4)
    adapter = every(model, loss=lambda m, x: (m(x) * 0).square().sum().sqrt())  # 0, with a gradient of 0 / 0
    with pytest.raises(mf.MultiflowError, match="NaN"):
        mf.prune(model, "chita", 0.5, [torch.ones(2, 4)], adapter=adapter)


def test_weights_of_sparsity_zero_are_no_part_of_the_model():
    model = two_towers()
    result = prune("chita", [0.0, 0.5], model)
    before = {name: weight.clone() for name, weight in result.weights[0.0].items()}
    result.apply_(model, 0.5)
    assert all(torch.equal(result.weights[0.0][name], weight) for name, weight in before.items())
