from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.masks.keep import BY_THEMSELVES, CHUNK, buffer_places
from tests.small import ADAPTER, chain, every, towers_batches, two_towers

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


def step(model, optimizer):
    optimizer.zero_grad()
    ADAPTER.loss(model, towers_batches(4)[0]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("given", [True, False])
def test_zeros_stay_and_the_rest_trains(name, given):
    model = two_towers()
    masks = mf.prune(model, "magnitude-modality", 0.5, adapter=ADAPTER).masks[0.5]
    optimizer = OPTIMIZERS[name](model.parameters())
    with mf.keep_sparse(model, masks, optimizer if given else None):
        before = {layer: model.get_submodule(layer).weight.detach().clone() for layer in masks}
        for _ in range(5):
            step(model, optimizer)
            for layer, mask in masks.items():
                assert not model.get_submodule(layer).weight[~mask].any()
    for layer, mask in masks.items():
        assert (model.get_submodule(layer).weight != before[layer])[mask].float().mean() > 0.9
        for state in optimizer.state[model.get_submodule(layer).weight].values():
            if state.shape == mask.shape:
                assert not state[~mask].any()


def test_momentum_from_before_does_not_revive_weights():
    model = two_towers()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step(model, optimizer)
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks, optimizer):
        step(model, optimizer)
        assert all(not model.get_submodule(layer).weight[~mask].any() for layer, mask in masks.items())


def test_hooks_are_gone_afterwards_even_after_an_error():
    model = two_towers()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    with pytest.raises(RuntimeError), mf.keep_sparse(model, masks, optimizer):
        raise RuntimeError
    step(model, optimizer)
    assert all(model.get_submodule(layer).weight[~mask].any() for layer, mask in masks.items())


def test_a_wrapped_optimizer_by_whatever_depth():
    model = two_towers()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step(model, optimizer)  # momentum that would revive dropped weights
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))
    with mf.keep_sparse(model, masks, wrapped):
        step(model, optimizer)
        assert all(not model.get_submodule(layer).weight[~mask].any() for layer, mask in masks.items())


def test_what_is_no_optimizer_is_told_before_the_model_is_touched():
    model = two_towers()
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    before = model.text_out.weight.clone()
    with (
        pytest.raises(mf.MultiflowError, match="optimizer is a str; expected .*Optimizer"),
        mf.keep_sparse(model, masks, "sgd"),
    ):
        pass
    assert torch.equal(model.text_out.weight, before)


def test_a_model_that_accelerate_prepares_inside_the_block():
    from accelerate import Accelerator

    model = two_towers()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    accelerator = Accelerator(cpu=True)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    with mf.keep_sparse(model, masks, wrapped):
        for _ in range(2):
            wrapped.zero_grad()
            accelerator.backward(ADAPTER.loss(prepared, towers_batches(4)[0]))
            wrapped.step()
            assert all(not model.get_submodule(layer).weight[~mask].any() for layer, mask in masks.items())


@pytest.mark.parametrize("value", [1.0, -0.0, float("nan")])
def test_a_revived_weight_is_found_with_its_layer_and_count(value):
    model = two_towers()
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks) as check:
        check()
        name = "vision.0"
        row, column = (~masks[name]).nonzero()[0].tolist()
        with torch.no_grad():
            model.get_submodule(name).weight[row, column] = value
        with pytest.raises(
            mf.MultiflowError, match=f"1 of the {masks.dropped(name):,} dropped weights of layer '{name}'"
        ):
            check()
    assert model.get_submodule(name).weight[row, column] == 0


def test_copies_in_buffers_are_zeroed_and_checked():
    model = two_towers()
    copy = torch.nn.Linear(16, 24, bias=False)
    copy.register_buffer("weight", copy._parameters.pop("weight").detach())
    model.slow = copy
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    places = {"vision.0": ("vision.0", "slow"), "text.0": ("text.0",)}
    assert buffer_places(model, masks, places) == {"vision.0": ("slow",)}
    with mf.keep_sparse(model, masks, copies=buffer_places(model, masks, places)) as check:
        assert not copy.weight[~masks["vision.0"]].any()
        copy.weight.mul_(0.5).add_(model.vision[0].weight.detach(), alpha=0.5)
        check()
        copy.weight += 1
        with pytest.raises(mf.MultiflowError, match="dropped weights of layer 'slow'"):
            check()


