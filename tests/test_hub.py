"""Masks and results on the Hugging Face Hub: uploaded with a card, read back equal; what goes wrong, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from torch import nn

import multiflow as mf
from tests.hub import Hub, running


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eyes, self.words = nn.Linear(8, 16), nn.Linear(16, 8)
        self.name_or_path = "someone/vlm"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.words(self.eyes(x))


ADAPTER = mf.Adapter(groups={"vision": "eyes", "text": "words"}, forward=lambda model, batch: model(batch))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def prune(method: str = "wanda") -> tuple[nn.Module, mf.Result]:
    torch.manual_seed(0)
    model = Model()
    return model, mf.prune(model, method, [0.25, 0.5], [torch.randn(4, 8)] * 2, adapter=ADAPTER)


def test_masks_come_back_as_they_went(hub):
    _, result = prune()
    for sparsity, masks in result.masks.items():
        assert "me/masks" in masks.push_to_hub("me/masks", token="right")
        assert mf.Masks.from_pretrained("me/masks", sparsity) == masks
    assert {"mask-0.25.safetensors", "mask-0.5.safetensors", "README.md"} == set(hub.repositories["me/masks"])


def test_results_come_back_with_the_weights_that_changed(hub):
    model, result = prune("sparsegpt")
    result.push_to_hub("me/pruned", token="right")
    again = mf.Result.from_pretrained("me/pruned")
    assert again.masks == result.masks
    other = prune()[0]
    again.apply_(other, 0.5)
    result.apply_(model, 0.5)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_card_says_what_it_is_and_how_to_use_it(hub):
    _, result = prune()
    result.push_to_hub("me/pruned", token="right")
    card = hub.repositories["me/pruned"]["README.md"].decode()
    _, header, text = card.split("---", 2)
    assert yaml.safe_load(header)["base_model"] == "someone/vlm"
    for fact in (
        "wanda",
        "256 weights",
        "25 %",
        "50 %",
        "fingerprint",
        'mf.load_model("someone/vlm", masks="me/pruned"',
    ):
        assert fact in text


def test_a_card_shows_what_strangers_wrote_as_text():
    from multiflow.masks.cards import mask_card

    _, result = prune()
    evil = mf.Masks.from_tensors(
        result.masks[0.5].layout, dict(result.masks[0.5]), settings={"method": "<script>x</script> | `y`"}
    )
    assert "<script>" not in mask_card({0.5: evil}, "me/x").split("\n", 12)[-1]


def test_without_a_network_the_cache_serves(hub, monkeypatch):
    _, result = prune()
    result.push_to_hub("me/pruned", token="right")
    first = mf.Masks.from_pretrained("me/pruned", 0.5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert mf.Masks.from_pretrained("me/pruned", 0.5) == first


def test_a_model_is_loaded_with_its_masks(hub, tmp_path):
    model = mf.load_model("xvlm-shapes")
    result = mf.prune(model, "magnitude", [0.5, 0.75])
    result.push_to_hub("me/pruned", token="right")
    result.save(tmp_path / "run")
    for place in ("me/pruned", tmp_path / "run", tmp_path / "run" / "mask-0.75.safetensors", result.masks[0.75]):
        assert result.masks[0.75].is_applied(mf.load_model("xvlm-shapes", masks=place, sparsity=0.75))


@pytest.mark.parametrize(
    ("source", "sparsity", "facts"),
    [
        ("me/pruned", None, ["me/pruned", "0.25, 0.5", "sparsity="]),
        ("me/pruned", 0.9, ["0.9", "0.25, 0.5"]),
        ("me/nothing", 0.5, ["me/nothing", "token"]),
        ("nowhere", 0.5, ["nowhere", "user/name"]),
        (".", 0.5, ["holds no masks"]),
    ],
)
def test_what_is_not_there_is_said(hub, tmp_path, monkeypatch, source, sparsity, facts):
    monkeypatch.chdir(tmp_path)
    _, result = prune()
    result.push_to_hub("me/pruned", token="right")
    with pytest.raises(mf.MultiflowError) as error:
        mf.Masks.from_pretrained(source, sparsity)
    assert all(fact in str(error.value) for fact in facts)


def test_who_may_not_write_is_told(hub):
    _, result = prune()
    for push in (result.push_to_hub, result.masks[0.5].push_to_hub):
        with pytest.raises(mf.MultiflowError, match=r"me/pruned.*hf auth login"):
            push("me/pruned", token="wrong")


def test_masks_that_belong_to_changed_weights_do_not_go_alone(hub):
    _, result = prune("sparsegpt")
    with pytest.raises(mf.MultiflowError, match=r"sparsegpt.*result\.push_to_hub"):
        result.masks[0.5].push_to_hub("me/masks", token="right")
    assert not hub.repositories
