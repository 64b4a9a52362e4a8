from __future__ import annotations

from multiflow.report.bench.page import facts, shared_settings, versions
from multiflow.report.bench.results import gather

from .conftest import make_cell


def test_settings_are_flat_and_differing_values_are_listed():
    other = make_cell("snip", settings={"finetune": {"steps": 300, "lr": 1e-4}, "text": "x" * 200})
    shown = dict(shared_settings(gather([make_cell(), other])))
    assert shown["finetune.steps"] == "150, 300"
    assert shown["finetune.lr"] == "0.0001"
    assert len(shown["text"]) == 90


def test_facts_count_cells_and_time(grid):
    found = dict(facts(gather(*grid)))
    assert found["cells"] == "132 with figures, 0 failed, 0 missing, of 132"
    assert found["time"].startswith("53 min of fine-tuning")
    assert found["computed"] == "2026-01-05 10:00 to 2026-01-05 10:00"
    assert found["seeds"] == "0, 1, 2"


def test_versions_that_differ_stand_side_by_side():
    other = make_cell("snip", versions={"torch": "2.12.0"})
    assert dict(versions(gather([make_cell(), other]))) == {"multiflow": "0.2.0, unknown", "torch": "2.13.0, 2.12.0"}
