"""``multiflow compare``: one table on the screen, one page, the numbers and the masks in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import multiflow as mf


def test_methods_are_compared_on_other_data_than_they_were_calibrated_on(run, tiny, world):
    found = run(
        "compare", tiny, "--data", world / "pretrain" / "cc3m",
        "--methods", "magnitude", "wanda", "--sparsity", 0.5, 0.9,
        "--batches", 2, "--held-out", 1, "--batch-size", 2, "--device", "cpu", "--out", "out",
    )  # fmt: skip
    assert found.code == 0, found.err
    for fact in ("wanda", "50 %", "90 %", "answers that stay", "compare.html", "multiflow apply"):
        assert fact in found.out.replace("\N{NO-BREAK SPACE}", " ")
    said = json.loads(Path("out/compare.json").read_text())
    assert [one["method"] for one in said["methods"]] == ["magnitude", "wanda"]
    assert abs(said["methods"][1]["at"][1]["achieved"] - 0.9) < 0.02
    page = Path("out/compare.html").read_text()
    assert "wanda" in page
    if said["worth"]:  # the tiny model runs on the batch that was held out
        assert {one["form"] for one in said["worth"]} >= {"dense fp32", "dense int8"}
        assert "What the zeros buy" in page
    assert "wanda" in Path("out/compare.md").read_text()
    assert set(mf.Result.load("out/wanda").masks) == {0.5, 0.9}


def test_there_must_be_data_for_both(run, tiny, world):
    data = world / "pretrain" / "cc3m"
    assert "--data" in run("compare", tiny, "--out", "out").error
    assert "--held-out 0" in run("compare", tiny, "--data", data, "--held-out", 0).error
    assert "--batch-size" in run("compare", tiny, "--data", data, "--batch-size", 1000, "--out", "out").error
    assert not Path("out").exists()
