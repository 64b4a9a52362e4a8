from __future__ import annotations

import pytest
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.families import original_names
from multiflow.families.original import FAMILIES, MODEL_TYPES, find


def test_every_row_of_the_tables_leads_to_a_record():
    assert all(find("family", name, FAMILIES).build for name in FAMILIES)
    assert all(find("model type", name, MODEL_TYPES).layers for name in MODEL_TYPES)


def test_a_model_of_no_known_family_is_an_error():
    with pytest.raises(MultiflowError, match="unknown model type 'Linear'; known: xvlm, vit, dinov2"):
        original_names(nn.Linear(2, 2))
