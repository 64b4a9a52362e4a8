from __future__ import annotations

import os
import pickle

import pytest
import torch

import multiflow as mf
from multiflow.base.types import Layer, Layout
from multiflow.masks import compare, is_original, total
from multiflow.masks.files import SUFFIX
from tests import golden_data

LAYOUT = Layout((Layer("tower.a", (3, 5), "vision"), Layer("b", (2, 2), "text", "text", ("c",))))
NAMES = {"tower.a": "visual.0.fc.weight", "b": "encoder.b.weight"}
A = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
B = torch.eye(2, dtype=torch.bool)
MASKS = mf.Masks.from_tensors(LAYOUT, {"tower.a": A, "b": B})


def release(**changes):
    """A file of the release with masks of `LAYOUT`, changed by parameter name; None leaves one out."""
    content = {"visual.0.fc.weight": A, "encoder.b.weight": B} | {k.replace("__", "."): v for k, v in changes.items()}
    return {f"{name}{SUFFIX}": value for name, value in content.items() if value is not None}


@pytest.fixture
def write(tmp_path):
    def write(content, **options):
        torch.save(content, tmp_path / "masks.pth", **options)
        return tmp_path / "masks.pth"

    return write


@pytest.mark.parametrize(("family", "tag"), [("xvlm", "multiflow"), ("dino", "snip"), ("blip", "multiflow_tied")])
def test_published_masks_to_the_model_and_back(write, tmp_path, family, tag):
    model = golden_data.model(family)
    names, layout = mf.original_names(model), mf.adapter_for(model).layout(model)
    published = {f"{name}{SUFFIX}": mask.float() for name, mask in golden_data.masks(family)[tag][0.75].items()}
    masks = mf.Masks.load(write(published)).rename(layout, names)
    assert masks.layout == layout
    assert masks.names == names
    for name, mask in masks.items():
        assert torch.equal(mask.float(), published[f"{names[name]}{SUFFIX}"])
    dropped = sum(int((mask == 0).sum()) for mask in published.values())
    assert sum(int((model.get_submodule(name).weight == 0).sum()) for name in masks.apply_(model)) == dropped

    path = masks.save(tmp_path / "again.pth", format="original", names=names)
    again = torch.load(path, weights_only=True)
    assert again.keys() == published.keys()
    assert all(mask.dtype == torch.bool and torch.equal(mask.float(), published[key]) for key, mask in again.items())
    assert mf.Masks.load(path).rename(layout, names) == masks


@pytest.mark.parametrize("both", [True, False])
def test_a_shared_weight_under_the_name_of_its_decoder_or_under_both(write, both):
    model = golden_data.model("blip")
    names, layout = mf.original_names(model), mf.adapter_for(model).layout(model)
    published = dict(golden_data.masks("blip")["multiflow_tied"][0.63])
    shared = [layer for layer in layout.layers if layer.aliases]
    assert len(shared) == 18
    for layer in shared:
        published[f"{layer.aliases[0]}.weight"] = published[names[layer.name]]
        if not both:
            del published[names[layer.name]]
    masks = mf.Masks.load(write({f"{name}{SUFFIX}": mask for name, mask in published.items()}))
    assert len(masks) == len(layout) + both * len(shared)
    masks = masks.rename(layout, names)
    expected = golden_data.masks("blip")["multiflow_tied"][0.63]
    assert all(torch.equal(mask, expected[names[name]]) for name, mask in masks.items())
    assert masks.names == names


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("zipped", [True, False])
def test_any_number_type_in_both_kinds_of_torch_file(write, dtype, zipped):
    content = {name: mask.to(dtype) for name, mask in release().items()}
    path = write(content, _use_new_zipfile_serialization=zipped)
    assert is_original(path)
    assert mf.Masks.load(path).rename(LAYOUT, NAMES) == MASKS


def test_biases_parameters_and_transposed_masks(write):
    whatever = torch.tensor([0.5, 2.0])
    mask = torch.nn.Parameter(A.T.float().contiguous().T)
    content = release(visual__0__fc__weight=mask, visual__0__fc__bias=whatever, head__bias=torch.ones(3))
    assert mf.Masks.load(write(content)).rename(LAYOUT, NAMES) == MASKS


def test_without_a_model_layers_have_the_names_in_the_file(write):
    masks = mf.Masks.load(write(release()))
    assert masks.layout.layers == (Layer("visual.0.fc", (3, 5), "visual"), Layer("encoder.b", (2, 2), "encoder"))
    assert torch.equal(masks["visual.0.fc"], A)
    assert masks.sparsities() == {"visual.0.fc": 7 / 15, "encoder.b": 0.5}
    assert masks.group_sparsities() == {"visual": 7 / 15, "encoder": 0.5}
    assert masks.names == {"visual.0.fc": "visual.0.fc.weight", "encoder.b": "encoder.b.weight"}


def test_names_stay_with_the_masks(write, tmp_path):
    masks = mf.Masks.load(write(release())).rename(LAYOUT, NAMES)
    ours = mf.Masks.load(masks.save(tmp_path / "mask.safetensors"))
    assert ours == masks
    assert ours.names == NAMES
    theirs = torch.load(ours.save(tmp_path / "again.pth", format="original"), weights_only=True)
    assert list(theirs) == list(release())


def test_layers_without_an_original_name_go_by_their_module_paths(write):
    path = MASKS.save(write({}), format="original", names={"tower.a": "tower.a.weight", "b": "c.weight"})
    masks = mf.Masks.load(path).rename(LAYOUT, {})
    assert masks == MASKS
    assert masks.names == {"tower.a": "tower.a.weight", "b": "c.weight"}


