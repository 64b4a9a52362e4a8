"""The sparse runtime: a copy that computes what the pruned model does, wherever, and leaves the model alone."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.base import kernels
from multiflow.formats import sparse_runtime
from multiflow.formats.sparse_linear import SparseLinear, nearest
from multiflow.formats.timing import Timing
from tests.small import ADAPTER, chain, every, towers_batches, two_towers

EXACT = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _choices_of_this_test(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measure quickly, and keep what was measured out of the user's cache."""
    place = tmp_path_factory.mktemp("choices")
    monkeypatch.setattr("multiflow.formats.runtime.TURNS", 1)
    monkeypatch.setattr("multiflow.formats.runtime.choices_file", lambda: place / "choices.json")


@pytest.fixture
def always_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no layer stay dense because that was faster: tests are about the packed ones."""
    alike = Timing((1.0,))
    monkeypatch.setattr(
        "multiflow.formats.runtime.in_turns", lambda functions, *_, **__: dict.fromkeys(functions, alike)
    )


def pruned(model: nn.Module, adapter: mf.Adapter, sparsity: float = 0.75) -> tuple[nn.Module, mf.Masks]:
    """Return the pruned model, its masks with it."""
    masks = mf.prune(model, "magnitude", sparsity=sparsity, adapter=adapter).masks[sparsity]
    zeroed = copy.deepcopy(model)
    masks.apply_(zeroed)
    return zeroed, masks


def packed(model: nn.Module) -> list[SparseLinear]:
    return [module for module in model.modules() if isinstance(module, SparseLinear)]


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_model_computes_what_it_did(values, threads):
    model = two_towers()
    zeroed, masks = pruned(model, ADAPTER)
    before = {name: p.clone() for name, p in model.named_parameters()}
    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        small = sparse_runtime(model, masks, values=values)
        with torch.inference_mode():
            for batch in towers_batches():
                near = {"fp32": EXACT, "bf16": {"rtol": 0.03, "atol": 0.03}, "int8": {"rtol": 0.1, "atol": 0.1}}
                torch.testing.assert_close(small(**batch), zeroed(**batch), **near[values])
    finally:
        torch.set_num_threads(used)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not packed(model)


def test_shared_weights_are_packed_once(always_packed):
    model = two_towers()
    _, masks = pruned(model, ADAPTER)
    small = sparse_runtime(model, masks)
    assert small.vision_out.values.data_ptr() == small.text_out.values.data_ptr()
    assert not torch.equal(small.vision_out.bias, small.text_out.bias)
    again = copy.deepcopy(small)
    assert again.vision_out.values.data_ptr() == again.text_out.values.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_of_any_form(always_packed, dtype):
    model = chain(70, 33).to(dtype)
    zeroed, masks = pruned(model, every(model))
    small = sparse_runtime(model, masks, values="bf16" if dtype == torch.bfloat16 else "fp32")
    assert len(packed(small)) == 1
    near = EXACT if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    wide = torch.randn(3, 140, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        for inputs in (
            wide[:, ::2, 0],  # every second column
            wide[:, :70].transpose(1, 2),  # columns first
            wide[0, :70, 0],  # one token without a dimension of its own
            wide[:0, :70, 0],  # none
            wide[:1, :70, :1].transpose(1, 2).expand(4, 7, 70),  # one that stands for many
        ):
            out = small(inputs)
            assert out.dtype == dtype
            torch.testing.assert_close(out, zeroed(inputs), **near)
        with pytest.raises(RuntimeError, match="70"):
            small(wide[:, :60, 0])


def test_layers_without_a_weight_left_give_the_bias(always_packed):
    model = nn.Sequential(nn.Linear(9, 5))
    masks = mf.Masks.from_tensors(every(model).layout(model), {"0": torch.zeros(5, 9, dtype=torch.bool)})
    with torch.inference_mode():
        out = sparse_runtime(model, masks)(torch.randn(3, 9))
    assert torch.equal(out, model[0].bias.expand(3, 5))


def test_gradients_go_through_the_inputs(always_packed):
    model = chain(12, 7)
    zeroed, masks = pruned(model, every(model))
    small = sparse_runtime(model, masks, values="fp32")
    mine, theirs = torch.randn(2, 12, requires_grad=True), torch.empty(0)
    theirs = mine.detach().clone().requires_grad_()
    small(mine).square().sum().backward()
    zeroed(theirs).square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_without_a_compiler_it_is_correct_and_says_that_it_is_slow(monkeypatch):
    model = two_towers()
    zeroed, masks = pruned(model, ADAPTER)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    kernels.kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"slow: there is no C\+\+ compiler"):
            small = sparse_runtime(model, masks, values="fp32")
        batch = towers_batches(4)[0]
        with torch.inference_mode():
            torch.testing.assert_close(small(**batch), zeroed(**batch), **EXACT)
        assert packed(small)
    finally:
        kernels.kernels.cache_clear()


def test_it_can_be_moved_saved_and_looked_at(always_packed):
    model = chain(30, 20)
    zeroed, masks = pruned(model, every(model))
    small = sparse_runtime(model, masks, values="int8")
    other = sparse_runtime(model, masks, values="int8")
    inputs = torch.randn(4, 30)
    with torch.inference_mode():
        before = small(inputs)
        assert "int8" in repr(small)
        torch.testing.assert_close(small[0].weight, zeroed[0].weight, rtol=0, atol=0.02)
        other.load_state_dict(small.state_dict())
        for again in (pickle.loads(pickle.dumps(small)), other, copy.deepcopy(small).double().float()):
            assert torch.equal(again(inputs), before)


@pytest.mark.parametrize(
    "door", ["prune", "prune_units", "export", "sparse_runtime", "speed", "compact", "apply_", "fits"]
)
def test_no_door_takes_the_copy_for_another_model(always_packed, door, tmp_path):
    """Its layers are not where masks look for them: the sentence says what it is, and what to give."""
    model = chain(16, 8)
    _, masks = pruned(model, every(model))
    small = sparse_runtime(model, masks)
    adapter = every(model)
    calls = {
        "prune": lambda: mf.prune(small, "magnitude", 0.5, adapter=adapter),
        "prune_units": lambda: mf.prune_units(small, "magnitude", 0.5, adapter=adapter),
        "export": lambda: mf.export(small, masks, tmp_path / "x"),
        "sparse_runtime": lambda: sparse_runtime(small, masks),
        "speed": lambda: mf.speed(small, masks, adapter=adapter, batch=torch.randn(1, 16)),
        "compact": lambda: mf.compact(small, masks, adapter=adapter),
        "apply_": lambda: masks.apply_(small),
        "fits": lambda: masks.is_applied(small),
    }
    with pytest.raises(mf.MultiflowError, match="made by mf.sparse_runtime.*give the model that it was made of"):
        calls[door]()
    assert not (tmp_path / "x").exists()


def test_a_copy_is_not_saved_as_a_folder_that_others_would_open_with_random_weights(always_packed, tiny, tmp_path):
    model = mf.load_model(tiny)
    small = sparse_runtime(model, mf.prune(model, "magnitude", 0.75).masks[0.75])
    for one in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        with pytest.raises(mf.MultiflowError, match="mf.export"):
            one.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    model.save_pretrained(tmp_path / "folder")


def test_a_dense_state_does_not_fit(always_packed):
    model = chain(16, 8)
    _, masks = pruned(model, every(model))
    small = sparse_runtime(model, masks)
    with pytest.raises(RuntimeError, match=r"'0.weight' is dense.*mf.sparse_runtime"):
        small.load_state_dict(model.state_dict())


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
def test_moved_cast_and_in_training_it_computes_the_same(always_packed, values):
    """Packed values are whole numbers to torch: a cast leaves them, and gradients reach what is not packed."""
    model = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 10), nn.Linear(10, 3))
    _, masks = pruned(model, mf.Adapter(groups={"all": "."}))
    small = sparse_runtime(model, masks, values=values)
    inputs = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth = small(inputs)
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            cast = copy.deepcopy(small).to(dtype)(inputs.to(dtype))
            assert cast.dtype == dtype
            torch.testing.assert_close(cast.float(), truth, rtol=0.03, atol=0.03)
    there = small.to("meta")
    assert {tensor.device.type for tensor in there.state_dict().values()} == {"meta"}
    trained = sparse_runtime(model, masks, values=values).train()
    trained(inputs).sum().backward()
    assert trained[0].weight.grad.abs().sum() > 0


def test_layers_whose_weights_are_looked_up(monkeypatch):
    """Chosen where that was the fastest; in copies, after a cast and with another state as well."""
    quick = lambda functions, *_, **__: {name: Timing((float(name != "look"),)) for name in functions}  # noqa: E731
    monkeypatch.setattr("multiflow.formats.runtime.in_turns", quick)
    model = chain(70, 40, 40)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.neg_()
    smalls = [sparse_runtime(one, pruned(one, every(one))[1], values="int8") for one in (model, other)]
    if kernels.kernels().level != 1:
        pytest.skip("the way for AVX2")
    small, second = smalls
    assert all(one.ways[1] == one.ways[8] == "look" for one in packed(small))
    inputs = torch.randn(3, 70, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        truth = small(inputs)
        for one in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), copy.deepcopy(small).half().float()):
            assert torch.equal(one(inputs), truth)
        assert not torch.equal(second(inputs), truth)
        second.load_state_dict(small.state_dict())
        assert torch.equal(second(inputs), truth)
        for layer in packed(small):
            layer.ways = dict.fromkeys(layer.ways, "few8")
        torch.testing.assert_close(small(inputs), truth)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_of_language_models(always_packed, beams):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    zeroed, masks = pruned(model, mf.adapter_for(model))
    small = sparse_runtime(model, masks, values="fp32")
    words = torch.tensor([[3, 4, 5], [6, 7, 8]])
    how = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        assert torch.equal(*(one.generate(words, **how) for one in (small, zeroed)))


@pytest.mark.parametrize(("asked", "said"), [("none", "torch alone"), ("plian", "'plian'; expected native, plain")])
def test_kernels_can_be_done_without(monkeypatch, asked, said):
    model = chain(16, 8)
    zeroed, masks = pruned(model, every(model))
    monkeypatch.setenv("MULTIFLOW_KERNELS", asked)
    kernels.kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match=said):
            small = sparse_runtime(model, masks, values="fp32")
        with torch.inference_mode():
            inputs = torch.randn(3, 16)
            torch.testing.assert_close(small(inputs), zeroed(inputs), **EXACT)
    finally:
        kernels.kernels.cache_clear()


def test_a_processor_without_vector_instructions_is_correct_and_said_to_be_slow(always_packed, monkeypatch):
    model = two_towers()
    zeroed, masks = pruned(model, ADAPTER)
    monkeypatch.setenv("MULTIFLOW_KERNELS", "plain")
    monkeypatch.setattr(kernels, "FLAGS", ("-O0", *(flag for flag in kernels.FLAGS if flag != "-O3")))  # seconds less
    kernels.kernels.cache_clear()
    try:
        if kernels.kernels().level:
            pytest.skip("the compiler does not know how to leave them out here")
        with pytest.warns(UserWarning, match="slow here"):
            small = sparse_runtime(model, masks, values="fp32")
        batch = towers_batches(4)[0]
        with torch.inference_mode():
            torch.testing.assert_close(small(**batch), zeroed(**batch), **EXACT)
        assert packed(small)
    except kernels.NoKernelsError as error:
        pytest.skip(str(error))
    finally:
        kernels.kernels.cache_clear()


def test_masks_that_belong_to_other_weights_are_said(always_packed):
    model, other = chain(16, 8), chain(16, 8)
    nn.init.normal_(other[0].weight, 2.0)
    _, masks = pruned(model, every(model))
    with pytest.warns(UserWarning, match="made for other weights"):
        sparse_runtime(other, masks)


def test_fewer_bytes(always_packed):
    model = chain(512, 512, 512)
    _, masks = pruned(model, every(model), 0.75)
    dense = sum(p.nbytes for p in model.parameters()) / 2  # in bfloat16
    for values, most in (("bf16", 0.33), ("int8", 0.21), ("fp32", 0.58)):
        small = sparse_runtime(model, masks, values=values)
        assert sum(t.nbytes for t in small.state_dict().values()) < most * dense


def test_generation(run, folder_of):
    model = mf.load_model(folder_of("BlipForConditionalGeneration"))
    masks = mf.prune(model, "magnitude", sparsity=0.5).masks[0.5]
    zeroed = copy.deepcopy(model)
    masks.apply_(zeroed)
    small = sparse_runtime(model, masks, values="fp32")
    pixels = torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        ours, theirs = (m.generate(pixel_values=pixels, max_new_tokens=5, do_sample=False) for m in (small, zeroed))
    assert torch.equal(ours, theirs)


def test_what_was_measured_is_remembered(monkeypatch):
    model = chain(64, 64)
    _, masks = pruned(model, every(model))
    sparse_runtime(model, masks)
    monkeypatch.setattr("multiflow.formats.runtime.in_turns", lambda *_, **__: pytest.fail("measured again"))
    sparse_runtime(model, masks)


def test_layers_stored_in_other_ways(always_packed):
    """GPT-2's layers are transposed; those of a fused attention are parts of one parameter, and stay dense."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)).eval()
    fused = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).eval()
    for model, groups, inputs in (
        (gpt2, {"text": r"\.h\."}, {"input_ids": torch.tensor([[1, 2, 3]])}),
        (fused, {"text": "."}, {"input": torch.randn(2, 3, 16)}),
    ):
        zeroed, masks = pruned(model, mf.Adapter(groups=groups))
        small = sparse_runtime(model, masks, values="fp32")
        assert packed(small)
        with torch.no_grad():
            ours, theirs = small(**inputs), zeroed(**inputs)
        torch.testing.assert_close(getattr(ours, "logits", ours), getattr(theirs, "logits", theirs), **EXACT)


