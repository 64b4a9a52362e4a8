from __future__ import annotations

from dataclasses import replace

import pytest

from multiflow.bench.records import DENSE
from multiflow.report.bench.results import gather
from multiflow.report.bench.words import doubts, failures, gaps, incomplete

from .conftest import bare, make_cell, make_pruning


def test_a_whole_grid_raises_only_the_doubt_about_seeds(grid):
    bench = gather(*grid)
    assert incomplete(bench) is None
    assert gaps(bench) == failures(bench) == []
    (said,) = doubts(bench)
    assert said.startswith("Not all means are over three seeds: 12 over one seed (snip).")


def test_gaps_are_told_by_tier_model_and_pruner(grid):
    cells, prunings, expected = grid
    kept = [c for c in cells if c.pruner != "snip" and (c.pruner, c.seed, c.model) != ("wanda", 2, "xvlm-shapes")]
    bench = gather(kept, prunings, expected)
    found = gaps(bench)
    assert [(g.tier, g.model, g.pruner, g.number, g.of) for g in found] == [
        ("1", "xvlm-shapes", "wanda", 6, 18),
        ("2", "xvlm-shapes", "snip", 6, 6),
        ("2", "blip-shapes", "snip", 6, 6),
    ]
    assert "seed 2" in found[0].what
    assert found[1].what == "all of it"
    assert f"{len(kept)} of {len(cells)} cells" in incomplete(bench)
    assert "6 of tier 1, 12 of tier 2" in incomplete(bench)


def test_failed_cells_stand_with_their_error():
    cells = [make_cell(), make_cell("snip"), make_cell("chita")]
    broken = [replace(bare(cell), error="out of memory") for cell in cells[1:]]
    bench = gather([cells[0], *broken], expected=[bare(cell) for cell in cells])
    assert failures(bench) == [("out of memory", broken)]
    assert "2 failed" in incomplete(bench)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"versions": {"multiflow": "0.2.0", "torch": "2.12.0"}},
            "versions of torch are mixed: 2.13.0 (1), 2.12.0 (1)",
        ),
        ({"git": "fff0000"}, "git revisions are mixed"),
        ({"git": "abc1234+"}, "with changes that no git revision has"),
        ({"machine": "8 cores"}, "machines are mixed"),
        ({"items": 150}, "test sets of different sizes: 200 (1 cells), 150 (1 cells)"),
        ({"each": ()}, "One cell without figures of single test items"),
        ({"score": 50.0, "each": (0.0, 0.0)}, "is not the main figure"),
        ({"metric": "accuracy (soft)"}, "accuracy and accuracy (soft); they stand apart"),
        ({"seed": 1}, "no common seed"),
    ],
)
def test_what_does_not_fit_is_said(changes, said):
    cell = make_cell()
    other = make_cell("snip", **{k: v for k, v in changes.items() if k in ("items", "seed")})
    other = replace(other, **{k: v for k, v in changes.items() if k not in ("items", "seed")})
    assert not doubts(gather([cell, make_cell("snip")]))
    assert any(said in text for text in doubts(gather([cell, other]))), doubts(gather([cell, other]))


def test_prunings_of_other_versions_are_said_once_each():
    cells = [make_cell(model=model, pruning="shared") for model in ("a", "b")]
    old = replace(make_pruning(), id="shared")
    assert not doubts(gather(cells, [old]))  # of a version that did not write where it was computed
    here = {"versions": cells[0].versions, "git": cells[0].git, "machine": cells[0].machine}
    assert not doubts(gather(cells, [replace(old, **here)]))
    changes = {"versions": {**cells[0].versions, "torch": "2.12.0"}, "git": "abc1234+", "machine": "8 cores"}
    said = doubts(gather(cells, [replace(old, **changes)]))
    assert "torch are mixed: 2.13.0 (2), 2.12.0 (1)" in said[0]
    assert "abc1234 (2), abc1234+ (1) cells and prunings." in said[1]
    assert said[2].startswith("One cell or pruning computed with changes")
    assert "2 cores (2), 8 cores (1) cells and prunings." in said[3]


def test_notes_come_first():
    assert doubts(gather([make_cell(DENSE)], notes=["a line is broken"])) == ["a line is broken"]