def test_our_own_masks_keep_their_hashes_when_renamed():
    masks = mf.Masks(LAYOUT, MASKS.packed, {"b": "00"}, {"method": "x"}, NAMES)
    other = Layout((Layer("b2", (2, 2), "t"), Layer("a2", (3, 5), "v")))
    renamed = masks.rename(other, {"a2": NAMES["tower.a"], "b2": NAMES["b"]})
    assert list(renamed) == ["b2", "a2"]
    assert (renamed.weights, renamed.settings) == ({"b2": "00"}, {"method": "x"})
    assert total(list(compare(renamed.rename(LAYOUT, NAMES), masks).values())).agreement == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder__b__weight": None, "head__weight": B, "last__weight": B},
            r"'head.weight' \(and 1 more\) is masked but no prunable layer, 'encoder.b.weight' is prunable but has no "
            "mask; use the model that they were made for",
        ),
        ({"head__weight": B}, "other layers than the model: 'head.weight' is masked but no prunable layer; use"),
        ({"encoder__b__weight": None}, "other layers than the model: 'encoder.b.weight' is prunable but has no mask"),
        ({"encoder__b__weight": B[:1]}, r"layer 'encoder.b.weight' has shape \(2, 2\), its mask \(1, 2\)"),
        ({"c__weight": ~B}, "'encoder.b.weight' and 'c.weight' are one weight, but their masks differ"),
    ],
)
def test_masks_that_do_not_fit_the_model(write, changes, message):
    masks = mf.Masks.load(write(release(**changes)))
    with pytest.raises(mf.MultiflowError, match=message):
        masks.rename(LAYOUT, NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([A], "holds a list; expected names -> masks"),
        ({}, "holds no masks"),
        ({f"x.bias{SUFFIX}": A}, "holds no masks"),
        (release() | {"visual.0.fc.weight": A}, "is no mask file: it holds 'visual.0.fc.weight'"),
        (release() | {3: A}, "is no mask file: it holds '3'"),
        (release(x__weight=0.5), rf"the mask 'x.weight{SUFFIX}' is no dense tensor"),
        (release(x__weight=A.float().to_sparse()), "is no dense tensor"),
        (release(x__weight=torch.ones(2, 2, device="meta")), "is no dense tensor"),
        (release(x__weight=torch.ones(3)), r"has shape \(3,\); expected \(out, in\)"),
        (release(x__weight=torch.ones(0, 3)), r"has shape \(0, 3\); expected \(out, in\)"),
        (release(x__weight=torch.tensor([[1.0, 0.5]])), "holds other values than 0 and 1"),
        (release(x__weight=torch.tensor([[1.0, torch.nan]])), "holds other values than 0 and 1"),
        (release(x__weight=torch.tensor([[1, 255]], dtype=torch.uint8)), "holds other values than 0 and 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*sparse.*:UserWarning")
def test_files_that_hold_something_else(write, content, message):
    with pytest.raises(mf.MultiflowError, match=message):
        mf.Masks.load(write(content))


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_wants_to_run_code_is_refused(write, tmp_path, zipped):
    there = tmp_path / "ran"
    path = write(release(x__weight=Malicious(there)), _use_new_zipfile_serialization=zipped)
    with pytest.raises(mf.MultiflowError, match=r"wants to run \w+\.mkdir, and only tensors are read; if you trust"):
        mf.Masks.load(path)
    path.write_bytes(pickle.dumps(Malicious(there)))
    with pytest.raises(mf.MultiflowError, match="is not a complete torch file"):
        mf.Masks.load(path)
    assert not there.exists()
    pickle.loads(path.read_bytes())
    assert there.exists()  # so there was something to refuse


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(write, zipped, keep):
    path = write(release(x__weight=torch.ones(50, 50)), _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(mf.MultiflowError, match="not a complete torch file; copy it again"):
        mf.Masks.load(path)


def test_other_files_are_none_of_the_release(write, tmp_path):
    assert not is_original(MASKS.save(tmp_path / "mask.safetensors"))
    assert not is_original(write({"visual.0.fc.weight": A}))
    assert not is_original(tmp_path)
    assert not is_original(tmp_path / "none")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"b": "b.weight"}, "no original name for layer 'tower.a'"),
        ({"tower.b": "x.weight", "b": "b.weight"}, "for layer 'tower.a'; did you mean 'tower.b'"),
        (None, "no original name for layer 'tower.a'"),
        ({"tower.a": "a", "b": "b.weight"}, "calls layer 'tower.a' 'a'; expected a parameter name, '....weight'"),
        ({"tower.a": "x.weight", "b": "x.weight"}, "'tower.a' and 'b' have the same original name 'x.weight'"),
    ],
)
def test_names_that_do_not_fit_write_nothing(tmp_path, names, message):
    with pytest.raises(mf.MultiflowError, match=message):
        MASKS.save(tmp_path / "masks.pth", format="original", names=names)
    assert list(tmp_path.iterdir()) == []


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = MASKS.save(tmp_path / "masks.pth", format="original", names=NAMES)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(mf.MultiflowError, match=r"cannot write .* \(No space left\)"):
        MASKS.save(path, format="original", names=NAMES)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_format(tmp_path):
    with pytest.raises(mf.MultiflowError, match="'orginal'; known: multiflow, original"):
        MASKS.save(tmp_path / "masks.pth", format="orginal")
