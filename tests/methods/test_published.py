"""SparseGPT, ALPS and Boza's ADMM against their golden data and their formulas written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import multiflow as mf
from multiflow.base.types import NofM, PerRow, Unstructured
from multiflow.methods.admm import admm, done_at
from multiflow.methods.alps import alps
from multiflow.methods.dsnot import dsnot, trade
from multiflow.methods.exchange import exchange
from multiflow.methods.sparsegpt import sparsegpt
from multiflow.methods.wanda import wanda
from tests.methods.test_refit import dropping, error, problem
from tests.small import ADAPTER, chain, every, towers_batches, two_towers

GOLDEN = Path(__file__).parents[1] / "golden" / "layers"
TENSORS = load_file(GOLDEN / "layers.safetensors")
ERRORS = json.loads((GOLDEN / "errors.json").read_text())
LAYERS = ("0", "3")
MOST = {"50": 0.80, "75": 0.87, "90": 0.92, "2:4": 1.0}
"""Largest error of exchange, over that of ALPS as published."""


def golden(layer, level):
    weight, moment = TENSORS[f"{layer}.weight"], TENSORS[f"{layer}.moment"]
    pattern = NofM(2, 4) if level == "2:4" else Unstructured()
    return weight, moment, dropping(ERRORS[f"{layer}.alps.{level}"][1], pattern)


def relative(weight, other, moment):
    return error(weight, other, moment) / error(weight, torch.zeros_like(weight), moment)


@pytest.mark.parametrize("level", ["50", "90", "2:4"])
@pytest.mark.parametrize("layer", LAYERS)
def test_sparsegpt_against_the_published_code(layer, level):
    weight, moment, choose = golden(layer, level)
    mask, found = sparsegpt(weight, choose, input_moment=moment)
    theirs = TENSORS[f"{layer}.sparsegpt.{level}"]
    both = mask & (theirs != 0)
    assert int((~mask).sum()) == ERRORS[f"{layer}.alps.{level}"][1]
    assert float((mask == (theirs != 0)).float().mean()) >= 0.995
    assert float((found - theirs)[both].norm() / theirs[both].norm()) <= 0.02
    assert relative(weight, found, moment) == pytest.approx(ERRORS[f"{layer}.sparsegpt.{level}"][0], rel=0.02)


@pytest.mark.parametrize("level", MOST)
@pytest.mark.parametrize("layer", LAYERS)
def test_alps_and_exchange_against_the_published_alps(layer, level):
    weight, moment, choose = golden(layer, level)
    theirs, count = ERRORS[f"{layer}.alps.{level}"]
    for method, most in ((alps, 1.03), (exchange, MOST[level])):
        mask, found = method(weight, choose, input_moment=moment)
        assert int((~mask).sum()) == count
        assert relative(weight, found, moment) <= most * theirs
    assert relative(weight, exchange(weight, choose, input_moment=moment, panels=0)[1], moment) <= 1.03 * theirs


def slow_sparsegpt(weight, moment, counts, block, ridge=1e-2):
    """Column by column, with explicit inverses of what is left; counts: weights dropped after each block."""
    moment = moment.double() + ridge * moment.double().diagonal().mean() * torch.eye(len(moment))
    upper = torch.linalg.cholesky(torch.linalg.inv(moment)).mT
    upper = torch.linalg.cholesky(torch.linalg.inv(moment), upper=True)
    found, mask = weight.double().clone(), torch.ones_like(weight, dtype=torch.bool)
    for b, count in enumerate(counts):
        columns = range(b * block, min((b + 1) * block, weight.shape[1]))
        scores = [(float(found[i, j] ** 2 / upper[j, j] ** 2), i, j) for i in range(len(weight)) for j in columns]
        for _, i, j in sorted(scores)[:count]:
            mask[i, j] = False
        for j in columns:
            inverse = torch.linalg.inv(moment[j:, j:])
            for i in range(len(weight)):
                if not mask[i, j]:
                    found[i, j:] -= found[i, j].clone() / inverse[0, 0] * inverse[0]
    return mask, found.masked_fill(~mask, 0.0)


def test_sparsegpt_by_hand():
    weight, moment = problem(5, 24)
    mask, found = sparsegpt(weight.double(), dropping(75), input_moment=moment.double(), block=8)
    expected, solved = slow_sparsegpt(weight, moment, [25, 25, 25], 8)
    assert torch.equal(mask, expected)
    torch.testing.assert_close(found, solved, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", [sparsegpt, alps, admm, exchange])
@pytest.mark.parametrize("pattern", [Unstructured(), PerRow(), NofM(2, 4), NofM(4, 32)])
def test_patterns_and_counts(method, pattern):
    weight, moment = problem(6, 160)
    count = {Unstructured: 701, PerRow: 6 * 123, NofM: 960 // 2 if str(pattern) == "2:4" else 960 // 8 * 7}[
        type(pattern)
    ]
    mask, found = method(weight, dropping(count, pattern), input_moment=moment)
    if isinstance(pattern, NofM):
        assert set(mask.reshape(-1, pattern.of).sum(1).tolist()) == {pattern.keep}
    else:
        assert int((~mask).sum()) == count
        assert isinstance(pattern, Unstructured) or set(mask.sum(1).tolist()) == {37}
    assert found.isfinite().all()
    assert not found[~mask].any()


@pytest.mark.parametrize("method", [sparsegpt, alps, admm, exchange])
def test_bad_moments(method):
    weight, moment = problem()
    zero = torch.zeros_like(moment)
    mask, found = method(weight, dropping(40), input_moment=zero)
    assert found.isfinite().all()
    assert int((~mask).sum()) == 40
    moment = torch.eye(12) + 3 * (torch.ones(12, 12) - torch.eye(12))
    with pytest.raises(mf.MultiflowError, match="layer 'tower.fc1' has no inverse at ridge .*raise ridge"):
        method(weight, dropping(40), input_moment=moment)


def test_admm_by_hand():
    weight, moment = problem(5, 16)
    mask, found = admm(weight.double(), dropping(60), input_moment=moment.double())
    damped = moment.double() + 0.1 * moment.double().diagonal().mean() * torch.eye(16)
    scale = damped.diagonal().sqrt()
    gram = damped / scale / scale[:, None]
    dense = weight.double() * scale
    inverse, v, u = torch.linalg.inv(gram + torch.eye(16)), dense, torch.zeros(5, 16).double()
    for t in range(20):
        if t < 15:
            gone = round(80 * (0.75 - 0.75 * (1 - (t + 1) / 15) ** 3))
            kept = (v + u).abs().flatten().argsort()[gone:]
            expected = torch.zeros(80, dtype=torch.bool)
            expected[kept] = True
            expected = expected.view(5, 16)
        z = (v + u) * expected
        u = u + v - z
        v = (dense @ gram + z - u) @ inverse
    assert torch.equal(mask, expected)
    torch.testing.assert_close(found, z / scale)


def test_the_gradual_share_is_the_cubic_one():
    for time in (1 / 15, 0.5, 14 / 15):
        assert 1 - (1 - 0.9) ** done_at(0.9, time) == pytest.approx(0.9 - 0.9 * (1 - time) ** 3)
    assert done_at(0.9, 1.0) == done_at(0.0, 0.5) == 1.0


# DSnoT


def column_statistics(columns=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(400, columns, generator=generator) + torch.randn(columns, generator=generator)
    return tokens.square().mean(0).sqrt(), tokens.mean(0)


@pytest.mark.parametrize("seed", range(5))
def test_dsnot_by_hand(seed):
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(seed))
    norm, mean = column_statistics(seed=seed)
    choose = dropping(6 * 12, PerRow())
    mask, found = dsnot(weight, choose, input_norm=norm, input_mean=mean)
    first = choose(wanda(weight, input_norm=norm))
    for i in range(6):
        kept = set(first[i].nonzero().flatten().tolist())
        for _ in range(50):
            out = set(range(24)) - kept
            e = sum(float(weight[i, j] * mean[j]) for j in out)
            sign = 1 if e > 0 else -1
            into = max(out, key=lambda j: sign * float(weight[i, j] * mean[j] / (norm[j] ** 2 - mean[j] ** 2)))
            able = [j for j in kept if sign * float(weight[i, j] * mean[j]) < 0]
            if not able or abs(e) <= 0.1 / 2048:
                break
            gone = min(able, key=lambda j: float(weight[i, j].abs() * norm[j]))
            if abs(e - float(weight[i, into] * mean[into]) + float(weight[i, gone] * mean[gone])) >= abs(e):
                break
            kept = kept - {gone} | {into}
        assert set(mask[i].nonzero().flatten().tolist()) == kept
    assert torch.equal(found, weight * mask)
    before, after = ((weight * ~m @ mean).abs() for m in (first, mask))
    assert bool((after <= before).all())
    assert float(after.sum()) < 0.5 * float(before.sum())


def test_dsnot_keeps_groups():
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    norm, mean = column_statistics()
    mask, _ = dsnot(weight, dropping(0, NofM(2, 4)), input_norm=norm, input_mean=mean)
    assert set(mask.view(-1, 4).sum(1).tolist()) == {2}
    assert not torch.equal(mask, dropping(0, NofM(2, 4))(wanda(weight, input_norm=norm)))
    same = mask.clone()
    trade(mask, weight, weight.abs(), norm, torch.zeros(24), 50, 0.0)
    assert torch.equal(mask, same)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"rounds": -1}, "rounds -1"), ({"tolerance": -0.1}, "tolerance -0.1"), ({"start": "ria"}, "unknown start 'ria'")],
)
def test_dsnot_refuses_what_says_nothing(given, said):
    model = chain(8, 8)
    with pytest.raises(mf.MultiflowError, match=said):
        mf.prune(model, "dsnot", 0.5, [torch.randn(9, 8)], adapter=every(model), **given)


def test_dsnot_measures_the_mean_of_the_inputs_in_the_pass_of_the_norms():
    model = chain(8, 6, 4)
    batches = [torch.randn(5, 8) + 1 for _ in range(3)]
    stats = mf.calibrate(model, batches, adapter=every(model), statistics=["input_norm", "input_mean"])
    x = torch.cat(batches)
    torch.testing.assert_close(stats["input_mean"]["0"], x.mean(0))
    torch.testing.assert_close(stats["input_mean"]["1"], model[0](x).mean(0).detach())
    result = mf.prune(model, "dsnot", 0.5, stats, adapter=every(model))
    assert set(result.masks[0.5]["0"].sum(1).tolist()) == {4}
    drop = {name: model.get_submodule(name).weight.detach() * ~mask for name, mask in result.masks[0.5].items()}
    first = mf.prune(model, "wanda", 0.5, stats, adapter=every(model)).masks[0.5]
    before = {name: model.get_submodule(name).weight.detach() * ~mask for name, mask in first.items()}
    for name in drop:
        after, start = ((of[name] @ stats["input_mean"][name]).abs() for of in (drop, before))
        assert bool((after <= start + 1e-6).all())


def test_padding_is_left_out_of_the_mean():
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=["input_mean"])
    model, tokens = two_towers(), []
    for batch in towers_batches():
        tokens.append(model.embed(batch["ids"])[batch["mask"].bool()])
    torch.testing.assert_close(stats["input_mean"]["text.0"], torch.cat(tokens).mean(0).detach())
