"""Every vision-language type that transformers registers: streamed, the masks are those of the run in memory."""

import warnings

import pytest
import torch

import multiflow as mf
from tests.families.automatic import tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
UNLOADABLE = ("shieldgemma2",)  # transformers does not find its weights again


@pytest.mark.parametrize(("kind", "name"), tiny.types(), ids=lambda value: value)
def test_masks_are_those_of_the_run_in_memory(kind, name, tmp_path):
    try:
        model = tiny.build(kind, name)
        batches = [tiny.batch(model), tiny.batch(model, padded=False)]
        adapter = mf.adapter_for(model)
        torch.manual_seed(0)
        wanted = mf.prune(model, "wanda", [0.5, 0.75], batches, adapter=adapter)
    except Exception as error:
        pytest.skip(f"not pruned in memory: {error}")
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    if kind in UNLOADABLE:
        with pytest.raises(mf.MultiflowError, match=r"lacks \d+ weights"):
            mf.open_streamed(tmp_path / "model", tmp_path / "offload")
        return
    streamed = mf.open_streamed(tmp_path / "model", tmp_path / "offload")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mf.prune_streamed(streamed, "wanda", [0.5, 0.75], batches, folder=tmp_path / "run")
    assert all(found.masks[s] == masks for s, masks in wanted.masks.items())
