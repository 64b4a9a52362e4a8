"""Several pruners on one model: what they leave of it, measured against sums by hand; the model stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.base.types import Layer, Layout
from multiflow.pruning.fidelity import blocks_of, measure_fidelity


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Twins(nn.Module):
    """Two towers: features of images and of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.ModuleList(Block() for _ in range(2))
        self.words = nn.ModuleList(Block() for _ in range(1))

    def forward(self, image: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        for block in self.eyes:
            image = block(image)
        for block in self.words:
            text = block(text)
        pooled = (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"image_embeds": image, "text_embeds": pooled, "logits": text}


ADAPTER = mf.Adapter(
    groups={"vision": "eyes", "text": "words"},
    streams={"words": "text"},
    token_masks=lambda batch: {"text": batch["mask"].bool()},
    forward=lambda model, batch: model(**batch),
)


def batch(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    mask = torch.ones(5, 4)
    mask[2, 2:] = 0
    return {"image": torch.randn(5, 6), "text": torch.randn(5, 4, 6), "mask": mask}


@pytest.fixture
def model() -> Twins:
    torch.manual_seed(0)
    return Twins()


def test_a_block_is_the_innermost_numbered_module_of_several_layers():
    names = ["enc.0.blocks.1.q", "enc.0.blocks.1.mlp.0", "enc.0.blocks.1.mlp.2", "head", "solo.3"]
    found = blocks_of(Layout(tuple(Layer(name, (2, 2), "x") for name in names)))
    assert list(found.values()) == [*["enc.0.blocks.1"] * 3, "head", "solo.3"]


@torch.no_grad()
def test_errors_are_those_of_the_real_tokens_alone(model):
    batches = [batch(1), batch(2)]
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    found = measure_fidelity(model, [(masks, None)], batches, ADAPTER)[0]

    sparse = Twins()
    sparse.load_state_dict(model.state_dict())
    masks.apply_(sparse)
    wrong = size = 0.0
    for one in batches:
        real = one["mask"].bool()
        dense, other = model.words[0](one["text"])[real], sparse.words[0](one["text"])[real]
        wrong, size = wrong + float((dense - other).square().sum()), size + float(dense.square().sum())
    assert found.blocks["words.0"] == pytest.approx(wrong / size, rel=1e-5)
    assert list(found.blocks) == ["eyes.0", "eyes.1", "words.0"]
    assert found.groups["text"] == found.blocks["words.0"]
    assert found.groups["vision"] == pytest.approx((found.blocks["eyes.0"] + found.blocks["eyes.1"]) / 2)

    texts = torch.cat([one["text"] for one in batches])
    assert found.compared == {"image to text": 10, "text to image": 10, "next token or class": texts[..., 0].numel()}
    nearest = []
    for one in (model, sparse):
        said = [one(**given) for given in batches]
        images, texts = (torch.cat([of[name] for of in said]) for name in ("image_embeds", "text_embeds"))
        nearest.append(nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1).argmax(1))
    assert found.answers["image to text"] == pytest.approx(float((nearest[0] == nearest[1]).double().mean()))


def test_nothing_dropped_is_the_dense_model_and_the_model_stays(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = mf.prune(model, "magnitude", 0.0, adapter=ADAPTER)
    little = mf.prune(model, "sparsegpt", 0.9, [batch(3)], adapter=ADAPTER)
    variants = [(whole.masks[0.0], None), (little.masks[0.9], little.weights[0.9])]
    none, most = measure_fidelity(model, variants, [batch(4)], ADAPTER)
    assert none.loyalty == pytest.approx(1.0)
    assert max(none.blocks.values()) == 0
    assert min(most.blocks.values()) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_methods_share_one_calibration_and_are_those_of_prune(model):
    taken = []

    def batches():
        for seed in (5, 6):
            taken.append(seed)
            yield batch(seed)

    class Repeatable:
        def __iter__(self):
            return batches()

    found = mf.compare_pruners(
        model, ["magnitude", "wanda", "ria"], [0.5, 0.75], Repeatable(), [batch(7)], adapter=ADAPTER
    )
    assert taken == [5, 6]
    for one in found.pruners:
        alone = mf.prune(model, one.method, [0.5, 0.75], [batch(5), batch(6)], adapter=ADAPTER)
        assert one.result.masks == alone.masks
        assert set(one.fidelity) == {0.5, 0.75}
    assert found.agreement[0.5].keys() == {("magnitude", "wanda"), ("magnitude", "ria"), ("wanda", "ria")}
    assert all(0 < overlap <= 1 for of in found.agreement.values() for overlap in of.values())
    assert len(repr(found)) < 200


@pytest.mark.parametrize(
    ("methods", "given", "facts"),
    [
        ([], {}, ["one or several"]),
        (["wanda", "wanda"], {}, ["wanda", "once"]),
        (["wnda"], {}, ["wnda", "wanda"]),
        (["wanda"], {"batches": None}, ["wanda", "data"]),
        (["wanda"], {"held_out": []}, ["no batches"]),
        (["wanda"], {"options": {"ria": {}}}, ["ria", "wanda"]),
    ],
)
def test_bad_input(model, methods, given, facts):
    with pytest.raises(mf.MultiflowError) as error:
        mf.compare_pruners(model, methods, 0.5, **{"batches": [batch(1)], "adapter": ADAPTER, **given})
    assert all(fact in str(error.value) for fact in facts)
