"""2:4 on GPUs, as far as it can be seen without one: shapes, dtypes, what is packed; only the device is pretended."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS

import multiflow as mf
from multiflow.formats import semi_structured as module
from multiflow.formats.semi_structured import has_sparse_cores, semi_structured, why_not
from tests.small import chain, every


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU count as a GPU with sparse cores, here and in torch's own check; everything else is torch's."""
    monkeypatch.setattr(module, "has_sparse_cores", lambda device: True)
    monkeypatch.setattr(SparseSemiStructuredTensor, "_FORCE_CUTLASS", True)
    check = "_validate_device_dim_dtype_shape"
    monkeypatch.setattr(SparseSemiStructuredTensorCUTLASS, check, classmethod(lambda cls, tensor: None))


def pruned(model: nn.Module, pattern: str = "2:4") -> mf.Masks:
    (masks,) = mf.prune(model, "magnitude", 0.5, adapter=every(model), pattern=pattern).masks.values()
    return masks


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_layers_that_pay_are_packed_and_hold_the_same_weights(pretended):
    model = chain(64, 64, 128).bfloat16()
    masks = pruned(model)
    with pytest.warns(UserWarning, match="of 2 layers 0 cannot be semi-structured and 1 would not be faster"):
        small = semi_structured(model, masks, pays=lambda dense, packed: dense.shape[0] == 128)
    assert type(small[0].weight) is nn.Parameter
    assert isinstance(small[1].weight.data, SparseSemiStructuredTensorCUTLASS)
    assert torch.equal(small[0].weight, model[0].weight * masks["0"])
    packed = small[1].weight.data
    kept = model[1].weight[masks["1"]].view(128, 32)
    assert torch.equal(packed.packed.view(128, -1)[:, :32], kept)
    assert masks.is_applied(model) is False


def test_what_cannot_be_packed_says_why():
    weight = torch.ones(64, 64, dtype=torch.bfloat16)
    mask = torch.tensor([True, True, False, False]).repeat(64, 16)
    assert why_not(mask, weight) is None
    assert "more than two of four" in (why_not(torch.ones(64, 64, dtype=torch.bool), weight) or "")
    assert "multiples" in (why_not(mask[:63], weight[:63]) or "")
    assert "float64" in (why_not(mask, weight.double()) or "")
    assert "more than two" in (why_not(mask[:, :62], weight[:, :62]) or "")


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_layers_that_do_not_fit_stay_dense(pretended):
    model = chain(64, 64, 5).bfloat16()
    masks = pruned(model)
    with pytest.warns(UserWarning, match="of 2 layers 1 cannot"):
        small = semi_structured(model, masks, pays=lambda dense, packed: True)
    assert type(small[1].weight) is nn.Parameter
    assert torch.equal(small[1].weight, model[1].weight * masks["1"])


def test_bad_input(pretended, monkeypatch):
    model = chain(64, 64).bfloat16()
    with pytest.raises(mf.MultiflowError, match="pattern='2:4'"):
        semi_structured(model, pruned(model, "unstructured"))
    with pytest.raises(mf.MultiflowError, match="another model"):
        semi_structured(chain(64, 32).bfloat16(), pruned(model))
    monkeypatch.undo()
    with pytest.raises(mf.MultiflowError, match=r"no sparse tensor cores.*mf.sparse_runtime"):
        semi_structured(model, pruned(model))
    assert not has_sparse_cores(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_outputs_are_those_of_the_masked_model():
    model = chain(256, 512, 256).bfloat16().cuda()
    masks = pruned(model)
    small = mf.sparse_runtime(model, masks)
    masks.apply_(model)
    inputs = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    torch.testing.assert_close(small(inputs), model(inputs), rtol=0.05, atol=0.05)