def test_an_average_of_the_weights_has_the_same_zeros():
    model = two_towers()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks, optimizer) as check:
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        for _ in range(3):
            step(model, optimizer)
            average.update_parameters(model)
        check()
    for layer, mask in masks.items():
        weight = average.module.get_submodule(layer).weight
        assert not weight[~mask].any()
        assert not torch.equal(weight, model.get_submodule(layer).weight)


def test_a_model_that_torch_compiled():
    model = two_towers()
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(torch.compile(model, backend="eager"), masks) as check:
        check()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_that_moves_to_another_device_inside_the_block():
    model = two_towers()
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks):
        model.cuda()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        batch = {name: value.cuda() for name, value in towers_batches(4)[0].items()}
        ADAPTER.loss(model, batch).backward()
        optimizer.step()
    assert all(not model.get_submodule(layer).weight.cpu()[~mask].any() for layer, mask in masks.items())


def test_weights_of_many_chunks_whatever_their_layout():
    model = torch.nn.Sequential(torch.nn.Linear(1000, 701))
    masks = mf.prune(model, "random", 0.7, adapter=mf.Adapter(groups={"all": "0"})).masks[0.7]
    weight, mask = model[0].weight, masks["0"]
    assert mask.numel() > 2 * CHUNK
    with mf.keep_sparse(model, masks) as check:
        gradient = torch.randn(1000, 701).t()  # rows do not lie behind each other
        weight.backward(gradient)
        assert torch.equal(weight.grad, gradient * mask)
        check()
        with torch.no_grad():
            weight.add_(1.0)
    assert not weight[~mask].any()
    assert weight[mask].all()


@pytest.mark.parametrize("kind", sorted(BY_THEMSELVES, key=lambda kind: kind.__name__))
def test_no_optimizer_that_steps_weights_by_themselves_revives_one(kind):
    model = two_towers()
    optimizer = kind(model.parameters(), lr=0.01, **({"weight_decay": 0.1} if kind is not torch.optim.Rprop else {}))
    for _ in range(2):  # what it holds from before
        step(model, optimizer)
    held = copy.deepcopy(optimizer.state_dict())
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks, optimizer) as check:
        for _ in range(3):
            step(model, optimizer)
            check()
        optimizer.load_state_dict(held)
        for _ in range(3):
            step(model, optimizer)
            check()
    weight, mask = next((model.get_submodule(layer).weight, mask) for layer, mask in masks.items())
    states = [x for x in optimizer.state[weight].values() if x.shape == mask.shape]
    assert states or kind is torch.optim.SGD
    if kind not in (torch.optim.Adamax, torch.optim.Rprop):  # they hold an eps and a step size, which move no zero
        assert not any(x[~mask].any() for x in states)


