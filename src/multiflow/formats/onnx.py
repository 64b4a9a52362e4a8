"""ONNX: a model for other runtimes. Its zeros are values like any other there, so a smaller model is what pays."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.guards import is_shortage
from multiflow.formats.examples import NamedInputs, cast, example_batch

ONNX_FILE = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
CLOSE, CLOSE_INT8 = 1e-3, 0.2  # share of the largest output by which those of the file may differ


def write_onnx(model: Any, folder: Path, int8: bool = False, batch: Mapping[str, Tensor] | None = None) -> Path:
    """Write a model as ``model.onnx``, and compare what onnxruntime computes with it; return the path.

    Args:
        model: of transformers, whose forward takes tensors by name and gives tensors by name.
        folder: where to write.
        int8: whether onnxruntime quantises the weights of its matrix products.
        batch: example inputs; None = random images and texts. The number of samples stays free.

    Raises:
        MultiflowError: a package is not installed, the model cannot be exported, or the file computes something else.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MultiflowError(
            f"format 'onnx' needs {', '.join(missing)}, which is not installed; pip install -e '.[onnx]'",
            field="format",
        )
    model = copy.deepcopy(model).float().eval()
    given = cast(example_batch(model, 2) if batch is None else dict(batch), model)
    path = folder / ONNX_FILE
    noise = StringIO()
    with torch.inference_mode(), warnings.catch_warnings(), redirect_stdout(noise), redirect_stderr(noise):
        warnings.simplefilter("ignore")
        quiet = logging.getLogger("torch.onnx")
        level = quiet.level
        quiet.setLevel(logging.CRITICAL)
        try:
            found = model(**given, return_dict=True)
            outputs = tuple(name for name, value in found.items() if isinstance(value, Tensor))
            plain = NamedInputs(model, tuple(given), outputs)
            free = torch.export.Dim("samples", min=1)
            program = torch.onnx.export(
                plain,
                tuple(given.values()),
                input_names=list(given),
                output_names=list(outputs),
                dynamic_shapes=(tuple({0: free} for _ in given),),
                dynamo=True,
            )
            program.save(path)  # type: ignore[union-attr]
        except Exception as error:  # what the exporter cannot follow, it says in many classes
            if is_shortage(error):
                raise
            said = " ".join(str(error).split())[:200]
            raise MultiflowError(f"a {type(model).__name__} cannot be exported to ONNX ({said})") from error
        finally:
            quiet.setLevel(level)
    if int8:
        _quantise(path)
    _compare(path, {name: value[:1] for name, value in given.items()}, model, outputs, CLOSE_INT8 if int8 else CLOSE)
    return path


def _quantise(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_name("whole.onnx")
    path.rename(whole)
    beside = path.with_name(f"{path.name}.data")
    level = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)  # it advises to pre-process, by a warning on the root logger
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8)
    finally:
        logging.getLogger().setLevel(level)
        whole.unlink()
        beside.unlink(missing_ok=True)


def _compare(path: Path, given: Mapping[str, Tensor], model: Any, outputs: tuple[str, ...], close: float) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    takes = {value.name for value in session.get_inputs()}
    theirs = session.run(list(outputs), {name: value.numpy() for name, value in given.items() if name in takes})
    with torch.inference_mode():
        ours = model(**given, return_dict=True)
    for name, array in zip(outputs, theirs, strict=True):
        truth, found = ours[name].float(), torch.from_numpy(array).float()
        if truth.shape != found.shape or (truth - found).abs().max() > close * truth.abs().max() + 1e-6:
            raise MultiflowError(f"the ONNX file computes another '{name}' than the model; the export was given up")
