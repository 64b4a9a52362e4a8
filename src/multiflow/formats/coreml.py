"""CoreML: a model for Apple's devices, its sparse weights as a bit each and the values that are kept.

The package is made and read back on any machine; only macOS can run it.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.formats.examples import NamedInputs, cast, example_batch

COREML_FILE, LABELS_FILE = "model.mlpackage", "labels.txt"
COREML_VALUES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.float32}
"""How kept weights are stored -> the dtype of the package; CoreML has no bfloat16, which float32 holds exactly."""
LEAST = 0.2  # share of zeros from which a weight is stored sparse


def write_coreml(model: Any, folder: Path, values: str = "fp32", batch: Mapping[str, Tensor] | None = None) -> Path:
    """Write a model as ``model.mlpackage``, read its weights back and compare them; return the path.

    Every weight that is not zero is kept, however small: CoreML's tools would take one below 1e-3 for zero.

    Args:
        model: of transformers, whose forward takes tensors by name and gives tensors by name.
        folder: where to write; ``labels.txt`` has the names of a classifier's outputs, one a line in their order.
        values: of `COREML_VALUES`.
        batch: example inputs, whose sizes are those of the package; None = one random image or text.

    Raises:
        MultiflowError: coremltools is not installed, cannot convert the model, or what it wrote differs.
    """
    if importlib.util.find_spec("coremltools") is None:
        raise MultiflowError(
            "format 'coreml' needs coremltools, which is not installed; pip install -e '.[coreml]'", field="format"
        )
    if values not in COREML_VALUES:
        raise MultiflowError(
            f"format 'coreml' holds float32 or float16, not values in '{values}'; give fp32 or fp16", field="values"
        )
    model = copy.deepcopy(model).float().eval()
    given = cast(example_batch(model, 1) if batch is None else dict(batch), model)
    path = folder / COREML_FILE
    if values == "fp16":
        _refuse_lost(model)
    with _silent():
        try:
            written = _convert(model, given, COREML_VALUES[values])
            written.save(str(path))
            stored = stored_weights(path)
        except Exception as error:  # what the converter cannot follow, it says in many classes
            said = " ".join(str(error).split())[:200]
            raise MultiflowError(f"a {type(model).__name__} cannot be converted to CoreML ({said})") from error
    _compare_weights(model, stored, COREML_VALUES[values])
    names = getattr(model.config, "id2label", None)
    if names and hasattr(model, "num_labels") and type(model).__name__.endswith("Classification"):
        (folder / LABELS_FILE).write_text("".join(f"{names[number]}\n" for number in sorted(names)), encoding="utf-8")
    return path


def stored_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Return the weights of a package by name, dense; those that are stored sparse as well.

    Args:
        path: a package that `write_coreml` wrote.
    """
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = load(model_spec=spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
    found: dict[str, np.ndarray] = {}
    for operation in program.functions["main"].operations:
        name, value = operation.outputs[0].name, operation.outputs[0].val
        if operation.op_type == "constexpr_sparse_to_dense":
            shape = tuple(operation.shape.val)
            bits = np.unpackbits(operation.mask.val, count=int(np.prod(shape)), bitorder="little").astype(bool)
            value = np.zeros(bits.shape, operation.nonzero_data.val.dtype)
            value[bits] = operation.nonzero_data.val
            found[name.removesuffix("_sparsified").removesuffix("_to_fp16")] = value.reshape(shape)
        elif operation.op_type == "const" and isinstance(value, np.ndarray) and name.rpartition("_")[0] not in found:
            found[name.removesuffix("_to_fp16")] = value
    return found


def _convert(model: Any, given: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    import coremltools
    from coremltools.optimize import coreml as optimize

    with torch.no_grad():
        outputs = tuple(name for name, value in model(**given, return_dict=True).items() if isinstance(value, Tensor))
        program = torch.export.export(NamedInputs(model, tuple(given), outputs).eval(), tuple(given.values()))
    precision = coremltools.precision.FLOAT16 if dtype == torch.float16 else coremltools.precision.FLOAT32
    dense = coremltools.convert(
        program.run_decompositions({}),
        outputs=[coremltools.TensorType(name=name) for name in outputs],
        minimum_deployment_target=coremltools.target.iOS16,  # the first with sparse weights
        compute_precision=precision,
        convert_to="mlprogram",
    )
    every = optimize.OpThresholdPrunerConfig(threshold=0.0, minimum_sparsity_percentile=LEAST, weight_threshold=0)
    return optimize.prune_weights(dense, optimize.OptimizationConfig(global_config=every))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the progress bars and notes of the converter to itself."""
    noise, before = StringIO(), logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(noise), redirect_stderr(noise):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def _compare_weights(model: Any, stored: Mapping[str, np.ndarray], dtype: torch.dtype) -> None:
    """Compare every parameter of which a large part is zero with what the package holds.

    A weight has the name of the first of the parameters that share it, and may lie transposed.
    """
    there = {name: torch.from_numpy(value.copy()) for name, value in stored.items() if value.dtype.kind == "f"}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.dim() < 2 or (weight == 0).float().mean() < LEAST:
            continue
        wanted = weight.to(dtype)
        known = [value for key, value in there.items() if key.endswith(f"model_{name}".replace(".", "_"))]
        alike = known or [value for value in there.values() if value.numel() == weight.numel()]
        if any(torch.equal(one.to(dtype), form) for one in alike for form in (wanted, wanted.mT)):
            continue
        raise MultiflowError(f"the CoreML package holds another '{name}' than the model; the export was given up")


def _refuse_lost(model: Any) -> None:
    """Refuse float16 for weights that are zero or infinite in it."""
    for name, parameter in model.named_parameters():
        lost = int(((parameter != 0) & (parameter.half() == 0)).sum())
        large = int(parameter.half().isinf().sum())
        if lost or large:
            what = f"{lost} kept weights of '{name}' are zero" if lost else f"{large} weights of '{name}' are infinite"
            raise MultiflowError(f"{what} in float16; give --values fp32", field="values")
