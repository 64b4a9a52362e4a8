from __future__ import annotations

import pytest
import torch

import multiflow as mf
from multiflow.tasks.retrieval.task import evaluate_retrieval
from multiflow.worlds.shapes import describe, make_scenes
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests import golden_data
from tests.families.xvlm.sizes import small_config, small_model
from tests.families.xvlm.test_vqa import WIDE, batch
from tests.small import every
from tests.tiny import SMALL

TASKS = ("retrieval", "captioning", "vqa")
tasks = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(scope="module")
def model():
    return golden_data.model("xvlm")


@pytest.fixture(scope="module")
def masks(model):
    return mf.prune(model, "magnitude-modality", 0.75).masks[0.75]


def golden_batch():
    given = golden_data.tensors("xvlm", "tasks")
    names = {"image": "pixel_values", "question_ids": "input_ids", "question_atts": "attention_mask"}
    names |= {"answer_ids": "answer_ids", "answer_atts": "answer_mask", "answers_per_question": "answers_per_question"}
    return {ours: given[theirs] for theirs, ours in names.items()}


@tasks
def test_the_mask_follows_each_weight_to_all_its_places(model, masks, task):
    _, places = mf.build_task_model(model, task)
    built = mf.task_model(model, task, masks)
    for name, mask in masks.items():
        for path in places[name]:
            weight = built.get_submodule(path).weight
            assert torch.equal(weight, torch.where(mask, model.get_submodule(name).weight, 0.0)), path
            assert not torch.signbit(weight[~mask]).any()


@pytest.mark.parametrize("mask_decoder", [True, False])
def test_the_decoder_is_masked_or_left_dense(model, masks, mask_decoder):
    built = mf.task_model(model, "vqa", masks, mask_decoder=mask_decoder)
    decoder = [name for name, module in built.named_modules() if isinstance(module, torch.nn.Linear)]
    decoder = [name for name in decoder if name.startswith("text_decoder.bert.encoder.")]
    assert len(decoder) == 2 * 10
    zeros = [(built.get_submodule(name).weight == 0).float().mean().item() for name in decoder]
    dense, found = ((0.2, 1.0), (0.0, 0.0)) if mask_decoder else ((0.0, 0.0), (0.2, 1.0))
    assert all(dense[0] <= share <= dense[1] for share in zeros)
    assert not all(found[0] <= share <= found[1] for share in zeros)


@tasks
def test_the_moved_masks_are_those_of_the_task_model(model, masks, task, tmp_path):
    built, places = mf.build_task_model(model, task)
    moved = mf.task_masks(masks, places, built)
    layout = mf.adapter_for(built).layout(built)
    assert moved.layout == layout
    assert set(masks) <= set(moved)
    assert moved.settings == masks.settings
    assert moved.group_sparsities() == pytest.approx(masks.group_sparsities(), abs=0.02 if task == "vqa" else 0)
    again = mf.Masks.load(moved.save(tmp_path / "masks.safetensors"))
    assert again == moved
    again.apply_(built)  # no warning: the weights are those that the masks were made for
    for name, mask in moved.items():
        assert not built.get_submodule(name).weight[~mask].any()


def test_without_the_decoder_its_layers_have_no_mask(model, masks):
    built, places = mf.build_task_model(model, "vqa", mask_decoder=False)
    assert list(mf.task_masks(masks, places, built)) == list(masks)


