"""How fast a model is on this machine, dense and in every form that its zeros allow: measured side by side.

All forms of a model run in turns, so that whatever else the machine does meets all of them; a figure is the median of
its turns. The time of a part (vision, text, fusion, ...) is that of the blocks whose prunable layers are in its group.
A decoding step is what one more token costs ``generate``.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.guards import check_module, check_values, exclusively, is_shortage
from multiflow.base.steps import Watch, watched
from multiflow.base.types import Layout, LiveWeights
from multiflow.calibration import evaluating
from multiflow.families import adapter_for
from multiflow.families.opening import load_model
from multiflow.formats.examples import cast, example_batch, resized
from multiflow.formats.figures import DENSE_FORMS, STEP, WHOLE, FormSize, SpeedCell, SpeedTable
from multiflow.formats.packed import export
from multiflow.formats.runtime import sparse_runtime
from multiflow.formats.timing import Timing, in_turns
from multiflow.masks import Masks

SAMPLES = (1, 8, 64)
TURNS = 7
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What a time is: seconds that pass, or seconds that processors spend on this process, on machines that others use."""
NEW = 8  # tokens by which a decoding step is measured
PROMPT = 4  # tokens
FILES = {"dense bf16": torch.bfloat16, "dense fp32": torch.float32, "sparse bf16": "bf16", "sparse int8": "int8"}
"""Form -> how it is written: the dtype of an ordinary folder, or the values of a packed one."""
FORMS = (*DENSE_FORMS, "dense int8", "sparse fp32", "sparse bf16", "sparse int8")
"""In which a model can be measured; those with ``sparse`` need masks."""


@watched
@exclusively("speed")
def speed(
    model: nn.Module,
    masks: Masks | None = None,
    *,
    batch: Any = None,
    samples: Sequence[int] = SAMPLES,
    forms: Sequence[str] | None = None,
    others: Mapping[str, nn.Module] | None = None,
    adapter: Adapter | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    seconds: float = 60.0,
    files: bool = True,
    steps: bool = True,
    clock: str = "wall",
    progress: Watch = None,
) -> SpeedTable:
    """Measure a model on this machine's CPU: dense, and in the forms that its masks allow, side by side.

    Args:
        model: on the CPU; it is not changed.
        masks: of this model; None = what is zero in it, and where that is less than a fifth only dense forms.
        batch: a batch of the model; it is repeated or cut to the numbers of samples. None = random images and texts.
        samples: how many at a time.
        forms: names of `FORMS`, with a space or a hyphen; None = all but ``sparse fp32``.
        others: name -> another model for the same inputs, such as a smaller one.
        adapter: of a model that the library does not know.
        weights: layer name -> the weight that a method changed, ``result.weights[sparsity]``.
        seconds: about how long to measure, the making of the forms aside.
        files: whether to write every form to a temporary folder, for its size and the time to load it.
        steps: whether to measure a decoding step too, where the model or one built from it writes.
        clock: ``wall``, or ``cpu`` for the seconds that processors spend on this process, of all threads together: what
            others do on the machine hardly counts then.
        progress: ``f(what, done, total)``, called as the work goes on; None shows bars where a person looks (a
            terminal, a notebook), False nothing.

    Raises:
        MultiflowError: the masks are those of another model, a name is unknown, or no inputs can be made.

    >>> print(mf.speed(model, result.masks[0.75]))      # doctest: +SKIP
    """
    wanted = [form for form in FORMS if form != "sparse fp32"] if not forms else [f.replace("-", " ") for f in forms]
    for form in wanted:
        if form not in FORMS:
            raise unknown("form", form, FORMS)
    if clock not in CLOCKS:
        raise unknown("clock", clock, CLOCKS)
    if not samples or min(samples) < 1:
        raise MultiflowError(f"samples is {list(samples)}; expected whole numbers of at least 1")
    check_module(model)
    found = adapter or adapter_for(model)
    layout = found.layout(model)
    check_values(LiveWeights(model, layout))
    masks = zeros_of(model, layout) if masks is None else masks
    if masks is None:
        wanted = [form for form in wanted if form.startswith("dense")]
    given = example_batch(model, max(samples)) if batch is None else batch
    left_out: dict[str, str] = {}
    with evaluating(model):
        made = _forms(model, masks, weights, wanted, left_out) | dict(others or {})
        if not made:
            raise MultiflowError("there is nothing to measure: " + "; ".join(left_out.values()))
        sizes = {form: FormSize(memory_of_weights(one)) for form, one in made.items()}
        writer = task_decoder(model, masks) if steps else None
        writers = {} if writer is None else _forms(*writer, None, wanted, {})
        jobs = len(samples) * (2 if writers else 1)
        cells: list[SpeedCell] = []
        for number, count in enumerate(samples):
            inputs = resized(given, count)
            if inputs is None:
                count, inputs = 0, given  # a batch that cannot be resized is taken as it is
            cells += _forwards(made, found, layout, inputs, count, seconds / jobs, left_out, CLOCKS[clock])
            if writers and inputs is not None:
                own = writer is not None and writer[0] is model
                cells += token_steps(writers, inputs, count, seconds / jobs, own, CLOCKS[clock])
            if progress:
                progress("measure", number + 1, len(samples))
            if not count:
                break
        if files and hasattr(model, "save_pretrained"):
            for form in made:
                if form in FILES and (masks is not None or form in DENSE_FORMS):
                    sizes[form] = _on_disk(model, masks, weights, form, sizes[form].memory)
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return SpeedTable(str(name), tuple(cells), sizes, left_out, {**_machine(), "time": clock})