class Mixing(torch.optim.SGD):
    """Moves each weight by what its neighbours' gradients are too."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(p.grad.mean())


def test_an_optimizer_that_mixes_weights_revives_none_either():
    model = two_towers()
    optimizer = Mixing(model.parameters(), lr=0.1)
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks, optimizer) as check:
        for _ in range(3):
            step(model, optimizer)
            check()


def alive(model, masks):
    return sum(int(model.get_submodule(layer).weight[~mask].count_nonzero()) for layer, mask in masks.items())


@pytest.mark.parametrize("given", [True, False])
def test_a_weight_that_is_frozen_at_first_and_trains_later(given):
    model = two_towers()
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    weight = model.text[0].weight.requires_grad_(False)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with mf.keep_sparse(model, masks, optimizer if given else None) as check:
        assert not weight.requires_grad
        for _ in range(2):
            step(model, optimizer)
        weight.requires_grad_(True)
        before = weight.detach().clone()
        for _ in range(2):
            step(model, optimizer)
            assert not weight.grad[~masks["text.0"]].any()  # the norm that clips never saw them
            check()
        assert not torch.equal(weight, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_that_are_written_by_hand(name):
    model = two_towers()
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    optimizer, weights = OPTIMIZERS[name](model.parameters()), list(model.parameters())
    with mf.keep_sparse(model, masks, optimizer) as check:
        for _ in range(3):
            gradients = torch.autograd.grad(ADAPTER.loss(model, towers_batches(4)[0]), weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            check()


@pytest.mark.parametrize("part", ["", "text", "text.0"])
def test_a_state_that_the_model_loads_inside_the_block_is_zeroed_at_once(part):
    model = two_towers()
    dense = copy.deepcopy(model.get_submodule(part).state_dict())
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with mf.keep_sparse(model, masks, optimizer) as check:
        step(model, optimizer)
        model.get_submodule(part).load_state_dict(dense)
        check()
        assert torch.equal(model.text[0].weight, torch.where(masks["text.0"], dense_of(dense, part), 0.0))
        step(model, optimizer)
        check()
    model.get_submodule(part).load_state_dict(dense)
    assert alive(model, masks)


def dense_of(state, part):
    return state["text.0.weight".removeprefix(part).removeprefix(".")]


def test_a_model_can_be_copied_and_pickled_inside_the_block():
    model = two_towers()
    dense = copy.deepcopy(model.state_dict())
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks):
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            twin.load_state_dict(dense)
            assert alive(twin, masks)
        assert not alive(model, masks)


def dense_state(model):
    return {name: torch.ones_like(value) for name, value in model.state_dict().items()}


def assign(model):
    model.load_state_dict(dense_state(model), assign=True)


def replace_parameters(model):
    for layer in ("text.0", "vision.2", "text_out"):
        module = model.get_submodule(layer)
        module.weight = torch.nn.Parameter(torch.ones_like(module.weight))


def put_parameters(model):
    """As libraries do that move models: without the module's own ``__setattr__``."""
    for layer in ("text.0", "vision.2"):
        module = model.get_submodule(layer)
        module._parameters["weight"] = torch.nn.Parameter(torch.ones_like(module.weight))


@torch.no_grad()
def write_by_hand(model):
    for parameter in model.parameters():
        parameter.copy_(torch.ones_like(parameter))


def point_elsewhere(model):
    for parameter in model.parameters():
        parameter.data = torch.ones_like(parameter)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("change", [assign, replace_parameters, put_parameters, write_by_hand, point_elsewhere])
def test_the_place_in_the_model_counts_and_not_the_tensor(change, given):
    model = two_towers()
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with mf.keep_sparse(model, masks, optimizer if given else None) as check:
        for _ in range(2):
            step(model, optimizer)
        change(model)
        revived = alive(model, masks)
        if revived:  # what nobody could notice yet
            with pytest.raises(mf.MultiflowError, match="dropped weights of layer"):
                check()
        if not given or change in (assign, replace_parameters, put_parameters):
            optimizer.param_groups[0]["params"] = list(model.parameters())
            optimizer.state.clear()
        for _ in range(2):
            step(model, optimizer)
        check()
        assert model.text[0].weight[masks["text.0"]].all()
    assert not alive(model, masks)


def test_writes_that_leave_no_trace_are_found_one_layer_after_the_other():
    model = two_towers()
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with mf.keep_sparse(model, masks, optimizer) as check:
        step(model, optimizer)
        for parameter in model.parameters():
            parameter.data.copy_(torch.ones_like(parameter))
        assert alive(model, masks)
        for _ in range(len(masks)):
            step(model, optimizer)
        check()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_optimizers_that_step_inside_the_backward_pass(first, given):
    model = two_towers()
    optimizers = {weight: OPTIMIZERS["sgd"]([weight]) for weight in model.parameters()}
    for _ in range(2):  # momentum that would revive weights
        ADAPTER.loss(model, towers_batches(4)[0]).backward()
        for optimizer in optimizers.values():
            optimizer.step()
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]

    def now(weight):
        optimizers[weight].step()
        weight.grad = None

    def register():
        for weight in model.parameters():
            weight.register_post_accumulate_grad_hook(now)

    if first:
        register()
    with mf.keep_sparse(model, masks, optimizers[model.text_out.weight] if given else None) as check:
        if not first:
            register()
        before = model.text[0].weight.detach().clone()
        for _ in range(3):
            ADAPTER.loss(model, towers_batches(4)[0]).backward()
            if first:
                check()
        assert not torch.equal(model.text[0].weight, before)
        if not first:  # what the last step has done shows with the next gradient
            for optimizer in optimizers.values():
                optimizer.param_groups[0].update(lr=0.0)
            ADAPTER.loss(model, towers_batches(4)[0]).backward()
            ADAPTER.loss(model, towers_batches(4)[0]).backward()
            check()
    assert not alive(model, masks)


