"""Weights of open_clip in and out, against its architecture written down here with torch's own attention."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import multiflow as mf

WIDTH, TEXT, DIM, WORDS, LENGTH, SIDE, PATCH, HEADS = 32, 16, 8, 40, 6, 16, 8, 2


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 2 * width), "c_proj": nn.Linear(2 * width, width)})

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


def stack(width: int, heads: int) -> nn.Module:
    return nn.ModuleDict({"resblocks": nn.ModuleList(Block(width, heads) for _ in range(2))})


class OpenClip(nn.Module):
    """The names and the order of open_clip's CLIP with a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.visual.positional_embedding = nn.Parameter(torch.randn(1 + (SIDE // PATCH) ** 2, WIDTH))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.visual.transformer = stack(WIDTH, HEADS)
        self.visual.proj = nn.Parameter(torch.randn(WIDTH, DIM))
        self.token_embedding = nn.Embedding(WORDS, TEXT)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, TEXT))
        self.transformer = stack(TEXT, HEADS)
        self.ln_final = nn.LayerNorm(TEXT)
        self.text_projection = nn.Parameter(torch.randn(TEXT, DIM))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, pixels):
        x = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.expand(len(x), 1, -1)
        x = self.visual.ln_pre(torch.cat([first, x], 1) + self.visual.positional_embedding)
        for block in self.visual.transformer["resblocks"]:
            x = block(x)
        return self.visual.ln_post(x[:, 0]) @ self.visual.proj

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection


SIZES = {"vision_cfg": {"head_width": WIDTH // HEADS}, "text_cfg": {"heads": HEADS}}
IDS = torch.tensor([[WORDS - 2, 5, 6, WORDS - 1, 0, 0], [WORDS - 2, 7, WORDS - 1, 0, 0, 0]])


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    return OpenClip().eval()


def features(model, pixels):
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels).pooler_output
        return image, model.get_text_features(input_ids=IDS).pooler_output


@pytest.mark.parametrize("prefix", ["", "text."])
def test_a_state_dict_of_open_clip_becomes_the_same_model(theirs, tmp_path, prefix):
    state = {
        name if name.startswith(("visual.", "logit_scale")) else f"{prefix}{name}": tensor
        for name, tensor in theirs.state_dict().items()
    }
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    model = mf.load_model(tmp_path / "open_clip_pytorch_model.bin", family="open_clip", config=SIZES)
    assert type(model) is transformers.CLIPModel
    pixels = torch.rand(2, 3, SIDE, SIDE)
    image, text = features(model, pixels)
    with torch.no_grad():
        torch.testing.assert_close(image, theirs.encode_image(pixels), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text, theirs.encode_text(IDS), rtol=1e-4, atol=1e-5)
    masks = mf.prune(model, "magnitude", 0.5).masks[0.5]
    assert set(masks.group_sparsities()) == {"vision", "text"}


def test_a_sparse_clip_goes_out_and_comes_back(theirs, tmp_path, run):
    (tmp_path / "sizes.json").write_text(json.dumps({"model_cfg": SIZES}))
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    model = mf.load_model(tmp_path / "clip.pt", family="open_clip", config=str(tmp_path / "sizes.json"))
    masks = mf.prune(model, "magnitude", 0.5).masks[0.5]
    masks.save(tmp_path / "mask.safetensors")
    model.save_pretrained(tmp_path / "clip")
    out = tmp_path / "out"
    ran = run(
        "export", tmp_path / "clip", "--mask", tmp_path / "mask.safetensors", "--format", "open_clip", "--out", out
    )
    assert ran.code == 0, ran
    # 1. open_clip takes every tensor by its name, and computes what the sparse model computes
    state = load_file(out / "open_clip_model.safetensors")
    theirs.load_state_dict(state, strict=True)
    masks.apply_(model)
    pixels = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode_image(pixels), features(model, pixels)[0], rtol=1e-4, atol=1e-5)
    kept = torch.cat([masks[f"text_model.encoder.layers.0.self_attn.{of}_proj"] for of in "qkv"])
    assert not state["transformer.resblocks.0.attn.in_proj_weight"][~kept].any()
    # 2. its config says the sizes, and both come back
    said = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]
    sizes = {"image_size": SIDE, "patch_size": PATCH, "width": WIDTH, "head_width": WIDTH // HEADS}
    assert said["vision_cfg"] == sizes | {"layers": 2, "mlp_ratio": 2}
    again = mf.load_model(
        out / "open_clip_model.safetensors", family="open_clip", config=str(out / "open_clip_config.json")
    )
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_is_no_clip_with_a_vision_transformer(theirs, tmp_path, vlm):
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name != "visual.conv1.weight"}
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(mf.MultiflowError, match="the file has no tensor 'visual.conv1.weight'"):
        mf.load_model(tmp_path / "clip.pt", family="open_clip")
    with pytest.raises(mf.MultiflowError, match="has no form in open_clip"):
        mf.export(mf.load_model(vlm("siglip")), None, tmp_path / "out", "open_clip")
    assert not (tmp_path / "out").exists()


def test_a_file_brings_no_processor(theirs, tmp_path, run, vlm):
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    (tmp_path / "sizes.json").write_text(json.dumps(SIZES))
    (tmp_path / "t.csv").write_text("image,caption\na.png,a dog\n")
    from tests.data.worlds import write_images

    write_images(tmp_path, ["a.png"])
    how = ("--family", "open_clip", "--config", tmp_path / "sizes.json", "--data", tmp_path / "t.csv", "--split", "all")
    assert (
        "brings no processor; name one with --processor"
        in run("evaluate", "retrieval", tmp_path / "clip.pt", *how).error
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {"vision_cfg": 0.5},
        {"vision_cfg": {"head_width": []}},
        {"vision_cfg": {"head_width": 0}},
        {"text_cfg": {"heads": 1.5}},
        {"text_cfg": {"heads": 10**30}},
        {"text_cfg": {"heads": 5}},
        {"quick_gelu": "yes"},
        {"model_cfg": 5},
    ],
)
def test_sizes_that_cannot_be(theirs, tmp_path, sizes):
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(mf.MultiflowError, match=r"sizes of the model"):
        mf.load_model(tmp_path / "clip.pt", family="open_clip", config=sizes)
