"""What lies beside a model's weights: configs, tokenizers, processors; and the config of a grid."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from multiflow.bench.config import read_grid
from multiflow.data.examples import Sample
from multiflow.data.text import build_word_tokenizer, encode_texts
from multiflow.families import adapter_for
from multiflow.families.automatic.processors import load_processor
from multiflow.families.automatic.reading import reader_of
from multiflow.families.opening import fitting_tokenizer, load_model, pixel_statistics
from multiflow.families.original import read_config
from tests.families.automatic import processors
from tests.robust.fuzz import Target

WORDS = ["a photo of two dogs", "left right , ."]


def read_tokenizer(folder: Path) -> Any:
    """Load a tokenizer for a model of 40 embeddings, and encode texts: all ids must have one."""
    tokenizer = fitting_tokenizer(str(folder), str(folder), 40)
    ids, mask = encode_texts(tokenizer, ["a photo of two dogs, left", "unheard of \U0001f600"], max_length=9)
    assert ids.shape == mask.shape
    assert 0 <= ids.min() <= ids.max() < 40
    return ids.tolist()


def _tokenizer(folder: Path) -> None:
    build_word_tokenizer(WORDS).save_pretrained(folder)


def _bert(folder: Path) -> None:
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(WORDS).split(), "##s"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )


def read_processor(folder: Path) -> Any:
    """Read what a model expects of pixels."""
    found = pixel_statistics(str(folder))
    assert all(len(values) == 3 for values in found.values())
    return found


def _processor(folder: Path) -> None:
    folder.mkdir()
    content = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def _config_json(folder: Path) -> None:
    folder.mkdir()
    (folder / "text.json").write_text(json.dumps({"hidden_size": 16, "vocab_size": 40}))
    (folder / "config.json").write_text(
        json.dumps({"image_res": 16, "text_config": "text.json", "deep": {"a": [1, 2]}})
    )


def _config_yaml(folder: Path) -> None:
    _config_json(folder)
    (folder / "config.yaml").write_text(
        "image_res: 16\nvision: &v {width: 8}\nother: {<<: *v, lr: 1e-4}\ntext_config: text.json\n"
    )


def _read_config(name: str, folder: Path) -> Any:
    return read_config(folder / name, {"base": {}})


def read_config_json(folder: Path) -> Any:
    """Read the config of an original release, in JSON."""
    return _read_config("config.json", folder)


def read_config_yaml(folder: Path) -> Any:
    """Read the config of an original release, in YAML."""
    return _read_config("config.yaml", folder)


def _grid(folder: Path) -> None:
    folder.mkdir()
    content = {
        "name": "a",
        "variables": {"data": "runs/data", "steps": 3},
        "models": {"m": {"source": "xvlm-shapes", "tasks": ["retrieval"], "calibration": {"batches": 2}}},
        "tasks": {"retrieval": {"data": "${data}/coco", "finetune": {"steps": "${steps}"}}},
        "tiers": [{"name": "1", "pruners": ["dense", "wanda"], "sparsities": [0.5, 0.75], "seeds": [0, 1]}],
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(content))


def read_bench(folder: Path) -> Any:
    """Read the config of a grid, and again what is kept of it beside the results."""
    grid, resolved = read_grid(folder / "grid.yaml")
    with tempfile.TemporaryDirectory() as other:
        (Path(other) / "again.yaml").write_text(resolved)
        assert read_grid(Path(other) / "again.yaml")[0] == grid
    return None


@cache
def _vlm(kind: str) -> tuple[Path, Any]:
    """A tiny model of transformers with its processor, in a folder that stays as long as the process."""
    folder = getattr(processors, kind)(Path(tempfile.mkdtemp(prefix="fuzz-")) / kind)
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    return folder, load_model(folder)


def _own_processor(kind: str, folder: Path) -> None:
    shutil.copytree(_vlm(kind)[0], folder, ignore=shutil.ignore_patterns("*.safetensors"))


def read_own_processor(kind: str, folder: Path) -> Any:
    """Load a model's own processor, and make a batch of an image and a text with it."""
    model = _vlm(kind)[1]
    reader = reader_of(model, load_processor(None, str(folder), model))
    return {name: of.shape for name, of in reader.examples([Sample(Image.new("RGB", (9, 8)), "a red square")]).items()}


def _vit(folder: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)).save_pretrained(folder)


def read_model(folder: Path) -> Any:
    """Load a model of transformers; lay out its layers."""
    return list(adapter_for(load_model(folder)).layout(load_model(folder)))


TARGETS = [
    *(
        Target(f"processor-{kind}", partial(_own_processor, kind), partial(read_own_processor, kind), weight=0.2)
        for kind in ("clip", "llava", "qwen2_5_vl")
    ),
    Target("model-folder", _vit, read_model, weight=0.3),
    Target("tokenizer", _tokenizer, read_tokenizer, weight=0.5),
    Target("tokenizer-bert", _bert, read_tokenizer, weight=0.5),
    Target("processor", _processor, read_processor, weight=0.5),
    Target("config-json", _config_json, read_config_json, weight=0.5),
    Target("config-yaml", _config_yaml, read_config_yaml),
    Target("bench-yaml", _grid, read_bench, weight=2),
]