def zeros_of(model: nn.Module, layout: Layout, least: float = 0.2) -> Masks | None:
    """Return masks of the weights of a model that are zero, or None where those are less than a share of them."""
    tensors = {name: (weight.detach() != 0).cpu() for name, weight in LiveWeights(model, layout).items()}
    masks = Masks.from_tensors(layout, tensors)
    return masks if masks.sparsity >= least else None


def _forms(
    model: nn.Module,
    masks: Masks | None,
    weights: Mapping[str, torch.Tensor] | None,
    wanted: Sequence[str],
    left_out: dict[str, str],
) -> dict[str, nn.Module]:
    """Make the forms of a model; why one cannot be made goes into ``left_out``."""
    made: dict[str, nn.Module] = {}
    for form in wanted:
        kind, values = form.split()
        try:
            if kind == "sparse" and masks is not None:
                made[form] = sparse_runtime(model, masks, values=values, weights=weights)
            elif form == "dense int8":
                made[form] = quantised(model)
            else:
                made[form] = copy.deepcopy(model).to({"fp32": torch.float32, "bf16": torch.bfloat16}[values])
        except Exception as error:  # what torch's quantisation or a model's copy may raise is open
            if (isinstance(error, MultiflowError) and kind == "sparse") or is_shortage(error):
                raise
            left_out[form] = f"cannot be made ({' '.join(str(error).split())[:200]})"
    return made


