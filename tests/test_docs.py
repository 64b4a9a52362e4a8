"""What the documentation shows is true: generated pages are fresh, examples run."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import multiflow as mf
from tests.data.worlds import write_images

ROOT = Path(__file__).parents[1]


def test_generated_pages_are_fresh():
    methods = runpy.run_path(str(ROOT / "docs/generate.py"))["methods"]
    assert (ROOT / "docs/methods.md").read_text() == methods(), "run make docs"


@pytest.mark.parametrize("tables", ["payoff_tables", "model_tables"])
def test_generated_tables_are_those_of_their_sources(tables):
    tables = runpy.run_path(str(ROOT / f"docs/{tables}.py"))
    for name, text in tables["parts"]().items():
        page = tables["PLACES"][name].read_text()
        assert f"<!-- {name} -->\n{text}\n<!-- /{name} -->" in page, "run make docs"


def test_the_first_example_runs(vlm, monkeypatch, tmp_path, capsys):
    """With a model of the same type where the hub's would be, of tiny size and with random weights."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vlm("smolvlm"), "HuggingFaceTB/SmolVLM-256M-Instruct")
    write_images(Path("photos"), ["a.png", "b.png"])
    Path("photos/captions.csv").write_text("image,caption\na.png,a dog\nb.png,two cats\n")
    capsys.readouterr()
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out == "{'vision': 0.5, 'connector': 0.5, 'text': 0.5}\n"
    assert sorted(path.name for path in (tmp_path / "runs/multiflow").iterdir()) == [
        "mask-0.5.safetensors", "mask-0.63.safetensors", "mask-0.75.safetensors", "result.json"
    ]  # fmt: skip
    sparse = mf.load_model("sparse")
    assert names["result"].masks[0.5].is_applied(sparse)


def run_section(heading: str) -> dict[str, Any]:
    """Run the Python of a section of ``add-a-model.md`` from top to bottom, and return its names."""
    sections = re.split(r"^#+ ", (ROOT / "docs/add-a-model.md").read_text(), flags=re.M)
    (section,) = (section for section in sections if section.startswith(heading))
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", section, re.S):
        exec(compile(code, "add-a-model.md", "exec"), names)
    return names


def test_the_example_of_any_other_model_runs(capsys):
    run_section("Prune any other model")
    assert capsys.readouterr().out.startswith("{'vision': 0.5, 'text': 0.5}")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("llava"))
        torch.manual_seed(1)
        yield run_section("A Llava")


def dropped(masks: Mapping[str, torch.Tensor], layers: Any) -> int:
    return sum(int((~masks[layer.name]).sum()) for layer in layers)


@pytest.mark.parametrize("sparsity", [0.63, 0.75])
def test_sparsities_of_the_llava_example_are_exact(llava, sparsity):
    results = llava["results"]
    layout = results["multiflow"].masks[sparsity].layout
    assert {group: len(layers) for group, layers in layout.groups.items()} == {
        "vision": 12, "projector": 2, "language": 14
    }  # fmt: skip
    for layers in layout.groups.values():
        assert dropped(results["multiflow"].masks[sparsity], layers) == round(sparsity * sum(x.size for x in layers))
    for name, mask in results["wanda"].masks[sparsity].items():
        assert ((~mask).sum(1) == round(sparsity * mask.shape[1])).all(), name
    assert dropped(results["snip"].masks[sparsity], layout.layers) == round(sparsity * layout.size)


def test_the_padding_of_the_llava_example_does_not_count(llava):
    """Every layer of the language model sees the patches and the real words, the others the patches alone."""
    counts, batches = llava["stats"].counts["input_norm"], llava["batches"]
    images = sum(len(batch["input_ids"]) for batch in batches)
    words = 9 + 5 + 7 + 9 + 6 + 8 + 3 + 4 + 7 + 2
    for layer in llava["adapter"].layout(llava["model"]).layers:
        tokens = {"vision": 17 * images, "projector": 16 * images, "language": 16 * images + words}
        assert counts[layer.name] == tokens[layer.group], layer.name


def test_every_layer_of_the_llava_example_matters_to_its_loss(llava):
    for name, scores in mf.prune(
        llava["sparse"], "snip", 0.5, llava["batches"], adapter=llava["adapter"]
    ).scores.items():
        assert scores.max() > 0, name


def test_the_sparse_llava_is_saved_with_its_zeros(llava):
    model, sparse, masks = llava["model"], llava["sparse"], llava["results"]["multiflow"].masks[0.75]
    for name, mask in masks.items():
        weight = sparse.get_submodule(name).weight
        assert torch.equal(weight, model.get_submodule(name).weight)
        assert torch.equal(weight != 0, mask), name
    dense = [weight for name, weight in sparse.named_parameters() if name.removesuffix(".weight") not in masks]
    assert "lm_head" not in masks
    assert sum(weight.numel() for weight in dense) + masks.layout.size == sum(p.numel() for p in sparse.parameters())
    batch = llava["batches"][0]
    with torch.no_grad():
        torch.testing.assert_close(sparse(**batch).logits, model(**batch).logits)


def test_a_llava_with_a_siglip_tower(llava):
    from transformers import LlavaForConditionalGeneration, SiglipVisionConfig

    config = llava["config"].to_dict()
    config["vision_config"] = SiglipVisionConfig(**llava["vision"], image_size=32, patch_size=8)
    model = LlavaForConditionalGeneration(type(llava["config"])(**config))
    with pytest.raises(mf.MultiflowError, match="vision_tower(.vision_model)?.head' is a Siglip"):
        llava["adapter"].layout(model)
    text = (ROOT / "docs/add-a-model.md").read_text()
    (regex,) = re.findall(r"`exclude=r\"(.*?)\"`", text)
    layout = mf.Adapter(groups=llava["adapter"].groups, exclude=regex).layout(model)
    assert [len(layers) for layers in layout.groups.values()] == [12, 2, 14]


@pytest.mark.parametrize("page", [*sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("*.md")), "docs"])
def test_links_lead_somewhere(page):
    pages = [ROOT / page] if page.endswith(".md") else sorted((ROOT / page).glob("*.md"))
    for path in pages:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), (path.name, target)