def test_the_model_stays_as_it_is(masks):
    model = golden_data.model("xvlm")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for task in TASKS:
        mf.task_model(model, task, masks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_training_step_keeps_the_zeros(model, masks):
    built, places = mf.build_task_model(model, "vqa")
    moved = mf.task_masks(masks, places, built)
    optimizer = torch.optim.AdamW(built.train().parameters(), lr=1e-2)
    with mf.keep_sparse(built, moved, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            built(**golden_batch()).loss.backward()
            optimizer.step()
    for name, mask in moved.items():
        weight = built.get_submodule(name).weight
        assert not weight[~mask].any()
        assert not torch.equal(weight[mask], model.get_submodule(places_of(places, name)).weight[mask])


def places_of(places, path):
    return next(name for name, paths in places.items() if path in paths)


def test_layers_that_start_anew_have_no_mask():
    model = small_model()  # image and text of different widths
    masks = mf.prune(model, "random", 0.5).masks[0.5]
    built = mf.task_model(model, "vqa", masks)
    for name, module in built.text_decoder.bert.encoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            dense = name.endswith(("crossattention.self.key", "crossattention.self.value"))
            assert bool((module.weight == 0).any()) != dense


def test_masks_of_changed_weights_warn_once():
    model, masks = small_model(vision=WIDE), mf.prune(small_model(vision=WIDE), "random", 0.5).masks[0.5]
    with torch.no_grad():
        model.text_encoder.bert.encoder.layer[0].output.dense.weight.mul_(2)
    with pytest.warns(UserWarning, match="the masks were made for other weights: 1 of") as told:
        mf.task_model(model, "captioning", masks)
    assert len(told) == 1


@pytest.mark.parametrize("task", ["retrieval", "vqa"])
def test_masks_of_another_model(masks, task):
    with pytest.raises(mf.MultiflowError, match="the masks are those of another model: "):
        mf.task_model(small_model(), task, masks)


def test_masks_of_layers_that_no_task_takes_over():
    model = small_model()
    masks = mf.prune(model, "random", 0.5, adapter=every(model, exclude="decoder$")).masks[0.5]
    with pytest.raises(mf.MultiflowError, match=r"layer '.*\.cls\.predictions\.transform\.dense'"):
        mf.task_model(model, "vqa", masks)


def test_retrieval_is_evaluated_as_that_of_the_pretraining_model():
    tokenizer = shapes_tokenizer()
    model = shapes_model(SMALL, len(tokenizer)).eval()
    scenes = make_scenes("test", 6)
    pixels = torch.randn(6, 3, SMALL.image_size, SMALL.image_size, generator=torch.Generator().manual_seed(0))
    captions = [describe(scene, 2) for scene in scenes]
    models = (model, mf.task_model(model, "retrieval"))
    before, after = (evaluate_retrieval(m, pixels, captions, tokenizer, shortlist=4) for m in models)
    assert torch.equal(after.top_texts, before.top_texts)
    assert torch.equal(after.top_images, before.top_images)
    assert after.reranked == before.reranked


def test_masks_that_are_none():
    with pytest.raises(mf.MultiflowError, match="masks is a str; expected mf.Masks"):
        mf.task_model(small_model(), "vqa", "masks.safetensors")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("vqq", {}, r"unknown task 'vqq'; known: .*; did you mean 'vqa'\?"),
        ("classification", {"classes": 3}, "a model of type 'xvlm' cannot do task 'classification'"),
        ("vqa", {"imagesize": 32}, r"unknown option of task 'vqa' 'imagesize'; known: .*did you mean 'image_size'\?"),
        ("captioning", {"classes": 3}, "unknown option of task 'captioning' 'classes'"),
    ],
)
def test_bad_tasks_and_options(task, options, message):
    with pytest.raises(mf.MultiflowError, match=message):
        mf.task_model(small_model(), task, **options)


def test_the_loss_of_a_masked_model_is_that_of_the_masked_weights(model, masks):
    pruned = golden_data.model("xvlm")
    masks.apply_(pruned)
    with torch.no_grad():
        losses = [
            mf.task_model(m, "vqa", given)(**golden_batch()).loss for m, given in ((model, masks), (pruned, None))
        ]
    assert torch.equal(*losses)


def test_sizes_other_than_the_golden_ones():
    text = {**small_config().text, "layers": 5, "fusion_layer": 2, "encoder_width": None}
    model = small_model(vision=WIDE, text=text)
    masks = mf.prune(model, "random", 0.5).masks[0.5]
    built = mf.task_model(model, "vqa", masks, image_size=32)
    assert len(built.text_decoder.bert.encoder.layer) == 3
    loss = built(**batch() | {"pixel_values": torch.randn(3, 3, 32, 32)}).loss
    assert torch.isfinite(loss)