def quantised(model: nn.Module) -> nn.Module:
    """Return a copy in which torch computes linear layers in int8, inputs quantised as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this moves to another package
        changed = torch.ao.quantization.quantize_dynamic(model.float(), {nn.Linear}, dtype=torch.qint8, inplace=False)
    return changed


def memory_of_weights(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers, shared ones once, torch's quantised weights included."""
    seen: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    for module in model.modules():
        packed = getattr(module, "_packed_params", None)
        with suppress(AttributeError, RuntimeError):
            for tensor in packed._weight_bias() if packed is not None else ():
                if tensor is not None:
                    seen[id(module) + tensor.dim()] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def _forwards(
    made: Mapping[str, nn.Module],
    adapter: Adapter,
    layout: Layout,
    inputs: Any,
    samples: int,
    seconds: float,
    left_out: dict[str, str],
    clock: Callable[[], float],
) -> list[SpeedCell]:
    """Time whole forwards and, inside them, the blocks of each group."""
    spent: dict[tuple[str, str], list[float]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for form, one in made.items():
        batch = cast(inputs, one)

        def run(form: str = form, one: nn.Module = one, batch: Any = batch) -> None:
            with torch.inference_mode(), _watched(one, layout, clock) as parts:
                adapter.forward(one, batch)
            for part, took in parts.items():
                spent.setdefault((form, part), []).append(took)

        try:
            run()
        except Exception as error:  # a form that does not run is left out, whatever it raises
            if is_shortage(error):
                raise
            if form == next(iter(made)):
                raise MultiflowError(
                    f"the model does not run on its example inputs ({' '.join(str(error).split())[:200]}); give a batch"
                ) from error
            left_out[form] = f"does not run ({' '.join(str(error).split())[:200]})"
            continue
        runs[form] = run
    timed = in_turns(runs, TURNS, most=seconds, clock=clock)
    cells = []
    for form, timing in timed.items():
        own = [part for name, part in spent if name == form]
        turns = len(timing.seconds)
        if len(own) > 1:  # one part alone is nearly the whole
            cells += [SpeedCell(form, part, samples, Timing(tuple(spent[form, part][-turns:]))) for part in own]
        cells.append(SpeedCell(form, WHOLE, samples, timing))
    return cells


@contextmanager
def _watched(model: nn.Module, layout: Layout, clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Sum the time inside the blocks of each group."""
    took: dict[str, float] = {}
    began: list[float] = []
    handles = []

    def before(*_: Any) -> None:
        began.append(clock())

    def after(part: str) -> Callable[..., None]:
        def done(*_: Any) -> None:
            passed = clock() - began.pop()
            if not began:  # a block inside another one counts with that
                took[part] = took.get(part, 0.0) + passed

        return done

    modules = dict(model.named_modules())
    try:
        for path, part in parts_of(layout).items():
            if path in modules:
                handles.append(modules[path].register_forward_pre_hook(before))
                handles.append(modules[path].register_forward_hook(after(part)))
        yield took
    finally:
        for handle in handles:
            handle.remove()


def parts_of(layout: Layout) -> dict[str, str]:
    """Return the path of each numbered block -> the group that most of its prunable weights are in.

    >>> from multiflow.base.types import Layer
    >>> parts_of(Layout((Layer("tower.layers.0.fc", (2, 2), "vision"),)))
    {'tower.layers.0': 'vision'}
    """
    shares: dict[str, dict[str, int]] = {}
    for layer in layout.layers:
        for path in layer.paths:
            words = path.split(".")
            number = next((at for at, word in enumerate(words) if word.isdigit()), None)
            if number is not None:
                block = ".".join(words[: number + 1])
                of = shares.setdefault(block, {})
                of[layer.group] = of.get(layer.group, 0) + layer.size
    return {block: max(of, key=lambda group: of[group]) for block, of in shares.items()}


def task_decoder(model: nn.Module, masks: Masks | None) -> tuple[nn.Module, Masks | None] | None:
    """Return the model that writes, with its masks: this one, or the captioning model that is built from it."""
    from multiflow.tasks.task_model import build_task_model, task_masks

    if callable(getattr(model, "generate", None)):
        return model, masks
    try:
        built, places = build_task_model(model, "captioning")
        return built, None if masks is None else task_masks(masks, places, built)
    except MultiflowError:
        return None


def token_steps(
    writers: Mapping[str, nn.Module],
    inputs: Any,
    samples: int,
    seconds: float,
    own: bool,
    clock: Callable[[], float],
) -> list[SpeedCell]:
    """Time one more token of ``generate``; nothing for models that do not write from such inputs."""
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        return []
    runs: dict[str, Callable[[], object]] = {}
    for form, one in writers.items():
        words = ("pixel_values", "input_ids")
        given = {name: value for name, value in inputs.items() if (own and name != "labels") or name in words}
        if not own:
            given["input_ids"] = given["input_ids"][:, :PROMPT]
        given = cast(given, one)
        for new in (1, 1 + NEW):

            def run(one: Any = one, given: Any = given, new: int = new) -> None:
                lengths = {"max_new_tokens": new, "min_new_tokens": new, "num_beams": 1, "do_sample": False}
                with torch.inference_mode(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    one.generate(**given, **lengths)

            runs[f"{form}/{new}"] = run
    try:
        timed = in_turns(runs, TURNS, most=seconds, clock=clock)
    except Exception as error:  # whatever it is that this model wants, it does not write from such inputs
        if is_shortage(error):
            raise
        return []
    cells = []
    for form in writers:
        short, long = timed[f"{form}/1"].seconds, timed[f"{form}/{1 + NEW}"].seconds
        per = [max(b - a, 0.0) / NEW for a, b in zip(short, long, strict=False)]
        if statistics.median(per) > 0:
            cells.append(SpeedCell(form, STEP, samples, Timing(tuple(per))))
    return cells


def _on_disk(model: Any, masks: Masks | None, weights: Any, form: str, memory: int) -> FormSize:
    """Write a form to a temporary folder, and load it from there."""
    with TemporaryDirectory() as place:
        folder, how = Path(place) / "model", FILES[form]
        if isinstance(how, str):
            export(model, masks, folder, values=how, weights=weights, rest="same" if how == "fp32" else "bf16")
        else:
            copy.deepcopy(model).to(how).save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        begun = time.perf_counter()
        try:
            load_model(folder)
        except MultiflowError:
            return FormSize(memory, size)
        return FormSize(memory, size, time.perf_counter() - begun)


def _machine() -> dict[str, Any]:
    from multiflow.base.kernels import LEVELS, NoKernelsError, kernels, processor

    name = next((line.partition(":")[2].strip() for line in processor().splitlines() if "model name" in line), "")
    try:
        level = LEVELS[kernels().level]
    except NoKernelsError as error:
        level = str(error)
    return {
        "processor": name or processor().splitlines()[0],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": level,
    }