def test_a_second_backward_through_the_same_graph():
    model = two_towers()
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with mf.keep_sparse(model, masks) as check:
        for _ in range(2):
            loss = ADAPTER.loss(model, towers_batches(4)[0])
            loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()
        check()


def test_a_layer_that_another_module_replaced_is_told():
    model = two_towers()
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks) as check:
        model.text[0] = torch.nn.Linear(16, 24)
        with pytest.raises(mf.MultiflowError, match="layer 'text.0' holds no weight of shape .* any more"):
            check()


def test_nothing_is_left_behind_for_models_made_later():
    model, other = two_towers(), two_towers(seed=1)
    masks = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    with mf.keep_sparse(model, masks):
        other.text[0].weight = torch.nn.Parameter(torch.ones(24, 16))
        assert other.text[0].weight.all()
    replace_parameters(model)
    assert alive(model, masks)


def test_a_layer_that_was_replaced_is_said_at_the_end(recwarn):
    model = chain(4, 4, 4)
    masks = mf.prune(model, "magnitude", 0.5, adapter=every(model)).masks[0.5]
    with mf.keep_sparse(model, masks):
        model[1] = nn.Linear(4, 4, bias=False)
    assert "layer '1' holds no weight of shape (4, 4) any more" in str(recwarn.pop(UserWarning).message)


def test_tensors_may_be_swapped():
    model = chain(8, 8)
    masks = mf.prune(model, "magnitude", 0.5, adapter=every(model)).masks[0.5]
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    with mf.keep_sparse(model, masks, optimizer) as check:
        for step in range(3):
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.randn(8, 8)))
        check()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax"])
def test_what_an_optimizer_holds_for_dropped_weights_is_seen_as_zero_and_the_rest_moves_as_ever(name):
    """Inside the block squares are 1 where weights are dropped, for the sake of speed; nothing comes of it."""
    runs = []
    for looked_at in (False, True):
        model = two_towers()
        masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
        optimizer = getattr(torch.optim, name)(model.parameters(), 0.01, weight_decay=0.1)
        with mf.keep_sparse(model, masks, optimizer) as check:
            for _ in range(6):
                step(model, optimizer)
                check()
                if looked_at:  # as a checkpoint does
                    saved = copy.deepcopy(optimizer.state_dict())
                    assert_zero(saved["state"].values(), masks)
        assert_zero(optimizer.state.values(), masks)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    plain = two_towers()  # the same steps by hand: masks after every step
    masks.apply_(plain)
    optimizer = getattr(torch.optim, name)(plain.parameters(), 0.01, weight_decay=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        ADAPTER.loss(plain, towers_batches(4)[0]).backward()
        for layer, mask in masks.items():
            plain.get_submodule(layer).weight.grad.masked_fill_(~mask, 0.0)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        masks.apply_(plain)
    for key, value in plain.state_dict().items():
        assert torch.equal(runs[0][key], value), key


def assert_zero(states, masks):
    shapes = {tuple(mask.shape): [] for mask in masks.values()}
    for mask in masks.values():
        shapes[tuple(mask.shape)].append(mask)
    seen = 0
    for state in states:
        for value in state.values():
            if isinstance(value, torch.Tensor) and tuple(value.shape) in shapes:
                assert any(not value[~mask].any() for mask in shapes[tuple(value.shape)])
                seen += 1
    assert seen >= len(masks)


def test_squares_that_fade_are_filled_anew():
    model = two_towers()
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    optimizer = torch.optim.AdamW(model.parameters(), 0.001, betas=(0.5, 0.5))
    with mf.keep_sparse(model, masks, optimizer):
        for _ in range(200):  # 0.5 ** 200 is no number of float32 any more
            step(model, optimizer)
        for name, mask in masks.items():
            squares = optimizer.state[model.get_submodule(name).weight]["exp_avg_sq"]
            assert squares[~mask].min() > 1e-30
