"""What the zeros buy: quality beside bytes and milliseconds, in reports."""

from __future__ import annotations

import pytest
import torch

import multiflow as mf
from multiflow.formats.worth import FormWorth, forward_cost, measure_worth
from multiflow.report.document import Document, markdown, page
from multiflow.report.worth import worth_sections
from tests.report.conftest import read_page, section, text_of
from tests.small import ADAPTER, towers_batches, two_towers

WORTH = (
    FormWorth("dense fp32", 0.0, 15_500_000, 0.044, 0.02, 98.5),
    FormWorth("dense int8", 0.0, 4_200_000, 0.033, 0.02),
    FormWorth("sparse bf16", 0.75, 3_700_000, 0.034, 0.02, 72.25, "wanda"),
    FormWorth("sparse bf16", 0.9, 2_600_000, 0.0435, 0.02, 5.0, "wanda"),
)


def test_the_block_has_a_row_a_form_and_two_charts():
    document = Document("t", "h", "l", [], worth_sections(WORTH, "mean R@1"))
    block = section(read_page(page(document)), "worth")
    rows = [[text_of(cell) for cell in row.iter("td")] for row in block.iter("tr")][1:]
    assert [row[-4:] for row in rows] == [
        ["98.5", "15.5", "44", "1.00"],
        ["-", "4.2", "33", "1.33"],
        ["72.2", "3.7", "34", "1.29"],
        ["5.0", "2.6", "43.5", "1.01"],
    ]
    assert sum(one.tag.endswith("svg") for one in block.iter()) == 2
    assert "wanda" in markdown(document)


def test_only_what_is_beyond_noise_is_marked_as_faster():
    document = Document("t", "h", "l", [], worth_sections(WORTH, "mean R@1"))
    root = section(read_page(page(document)), "worth")
    best = [text_of(mark) for mark in root.iter() if mark.get("class") == "best"]
    assert best == ["1.33", "1.29"]


def test_without_a_measurement_there_is_no_block():
    document = Document("t", "h", "l", [], worth_sections((), "mean R@1"))
    assert "zeros buy" not in page(document)


def test_forms_of_a_model_are_measured_side_by_side():
    model, batch = two_towers(), towers_batches()[0]
    result = mf.prune(model, "magnitude", [0.5, 0.9], adapter=ADAPTER)
    how = {"adapter": ADAPTER, "batch": batch, "seconds": 0.05}
    found = measure_worth(model, result.masks, quality={0.0: 99.0, 0.5: 80.0, 0.9: 3.0}, by={0.5: "a", 0.9: "b"}, **how)
    known = {(one.form, one.sparsity): one for one in found}
    assert known["dense fp32", 0.0].quality == 99.0
    assert known["dense int8", 0.0].quality is None
    assert all(one.seconds > 0 and one.memory > 0 for one in found)
    for (form, sparsity), one in known.items():
        if form == "sparse bf16":  # where there is a compiler
            assert (one.by, one.quality) == {0.5: ("a", 80.0), 0.9: ("b", 3.0)}[sparsity]


def test_a_model_that_does_not_run_costs_its_block_and_a_warning():
    masks = mf.prune(two_towers(), "magnitude", 0.5, adapter=ADAPTER).masks
    with pytest.warns(UserWarning, match="were not measured"):
        assert (
            measure_worth(two_towers(), masks, quality={}, by={}, adapter=ADAPTER, batch={"x": torch.ones(2, 2)}) == ()
        )


def test_models_with_zeros_in_the_same_places_are_measured_once(tiny, monkeypatch):
    model = mf.load_model(tiny)
    masks = mf.prune(model, "magnitude", 0.75).masks[0.75]
    masks.apply_(model)
    cost = forward_cost(model, seconds=0.01)
    assert cost["memory"] <= cost["dense_memory"]
    with torch.no_grad():
        for weights in masks.find_weights(model).values():
            for weight in weights:
                weight.mul_(2.0)  # as after another fine-tuning: other weights, the same zeros
    monkeypatch.setattr("multiflow.formats.worth.speed", lambda *_, **__: pytest.fail("measured again"))
    assert forward_cost(model) == cost
    with torch.no_grad():
        next(iter(masks.find_weights(model).values()))[0][:1] = 0.0
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        forward_cost(model)
