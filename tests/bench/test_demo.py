from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.bench import demo as bench_demo
from multiflow.bench.demo import Demo, Example, Find, choose, mask_path, measure, png, pruned, timed
from multiflow.data import build_word_tokenizer, load_tokenizer, to_pixels
from multiflow.families.opening import load_model
from multiflow.report.demo import demo_spreads
from multiflow.tasks.retrieval.rerank import evaluate_retrieval
from multiflow.tasks.retrieval.task import retrieval_figures
from multiflow.worlds.shapes import describe, make_scenes, render
from tests.cli.demo_fixtures import save_tiny_model, tiny_settings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def run(place, folder, **changes) -> Demo:
    return measure(str(place), folder, tiny_settings(place, folder, **changes), "multiflow demo", lambda *_: None)


def test_a_row_is_what_pruning_and_searching_by_hand_give(place, tmp_path):
    demo = run(place, tmp_path, seed=3)
    assert [(cell.pruner, cell.sparsity) for cell in demo.cells] == [
        (method, sparsity)
        for method in ("multiflow", "magnitude-modality", "magnitude", "random")
        for sparsity in (0.5, 0.9)
    ]
    cell = demo.cell("magnitude", 0.9)
    model, tokenizer = load_model(place), load_tokenizer(place)
    masks = mf.prune(model, "magnitude", 0.9).apply_(model, 0.9)
    scenes = make_scenes("test", 12, seed=3)
    pixels = torch.from_numpy(to_pixels([render(scene, 24) for scene in scenes], 24))
    texts = [describe(scene, 1) for scene in scenes]
    found = evaluate_retrieval(model, pixels, texts, tokenizer, shortlist=4)
    assert cell.figures == retrieval_figures(found, [1] * 12)
    hits = (found.text_ranks == 0).int() + (found.image_ranks == 0).int()
    assert list(cell.each) == (50.0 * hits).tolist()
    assert (
        cell.score
        == pytest.approx(sum(cell.each) / 12)
        == pytest.approx(np.mean([found.reranked.tr1, found.reranked.ir1]))
    )
    spread = next(one for one in demo_spreads(demo) if (one.pruner, one.sparsity) == ("magnitude", 0.9))
    assert spread.achieved == masks.sparsity
    assert spread.groups == pytest.approx(masks.group_sparsities(), abs=1e-12)
    assert spread.layers == masks.sparsities()
    assert list(spread.layers) == [layer.name for layer in demo.layout]
    assert mf.Masks.load(tmp_path / mask_path("magnitude", 0.9)) == masks
    assert demo.files[path := mask_path("magnitude", 0.9)] == (tmp_path / path).stat().st_size
    for example in demo.examples:
        assert demo.captions[example.scene] == texts[example.scene][0]
        assert np.array_equal(Image.open(io.BytesIO(demo.pictures[example.scene])), render(scenes[example.scene], 24))


def test_the_dense_model_is_measured_with_all_its_weights(place, tmp_path):
    demo = run(place, tmp_path, sparsity=(0.0, 0.9), method=("random",))
    assert demo.cell("random", 0.0).figures == demo.dense.figures
    assert sum(demo.prunings[0].zeros[0.0]) == 0


def test_one_calibration_pass_serves_every_method_and_sparsity(place, tmp_path, monkeypatch):
    passes = []
    original = bench_demo.calibrate
    monkeypatch.setattr(bench_demo, "calibrate", lambda *args, **kw: passes.append(1) or original(*args, **kw))
    demo = run(place, tmp_path, method=("multiflow", "wanda", "ria", "random"))
    assert len(passes) == 1
    assert demo.calibration == 6
    assert demo.seconds("wanda") > demo.phases["calibrate"]
    assert set(demo.phases) == {"load", "draw", "calibrate", "prune", "save", "evaluate", "time"}


def test_methods_that_need_gradients_and_methods_that_need_nothing(place, tmp_path):
    both = run(place, tmp_path / "a", method=("snip", "multiflow"))
    assert set(both.methods) == {"snip", "multiflow"}
    assert set(run(place, tmp_path / "b", method=("magnitude",)).methods) == {"magnitude"}


def test_the_same_seed_finds_the_same(place, tmp_path):
    first, second, other = (run(place, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert [cell.figures for cell in first.cells] == [cell.figures for cell in second.cells]
    assert first.examples == second.examples
    assert first.captions != other.captions


def test_a_model_of_another_family_is_refused(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(mf.MultiflowError, match=r"is a ViTForImageClassification; .* leave --model out"):
        run(tmp_path / "vit", tmp_path / "out")


def test_masks_hold_only_inside_the_block(place):
    model = load_model(place)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = mf.prune(model, "magnitude", 0.5)
    masks = result.masks[0.5]
    name = next(iter(masks))

    def fail():
        with pruned(model, result, 0.5):
            assert not model.state_dict()[f"{name}.weight"][~masks[name]].any()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    after = model.state_dict()
    assert all(
        torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)) for key in before if before[key].ndim
    )


def test_methods_in_steps_have_their_batches(place, tmp_path):
    demo = run(place, tmp_path / "out", method=("chita", "wanda"), sparsity=(0.5,))
    assert demo.methods == ("chita", "wanda")
    assert all(demo.seconds(method) > 0 for method in demo.methods)
    assert (tmp_path / "out" / "masks" / "chita" / "weights-0.5.safetensors").is_file()


def example(scene, *right):
    """An example of which the dense model and two sparse ones find the right caption or not; pictures are all right."""
    return Example(scene, tuple(Find(f"m{i}", scene + (not ok), scene) for i, ok in enumerate(right)))


def test_examples_show_each_kind_of_disagreement_once_before_any_twice():
    kinds = [(1, 1, 1), (1, 1, 0), (1, 1, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (0, 1, 1)]
    examples = [example(scene, *right) for scene, right in enumerate(kinds)]
    assert [e.scene for e in choose(examples, 3)] == [1, 3, 0]  # sparse models all right: last
    assert [e.scene for e in choose(examples, 9)] == [1, 3, 0, 6, 2, 5, 4]
    assert choose(examples, 0) == []


def test_a_picture_survives_as_png():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(Image.open(io.BytesIO(png(image))), image)


def test_time_is_noted_by_name():
    phases = {}
    with timed(phases, "think"):
        pass
    assert phases.keys() == {"think"}
    assert phases["think"] >= 0


def test_a_model_without_a_tokenizer_is_told_what_the_demo_can_do(place, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(place, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    advice = "; give a folder that 'multiflow pretrain' wrote, or leave --model out"
    with pytest.raises(mf.MultiflowError) as caught:
        run(bare, tmp_path / "out")
    said = f"model '{bare}' comes without a tokenizer that fits: it has no tokenizer.json or vocab.txt"
    assert str(caught.value) == said + advice
    build_word_tokenizer([f"word{i}" for i in range(500)]).save_pretrained(bare)
    with pytest.raises(mf.MultiflowError, match=r"the tokenizer has 505 tokens, the model embeds \d+; give") as caught:
        run(bare, tmp_path / "out")
    assert str(caught.value).endswith(advice)
    assert "--tokenizer" not in str(caught.value)
