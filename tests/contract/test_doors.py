"""All doors refuse the same models with the same sentences, and touch nothing."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import multiflow as mf
from multiflow.base.guards import exclusively, naming_shortages
from tests import golden_data
from tests.processes import LIMIT
from tests.small import ADAPTER, QUICK, chain, every, towers_batches, two_towers

Door = Callable[[nn.Module, mf.Masks], object]


def keep(model: nn.Module, masks: mf.Masks) -> None:
    with mf.keep_sparse(model, masks):
        pass


def never() -> object:
    raise AssertionError("a batch was asked for")
    yield


def result_of(masks: mf.Masks) -> mf.Result:
    return mf.Result({0.5: masks}, None, None, None, {}, {})


DOORS: dict[str, Door] = {
    "prune": lambda model, masks: mf.prune(model, "magnitude", 0.5),
    "prune with data": lambda model, masks: mf.prune(model, "snip", 0.5, never()),
    "calibrate": lambda model, masks: mf.calibrate(model, never()),
    "apply_": lambda model, masks: masks.apply_(model),
    "keep_sparse": keep,
    "export": lambda model, masks: mf.export(model, masks, "never-written"),
    "export without masks": lambda model, masks: mf.export(model, None, "never-written"),
    "export as a folder without masks": lambda model, masks: mf.export(model, None, "never-written", format="folder"),
    "compact": lambda model, masks: mf.compact(model, masks),
    "sparse_runtime": lambda model, masks: mf.sparse_runtime(model, masks),
    "speed": lambda model, masks: mf.speed(model, masks, seconds=0.01),
    "speed without masks": lambda model, masks: mf.speed(model, seconds=0.01),
    "compare_pruners": lambda model, masks: mf.compare_pruners(model, ["magnitude"], 0.5, never()),
    "search": lambda model, masks: mf.prune(model, "magnitude-layer", 0.5, never(), allocation="search"),
    "prune_units": lambda model, masks: mf.prune_units(model, "magnitude", 0.5),
    "estimate": lambda model, masks: mf.estimate(model, "sparsegpt", 0.5),
    "KeepSparse": lambda model, masks: mf.KeepSparse(masks).on_train_begin(None, None, None, model=model),
    "is_applied": lambda model, masks: masks.is_applied(model),
    "apply_ of a result": lambda model, masks: result_of(masks).apply_(model, 0.5),
    "recover": lambda model, masks: mf.recover(model, masks, batches=never()),
    "task_model": lambda model, masks: mf.task_model(model, "retrieval", image_size=24),
    "task_model with masks": lambda model, masks: mf.task_model(model, "retrieval", masks, image_size=24),
}


class Packed(Tensor):
    """What torchao does: another number type inside, float32 to whoever asks."""


class LoRALinear(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.lora_A = nn.Parameter(torch.zeros(2, sizes[0]))


class QuantLinear(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(sizes, dtype=torch.int32))


class Linear8bitLt(nn.Linear):
    pass


def weight_as(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Linear], nn.Module]:
    def make(layer: nn.Linear) -> nn.Module:
        layer.weight = nn.Parameter(change(layer.weight.detach()), requires_grad=False)
        return layer

    return make


def offloaded(layer: nn.Linear) -> nn.Module:
    from accelerate import cpu_offload

    cpu_offload(layer, execution_device=torch.device("cpu"))
    return layer


def in_inference_mode(layer: nn.Linear) -> nn.Module:
    with torch.inference_mode():
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    return layer


def pruned_by_torch(layer: nn.Linear) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def expanded(layer: nn.Linear) -> nn.Module:
    layer.weight = nn.Parameter(torch.ones(1, layer.in_features).expand(layer.out_features, -1))
    return layer


class OnMps(nn.Parameter):
    device = torch.device("mps")


def on_mps(layer: nn.Linear) -> nn.Module:
    layer.weight = OnMps(layer.weight.detach())
    return layer


def over_its_bias(layer: nn.Linear) -> nn.Module:
    layer.bias = nn.Parameter(layer.weight.data[:, 0])
    return layer


UNFIT: dict[str, tuple[Callable[[nn.Linear], nn.Module], str]] = {
    "meta": (lambda layer: layer.to("meta"), "on the meta device, without values"),
    "int8": (weight_as(lambda weight: weight.to(torch.int8)), "weights of torch.int8"),
    "float8": (weight_as(lambda weight: weight.to(torch.float8_e4m3fn)), "weights of torch.float8"),
    "complex": (weight_as(lambda weight: weight.to(torch.complex64)), "weights of torch.complex64"),
    "sparse": (weight_as(lambda weight: weight.to_sparse_csr()), "weight of layout torch.sparse_csr"),
    "torchao": (weight_as(lambda weight: weight.as_subclass(Packed)), "a weight of type Packed, quantised or packed"),
    "torch.ao": (lambda layer: torch.ao.nn.quantized.dynamic.Linear(*layer.weight.shape[::-1]), "quantised weights"),
    "gptq": (lambda layer: QuantLinear(*layer.weight.shape[::-1]), "a QuantLinear with quantised weights"),
    "bitsandbytes": (lambda layer: Linear8bitLt(*layer.weight.shape[::-1]), "a Linear8bitLt with quantised weights"),
    "weight_norm": (parametrizations.weight_norm, "computes its weight from other tensors"),
    "old weight_norm": (torch.nn.utils.weight_norm, "computes its weight from other tensors"),
    "torch's pruning": (pruned_by_torch, "computes its weight from other tensors"),
    "lazy": (lambda layer: nn.LazyLinear(layer.out_features), "without a shape yet"),
    "loralib": (lambda layer: LoRALinear(*layer.weight.shape[::-1]), r"holds 'lora_A' \(2, \d+\) beside its weight"),
    "expanded": (expanded, "is expanded: several of its entries are one number in memory"),
    "in one memory": (over_its_bias, "are two parameters in the same memory"),
    "mps": (on_mps, "on device 'mps', which has no float64; work on the CPU"),
    "inference": (in_inference_mode, "inside torch.inference_mode"),
}


@pytest.fixture(scope="module")
def masks() -> mf.Masks:
    return mf.prune(golden_data.model("xvlm"), "magnitude", 0.5).masks[0.5]


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*[Ss]parse:UserWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:torch.quantize:UserWarning")
def test_all_doors_refuse_the_same_with_the_same_sentence(kind, masks):
    make, said = UNFIT[kind]
    model = golden_data.model("xvlm")
    name = next(name for name in masks if "text" in name)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, make(model.get_submodule(name)))
    before = {key: id(value) for key, value in model.named_parameters()}
    sentences = set()
    for door, enter in DOORS.items():
        with pytest.raises(mf.MultiflowError, match=said) as raised:
            enter(model, masks)
            pytest.fail(f"{door} let it in")
        sentences.add(str(raised.value))
    assert len(sentences) == 1
    assert name in sentences.pop()
    assert {key: id(value) for key, value in model.named_parameters()} == before
    assert not Path("never-written").exists()


def test_views_of_one_memory_that_do_not_meet_are_fine():
    together = torch.randn(8, 6)
    model = chain(3, 8, 8)
    model[0].weight, model[1].weight = nn.Parameter(together[:, :3]), nn.Parameter(torch.randn(9, 8)[1:])
    model.other = nn.Parameter(together[:, 3:])
    mf.prune(model, "magnitude", 0.5, adapter=every(model)).apply_(model, 0.5)
    assert together[:, 3:].all()


@pytest.mark.parametrize("model", ["xvlm-shapes", None, {}])
def test_what_is_no_model_is_refused_by_all_doors(model, masks):
    for door, enter in DOORS.items():
        with pytest.raises(mf.MultiflowError, match=f"model is a {type(model).__name__}; expected an nn.Module"):
            enter(model, masks)
            pytest.fail(f"{door} let it in")


def test_what_is_left_dense_is_left_dense_with_all_its_parts():
    model = chain(4, 4, 4)
    parametrizations.weight_norm(model[0])
    assert list(every(model, exclude=r"^0$").layout(model)) == ["1"]


def test_factors_that_peft_adds_are_never_pruned():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), LoraConfig(target_modules=["0"], r=2))
    adapter = mf.Adapter(groups={"all": "."})
    assert list(adapter.layout(model)) == ["base_model.model.0.base_layer", "base_model.model.1"]
    with pytest.raises(mf.MultiflowError, match=r"lora_A.default' is a factor that an adapter .* adds to a layer"):
        mf.prune(model, "magnitude", 0.5, adapter=mf.Adapter(groups={"all": "lora"}))
    result = mf.prune(model, "wanda", 0.5, [torch.randn(3, 8)], adapter=adapter)
    result.apply_(model, 0.5)
    assert all(weight.count_nonzero() == weight.numel() for n, weight in model.named_parameters() if "lora_A" in n)


def test_factors_are_told_by_their_names_where_no_library_says_so():
    model = nn.ModuleDict({"layer": nn.Linear(4, 4), "lora_A": nn.Linear(4, 2), "lora_B": nn.Linear(2, 4)})
    assert list(mf.Adapter(groups={"all": "."}).layout(nn.ModuleDict({"x": model}))) == ["x.layer"]


# one at a time


@pytest.mark.parametrize("method", ["itersnip", "tamt", "snip", "chita++"])
def test_two_threads_with_one_model_get_the_masks_of_one(method):
    model, batches = two_towers(), towers_batches()
    model.head.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    alone = mf.prune(model, method, 0.5, batches, adapter=ADAPTER, **QUICK.get(method, {})).masks[0.5]
    found: list[mf.Masks | BaseException] = []

    def work() -> None:
        try:
            found.append(mf.prune(model, method, 0.5, batches, adapter=ADAPTER, **QUICK.get(method, {})).masks[0.5])
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert found == [alone] * 3
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


def test_masks_applied_while_another_thread_prunes_are_applied_afterwards():
    model = two_towers()
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    begun, go_on, found = threading.Event(), threading.Event(), []

    def batches():
        begun.set()
        assert go_on.wait(10)
        yield from towers_batches()

    def work() -> None:
        found.append(mf.prune(model, "snip", 0.5, batches(), adapter=ADAPTER))

    pruning, applying = threading.Thread(target=work), threading.Thread(target=lambda: masks.apply_(model))
    pruning.start()
    assert begun.wait(10)
    applying.start()
    assert not masks.is_applied(model)
    go_on.set()
    for thread in (pruning, applying):
        thread.join(LIMIT)
    assert masks.is_applied(model)
    assert found[0].masks[0.5] == mf.prune(two_towers(), "snip", 0.5, towers_batches(), adapter=ADAPTER).masks[0.5]


def test_models_that_share_weights_wait_and_others_do_not():
    inner, other = chain(4, 4), chain(4, 4)
    entered, leave = threading.Event(), threading.Event()
    order = []

    @exclusively("a test")
    def hold(model):
        order.append("first")
        entered.set()
        assert leave.wait(LIMIT)
        exclusively("itself")(lambda model: order.append("again"))(model)

    @exclusively("a test")
    def enter(model, name):
        order.append(name)

    thread = threading.Thread(target=hold, args=(inner,), daemon=True)
    thread.start()
    assert entered.wait(LIMIT)
    waiting = threading.Thread(target=enter, args=(nn.Sequential(inner), "shares"), daemon=True)
    waiting.start()
    enter(other, "other")
    leave.set()
    for one in (thread, waiting):
        one.join(LIMIT)
    assert order == ["first", "other", "again", "shares"]


def test_what_is_no_model_and_memory_that_runs_out_are_sentences():
    with pytest.raises(mf.MultiflowError, match="model is a str; expected an nn.Module"):
        mf.prune("model", "magnitude", 0.5)

    def forward(model, batch):
        return torch.empty(1 << 60)

    with pytest.raises(mf.MultiflowError, match="calibration ran out of memory .* smaller batches"):
        mf.calibrate(two_towers(), towers_batches(), adapter=mf.Adapter(groups={"text": "text"}, forward=forward))
    for error in (
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ):
        with (
            pytest.raises(mf.MultiflowError, match="^multiflow apply ran out of memory"),
            naming_shortages("multiflow apply"),
        ):
            raise error
    with pytest.raises(RuntimeError, match="another"), naming_shortages("it"):
        raise RuntimeError("another")


# compiled models


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = chain(8, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("how", ["torch.compile", "m.compile"])
def test_a_compiled_model_that_ran_before_counts_every_token(how):
    model, batches = Branch(), [torch.randn(8, 8)] * 5 + [torch.randn(3, 8)]
    plain = mf.calibrate(model, batches, adapter=every(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "torch.compile":
            compiled = torch.compile(model, backend="eager")
        else:
            model.compile(backend="eager")
            compiled = model
        with torch.no_grad():
            for batch in batches:
                compiled(batch)
    adapter = mf.Adapter(groups={"all": "layers"}, loss=lambda m, b: m(b).square().mean())
    stats = mf.calibrate(compiled, batches, adapter=adapter)
    assert list(stats.counts["input_norm"].values()) == [43, 43] == list(plain.counts["input_norm"].values())
    for found, name in zip(stats["input_norm"].values(), plain["input_norm"], strict=True):
        assert torch.equal(found, plain["input_norm"][name])
    for method in ("snip", "itersnip", "tamt"):
        one = mf.prune(compiled, method, 0.5, batches, adapter=adapter, **QUICK.get(method, {})).masks[0.5]
        other = mf.prune(twin_of(model), method, 0.5, batches, adapter=adapter, **QUICK.get(method, {})).masks[0.5]
        assert [mask.tolist() for mask in one.values()] == [mask.tolist() for mask in other.values()]
    with torch.no_grad():
        assert torch.equal(compiled(batches[0]), model(batches[0]))


def test_layers_of_a_compiled_model_have_the_names_that_they_had_before():
    model, batches = Branch(), [torch.randn(8, 8)]
    compiled = torch.compile(model, backend="eager")
    adapter = every(model)
    masks = mf.prune(compiled, "wanda", 0.5, batches, adapter=adapter).masks[0.5]
    assert masks == mf.prune(model, "wanda", 0.5, batches, adapter=adapter).masks[0.5]
    assert not masks.is_applied(compiled)
    recovered = mf.recover(compiled, masks, batches=batches * 3, adapter=adapter, how="scale")
    assert not masks.is_applied(model)
    recovered.apply_(compiled, 0.5)
    assert masks.is_applied(model)
    assert masks.is_applied(compiled)
    with mf.keep_sparse(compiled, masks):
        pass


def twin_of(model: nn.Module) -> nn.Module:
    twin = Branch()
    twin.load_state_dict(model.state_dict())
    return twin


def test_an_offloaded_weight_is_read_and_by_no_door_written(masks):
    model = golden_data.model("xvlm")
    name = next(name for name in masks if "text" in name)
    offloaded(model.get_submodule(name))
    assert mf.prune(model, "magnitude", 0.5).masks[0.5] == masks
    for door in ("apply_", "keep_sparse", "task_model", "task_model with masks"):
        with pytest.raises(mf.MultiflowError, match=f"'{name}' is on the meta device, without values"):
            DOORS[door](model, masks)
    with pytest.raises(mf.MultiflowError, match=f"'snip' needs all weights in memory.*'{name}'"):
        DOORS["prune with data"](model, masks)


def test_an_offloaded_model_that_computes_on_mps_is_refused(masks):
    model = golden_data.model("xvlm")
    name = next(name for name in masks if "text" in name)
    layer = model.get_submodule(name)
    offloaded(layer)
    for hook in layer._hf_hook.hooks:
        hook.execution_device = torch.device("mps")
    for door in ("prune", "calibrate"):
        with pytest.raises(mf.MultiflowError, match=f"'{name}' is on device 'mps'"):
            DOORS[door](model, masks)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_what_runs_inside_a_transform_of_torch_func_cannot_be_measured(method):
    model = chain(4, 4)
    adapter = every(model, forward=lambda model, batch: torch.vmap(model)(batch))
    with pytest.raises(mf.MultiflowError, match="layer '0' runs inside a transform of torch.func"):
        mf.prune(model, method, 0.5, [torch.randn(3, 2, 4)], adapter=adapter)
