from __future__ import annotations

import torch
from torch import nn

import multiflow as mf
from multiflow.base.types import Layer, Layout
from multiflow.cli.show import blocks, span, spanned, stays_dense


class Own(nn.Module):
    """A module with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))


def layer(name: str, group: str = "text", shape: tuple[int, int] = (2, 3)) -> Layer:
    return Layer(name, shape, group)


def test_spans() -> None:
    assert [span(numbers) for numbers in ([4], [0, 1], [0, 1, 2, 5], [1, 3])] == ["4", "{0-1}", "{0-2,5}", "{1,3}"]


def test_layers_of_alike_blocks_stand_together_but_not_those_of_other_groups_or_shapes() -> None:
    names = ["a.0.fc", "a.0.proj", "a.1.fc", "a.1.proj", "a.2.fc"]
    layout = Layout((*map(layer, names), layer("a.3.fc", "fusion"), layer("a.4.fc", shape=(4, 4)), layer("head")))
    written = [(spanned(alike), alike[0].group, len(alike)) for alike in blocks(layout)]
    assert written == [
        ("a.{0-2}.fc", "text", 3),
        ("a.{0-1}.proj", "text", 2),
        ("a.4.fc", "text", 1),
        ("head", "text", 1),
        ("a.3.fc", "fusion", 1),
    ]


def test_numbers_at_several_places() -> None:
    assert (
        spanned([layer(f"stage.{i}.block.{j}.fc") for i in (0, 1) for j in (0, 1, 2)]) == "stage.{0-1}.block.{0-2}.fc"
    )


def test_what_stays_dense_is_all_the_rest_counted_once() -> None:
    model = nn.Module()
    model.encoder = nn.Linear(4, 4)
    model.head = nn.Linear(4, 2)
    model.tied = nn.Linear(4, 2, bias=False)
    model.tied.weight = model.head.weight
    model.embed = nn.Embedding(3, 4)
    model.inner = Own()
    layout = mf.Adapter(groups={"text": "^encoder$"}).layout(model)
    assert stays_dense(model, layout, {"head": "output embeddings"}) == [
        ("head", "Linear", 8, "output embeddings"),
        ("inner.scale", "Parameter", 5, ""),
        ("all", "biases of Linear", 6, ""),
        ("all", "Embedding", 12, ""),
    ]