@pytest.mark.parametrize("content", ["", "[]", '{"a": 5}', "\0", '{"a": ["few", "no such way", "few", "few"]}'])
def test_a_damaged_memory_of_choices_counts_as_none(content):
    from multiflow.formats import runtime

    place = runtime.choices_file()
    place.write_text(content)
    model = chain(16, 8)
    _, masks = pruned(model, every(model))
    assert sparse_runtime(model, masks)(torch.randn(2, 16)).shape == (2, 8)


def test_bad_input():
    model = chain(16, 8)
    _, masks = pruned(model, every(model))
    with pytest.raises(mf.MultiflowError, match="did you mean 'bf16'"):
        sparse_runtime(model, masks, values="bf17")
    with pytest.raises(mf.MultiflowError, match="another model"):
        sparse_runtime(chain(16, 9), masks)
    with pytest.raises(mf.MultiflowError, match="expected mf.Masks"):
        sparse_runtime(model, {"0": torch.ones(8, 16)})
    with pytest.raises(mf.MultiflowError, match="meta"):
        sparse_runtime(chain(16, 8).to("meta"), masks)


def test_numbers_of_tokens():
    assert [nearest(n) for n in (1, 2, 4, 20, 40, 100, 200, 10**6)] == [1, 1, 8, 8, 64, 64, 256, 256]


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_large_layers_outside_the_masks_have_a_short_copy_for_few_tokens(always_packed, monkeypatch, values):
    monkeypatch.setattr("multiflow.formats.runtime.LARGE", 200)
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 40), nn.Linear(40, 3))
    every_but_last = mf.Adapter(groups={"all": r"^0"})
    zeroed, masks = pruned(model, every_but_last)
    small = sparse_runtime(model, masks, values=values)
    inputs = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(small[1].weight, model[1].weight)
    assert type(small[2]) is nn.Linear
    with torch.no_grad():
        for given in (inputs[:1], inputs):
            torch.testing.assert_close(small(given), zeroed(given), rtol=0.05, atol=0.05)
        assert not torch.equal(small[1](torch.ones(1, 24)), zeroed[1](torch.ones(1, 24)))  # from the copy
        assert torch.equal(small[1](torch.ones(500, 24)), zeroed[1](torch.ones(500, 24)))
    again = copy.deepcopy(small)
    with torch.no_grad():
        assert torch.equal(again(inputs[:1]), small(inputs[:1]))


def test_autocast_decides_the_dtype_as_for_other_layers(always_packed):
    model = chain(70, 33)
    _, masks = pruned(model, every(model))
    small = sparse_runtime(model, masks)
    inputs = torch.randn(3, 70)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert small(inputs).dtype == model(inputs).dtype == torch.bfloat16


def test_computations_that_are_recorded_or_mapped(always_packed):
    """A trace that saw nothing of the kernels would give the same numbers for all inputs."""
    model = chain(12, 7)
    zeroed, masks = pruned(model, every(model))
    small = sparse_runtime(model, masks, values="fp32")
    inputs = torch.randn(3, 2, 12)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(small)(inputs), zeroed(inputs), **EXACT)
    with warnings.catch_warnings(), pytest.raises(mf.MultiflowError, match="cannot be traced"):
        warnings.simplefilter("ignore")  # torch's tracer is deprecated
        torch.jit.trace(small, inputs)
