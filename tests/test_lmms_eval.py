"""The plugin for lmms-eval: with lmms-eval itself where it is installed, else with a stand-in of its interface, 0.7."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
import types
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import multiflow as mf
from tests.data.worlds import picture

INSTALLED = importlib.util.find_spec("lmms_eval") is not None


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class StandIn:
    """What a model of lmms-eval inherits, as far as the plugin uses it."""

    is_simple = True

    def __init__(self) -> None:
        self.cache_hook = types.SimpleNamespace(add_partial=lambda attr, request, said: None)
        self.task_dict: dict[str, Any] = {}

    @classmethod
    def create_from_arg_string(cls, text, more=None):
        pairs = dict(part.split("=") for part in text.split(","))
        return cls(**pairs, **(more or {}))

    @staticmethod
    def _resolve_system_prompt(value):
        return value

    def _apply_system_prompt(self, messages, prompt):
        return [{"role": "system", "content": [{"type": "text", "text": prompt}]}, *messages]


@pytest.fixture(autouse=True)
def lmms_eval(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("multiflow.lmms_eval")]:
        monkeypatch.delitem(sys.modules, name)
    if INSTALLED:
        return
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = StandIn
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest


@dataclass
class Request:
    """An `Instance` of lmms-eval, as far as a model sees it."""

    args: tuple
    resps: list = field(default_factory=list)


def model_class() -> Any:
    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]
    manifest = EntryPoint("multiflow", declared["lmms_eval.models"]["multiflow"], "lmms_eval.models").load()()
    assert manifest.model_id == "multiflow"
    module, _, name = manifest.chat_class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def asked(number: int, size: int = 20) -> dict[str, Any]:
    return {"image": Image.fromarray(picture(number, size, size)), "question": f"what is {number}?"}


def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def requests(count: int, **how: Any) -> list[Request]:
    how = {"max_new_tokens": 4, "temperature": 0, "until": ["\n\n"], **how}
    return [Request((f"q{i}", messages, how, i, "task", "test")) for i in range(count)]


def opened(vlm, kind: str = "smolvlm", **more: Any) -> Any:
    made = model_class().create_from_arg_string(
        f"pretrained={vlm(kind)}", {"device": "cpu", "dtype": "float32", **more}
    )
    made.task_dict = {"task": {"test": [asked(i, 20 + 4 * i) for i in range(3)]}}
    return made


def test_the_manifest_names_a_model_for_chats():
    assert model_class().is_simple is False
    assert model_class().__mro__[1].__name__ == ("lmms" if INSTALLED else "StandIn")


def test_answers_are_those_of_the_model_one_by_one_and_in_batches(vlm):
    said = opened(vlm).generate_until(requests(3))
    assert len(said) == 3
    assert opened(vlm, batch_size=3).generate_until(requests(3)) == said
    model = opened(vlm)
    text = model.reader.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is 1?"}]}],
        add_generation_prompt=True,
    )
    batch = model.reader.processor(text=[text], images=[[asked(1, 24)["image"]]], return_tensors="pt")
    found = model.model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert (
        model.reader.tokenizer.decode(found[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        == said[1]
    )


def test_a_mask_is_put_on(vlm, tmp_path):
    file = tmp_path / "mask.safetensors"
    mf.prune(mf.load_model(vlm("llava")), "magnitude", 0.75).masks[0.75].save(file)
    sparse = model_class().create_from_arg_string(f"pretrained={vlm('llava')},mask={file}", {"device": "cpu"})
    assert mf.Masks.load(file).is_applied(sparse.model)


def test_a_text_ends_at_a_stop_word_and_requests_told_otherwise_are_apart(vlm):
    model = opened(vlm, batch_size=4)
    (whole,) = model.generate_until(requests(1))
    stop = whole[1] if len(whole) > 1 else "z"
    mixed = requests(1, until=stop) + requests(1)
    assert model.generate_until(mixed) == [whole.split(stop)[0].strip(), whole]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "paligemma"])
def test_the_likelihood_of_a_continuation(vlm, kind):
    model = opened(vlm, kind)
    image = asked(0)["image"]
    request = Request(("what?", "a dot", lambda doc: [doc["image"]], 0, "task", "test"))
    ((found, likeliest),) = model.loglikelihood([request])
    from multiflow.data.examples import Sample

    batch = model.reader.examples([Sample(image, "a dot", "what?")])
    with torch.no_grad():
        loss = model.model(**batch).loss
    assert found == pytest.approx(-float(loss) * int((batch["labels"] != -100).sum()), rel=1e-4)
    assert likeliest is False


def test_what_it_cannot_do_is_said(vlm):
    with pytest.raises(mf.MultiflowError, match=r"unknown argument .*'masks'.* did you mean 'mask'"):
        opened(vlm, masks="a")
    with pytest.raises(mf.MultiflowError, match="takes a model that writes texts"):
        opened(vlm, "clip")
    model = opened(vlm)
    model.task_dict = {"task": {"test": [{"image": "clip.mp4", "question": "?"}]}}
    film = [{"role": "user", "content": [{"type": "video", "url": "clip.mp4"}]}]
    with pytest.raises(mf.MultiflowError, match="asks about a video"):
        model.generate_until([Request(("", lambda doc: film, {}, 0, "task", "test"))])
    with pytest.raises(mf.MultiflowError, match="one round"):
        model.generate_until_multi_round([])
