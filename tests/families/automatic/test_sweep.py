"""All vision-language types of transformers: ``make test-all``; the rows of the cross-section are checked always."""

from __future__ import annotations

import pytest
import transformers

from tests.families.automatic import sweep, tiny
from tests.families.automatic.test_adapter import CROSS_SECTION

ROWS = {tuple(row.split(" | ")[:2]): row for row in sweep.TABLE.read_text().splitlines() if row.startswith("| ")}
LISTED = f"transformers {transformers.__version__} " in sweep.TABLE.read_text()
listed = pytest.mark.skipif(not LISTED, reason="docs/models.md is of another version of transformers")


@listed
@pytest.mark.parametrize("kind", CROSS_SECTION)
def test_the_table_says_the_groups_and_what_stays_dense(kind):
    name = CROSS_SECTION[kind][0]
    groups, dense = sweep.described(kind, name)
    assert f" | {groups} | {dense} | " in ROWS[f"| {kind}", name]


@listed
def test_the_table_lists_all_types_and_most_pass():
    assert set(ROWS) - {("| type", "class")} == {(f"| {kind}", name) for kind, name in tiny.types()}
    results = [row.rsplit(" | ", 1)[1] for row in ROWS.values()]
    passed = sum(result.startswith("passes") for result in results)
    refused = sum(result.startswith("refused") for result in results)
    assert passed >= 60
    assert passed / (passed + refused) >= 0.95


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), tiny.types())
def test_every_type_is_as_the_table_says(kind, name):
    found = sweep.row(kind, name)
    if LISTED:
        assert found == ROWS[f"| {kind}", name]
    else:
        assert not found.endswith("fails |")
