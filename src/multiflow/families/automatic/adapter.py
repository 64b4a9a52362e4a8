"""The adapter of a transformers model that nobody has written one for, read from the model itself."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from multiflow.base.adapter import Adapter, call, check_regexes, layer_paths, regex_of
from multiflow.base.errors import MultiflowError
from multiflow.base.files import shortened
from multiflow.base.types import weights_of
from multiflow.families.automatic.roles import NO_LINEAR, Roles, find_roles
from multiflow.families.automatic.streams import find_streams, find_token_masks


def is_of_transformers(model: Any) -> bool:
    """Tell whether a model is one of transformers."""
    return isinstance(model, PreTrainedModel)


MISFIT = re.compile(r"mismatch|(do|does) not match|must match|cannot be multiplied|size of tensor", re.I)
"""In what torch and transformers say of sizes that do not fit."""
LACKING = re.compile(r"missing \d+ required|'NoneType'|(have to|must) (specify|provide)", re.I)
"""In what Python and transformers say where an argument was not given."""
INPUTS = ("pixel_values", "input_ids", "input_features", "input_values", "flattened_patches", "decoder_input_ids")
WORTH_SAYING = 0.01  # of all weights: from this share on, weights that cannot be pruned are said


def automatic_adapter(
    model: Any,
    *,
    exclude: str | None = None,
    groups: Mapping[str, str] | None = None,
    streams: Mapping[str, str] | None = None,
    tokens: str = "all",
) -> Adapter:
    """Build the adapter of any transformers model.

    Args:
        model: a ``PreTrainedModel``.
        exclude: regex of module paths that stay dense.
        groups: group -> regex of module paths, where the model's own place is not what you want.
        streams: regex of module paths -> stream, likewise: ``text``, ``decoder``, ``source``, ``image``,
            ``connector`` or ``audio``.
        tokens: which tokens of the language model's stream count: ``all``, ``text`` or ``image``.

    Raises:
        MultiflowError: parts that cannot be placed or pruned, all of them at once, with one regex that covers them.
    """
    check_regexes([*(groups or {}).values(), *(streams or {}), *filter(None, (exclude,))])
    _refuse_quantised(model)
    roles = _overridden(find_roles(model), model, exclude, groups or {})
    _refuse_unknown(model, roles)
    _refuse_empty(model, roles, exclude)
    _warn_of_others(model, roles, exclude)
    paths = layer_paths(model)
    own = find_streams(model, roles)
    by_stream = {name: [path for path, of in own.items() if of == name] for name in dict.fromkeys(own.values())}
    return Adapter(
        groups={group: regex_of(layers, paths) for group, layers in roles.groups.items()},
        forward=_forward,
        loss=find_loss(model),
        streams={**(streams or {}), **{regex_of(layers, paths): name for name, layers in by_stream.items()}},
        token_masks=find_token_masks(model, roles.groups, tokens),
        outputs=_outputs,
        dense=roles.dense,
        towers=roles.towers,
        spares_unused=True,
        name=getattr(model.config, "model_type", "") or type(model).__name__,
    )


def _overridden(roles: Roles, model: nn.Module, exclude: str | None, groups: Mapping[str, str]) -> Roles:
    """Put layers where the user wants them."""
    linear = [name for path, module in model.named_modules() for name in weights_of(path, module)]
    for what, regex in [*groups.items(), *([("exclude", exclude)] if exclude is not None else [])]:
        if not any(re.search(regex, path) for path in layer_paths(model)):
            raise MultiflowError(
                f"'{regex}' of {what} matches no module; modules are called such as '{linear[-1] if linear else ''}'"
            )
    group_of = {path: group for group, paths in roles.groups.items() for path in paths}
    dense, unknown = dict(roles.dense), dict(roles.unknown)
    for path in linear:
        found = [group for group, regex in groups.items() if re.search(regex, path)]
        if len(found) > 1:
            raise MultiflowError(f"layer '{path}' is in two groups, '{found[0]}' and '{found[1]}'; it may be in one")
        if found:
            group_of[path] = found[0]
            dense.pop(path, None)
        if exclude is not None and re.search(exclude, path):
            group_of.pop(path, None)
            dense[path] = "excluded"
    for tower in roles.unknown:
        inside = [path for path in linear if path.startswith(f"{tower}.")]
        if all(path in group_of or path in dense for path in inside):
            del unknown[tower]
    ordered: dict[str, list[str]] = {}
    for path in linear:
        if path in group_of:
            ordered.setdefault(group_of[path], []).append(path)
    return Roles({group: tuple(paths) for group, paths in ordered.items()}, dense, unknown, roles.towers)


def _refuse_quantised(model: Any) -> None:
    how = getattr(model.config, "quantization_config", None)
    if how is not None or getattr(model, "is_quantized", False):
        name = getattr(how, "quant_method", None) or (how.get("quant_method") if isinstance(how, dict) else None)
        raise MultiflowError(
            f"the {type(model).__name__} is quantised ({getattr(name, 'value', name) or 'its config says so'}), and "
            "quantised weights cannot be pruned; load it in float32, bfloat16 or float16"
        )


def _refuse_unknown(model: nn.Module, roles: Roles) -> None:
    if not roles.unknown:
        return
    listed = ", ".join(f"'{path}' ({kind})" for path, kind in roles.unknown.items())
    regex = "^(" + "|".join(re.escape(path) for path in roles.unknown) + r")\."
    raise MultiflowError(
        f"a {type(model).__name__} has parts that are neither vision, text nor what joins them: {listed}; leave them "
        f"dense with exclude=r'{regex}', or name their group with groups={{'...': r'{regex}'}}"
    )


def _refuse_empty(model: nn.Module, roles: Roles, exclude: str | None) -> None:
    """A tower in which nothing can be pruned would stay dense without a word."""
    placed = [path for paths in roles.groups.values() for path in paths]
    outer = [at for at in roles.towers if not any(at.startswith(f"{other}.") for other in roles.towers)]
    empty = []
    for tower in outer:
        module = model.get_submodule(tower)
        weights = sum(p.numel() for p in _projections(module))
        excluded = exclude is not None and any(
            re.search(exclude, path) for path, _ in model.named_modules() if f"{path}.".startswith(f"{tower}.")
        )
        if weights and not excluded and not any(path.startswith(f"{tower}.") or path == tower for path in placed):
            empty.append((tower, type(module).__name__, weights))
    if empty or not placed:
        regex = "^(" + "|".join(re.escape(tower) for tower, _, _ in empty) + r")(\.|$)"
        listed = ", ".join(f"'{tower}' ({kind}, {weights:,} weights)" for tower, kind, weights in empty)
        total = sum(parameter.numel() for parameter in model.parameters())
        share = sum(weights for *_, weights in empty) / max(total, 1)
        raise MultiflowError(
            f"a {type(model).__name__} has no linear layer to prune in {listed or 'any of its parts'}"
            + (f", {share:.1%} of its weights; leave it dense with exclude=r'{regex}'" if empty else "")
        )


def _warn_of_others(model: nn.Module, roles: Roles, exclude: str | None) -> None:
    """Say how much of the model lies in weights that are no linear layers, such as stacked experts."""
    parameters = dict(model.named_parameters())
    others = {name: parameters[name].numel() for name, why in roles.dense.items() if why.startswith(NO_LINEAR)}
    others = {name: size for name, size in others.items() if exclude is None or not re.search(exclude, name)}
    share = sum(others.values()) / max(1, sum(parameter.numel() for parameter in parameters.values()))
    if share >= WORTH_SAYING:
        shown = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".N", name) for name in others)
        warnings.warn(
            f"{share:.0%} of the weights of a {type(model).__name__} are no linear layers and stay dense: "
            f"{', '.join(list(shown)[:4])}{', ...' if len(shown) > 4 else ''}",
            stacklevel=4,
        )


def _projections(module: nn.Module) -> Iterable[nn.Parameter]:
    """Give the parameters of two and more dimensions that are no embeddings."""
    for part in module.modules():
        if not isinstance(part, nn.Embedding | nn.EmbeddingBag):
            yield from (p for p in part._parameters.values() if p is not None and p.dim() >= 2)


def _forward(model: Any, batch: Any) -> Any:
    """Run the model on a batch, without its loss and what only generation needs."""
    if not isinstance(batch, Mapping):
        return call(model, batch)
    parameters = inspect.signature(model.forward).parameters
    needs_labels = "decoder_input_ids" in parameters and "decoder_input_ids" not in batch  # they begin the decoder
    given = {name: value for name, value in batch.items() if name != "labels" or needs_labels}
    cheap = {"use_cache": False} | ({} if "labels" in given else {"logits_to_keep": 1})  # nor logits of all tokens
    with _fitting(model, batch):
        return model(**{**given, **{name: value for name, value in cheap.items() if name in parameters}})


@contextmanager
def _fitting(model: Any, batch: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a model says of a batch whose sizes do not fit, or that lacks something, into one sentence."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        said, parameters = str(error), inspect.signature(model.forward).parameters
        lacking = [name for name in INPUTS if name in parameters and batch.get(name) is None]
        if isinstance(error, MultiflowError):
            raise
        if lacking and LACKING.search(said):
            raise MultiflowError(
                f"a batch has no '{lacking[0]}', which a {type(model).__name__} takes; it has "
                f"{', '.join(batch) or 'nothing'}; make it with the model's own processor"
            ) from error
        if not MISFIT.search(said) or not isinstance(error, RuntimeError | ValueError):
            raise
        raise MultiflowError(
            f"a batch does not fit a {type(model).__name__} ({shortened(error)}); make it with the processor that "
            "belongs to the model, and check the processor's number of tokens for an image"
        ) from error


def _outputs(model: Any, batch: Any) -> Any:
    """Run the model on a batch, without its loss, with the logits of all tokens."""
    if not isinstance(batch, Mapping):
        return call(model, batch)
    parameters = inspect.signature(model.forward).parameters
    needs_labels = "decoder_input_ids" in parameters and "decoder_input_ids" not in batch
    given = {name: value for name, value in batch.items() if name != "labels" or needs_labels}
    with _fitting(model, batch):
        return model(
            **given, **({"use_cache": False} if "use_cache" in parameters and "use_cache" not in given else {})
        )


def find_loss(model: Any) -> Callable[[nn.Module, Any], Tensor] | None:
    """Return the loss for gradient methods: LM from ``labels``, or contrastive for a dual encoder; None for none."""
    parameters = inspect.signature(model.forward).parameters
    if "labels" in parameters:
        return _labelled_loss
    return _contrastive_loss if hasattr(model, "logit_scale") or "return_loss" in parameters else None


def _labelled_loss(model: Any, batch: Any) -> Tensor:
    """The model's own loss."""
    if not isinstance(batch, Mapping) or "labels" not in batch:
        raise MultiflowError(
            f"a batch has no 'labels', of which a {type(model).__name__} makes its loss: the token ids to predict, "
            "-100 where nothing is; or take a method without gradients, such as multiflow"
        )
    cheap = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with _fitting(model, batch):
        return model(**batch, **cheap).loss


def _contrastive_loss(model: Any, batch: Any) -> Tensor:
    """Contrast the pairs of the batch: sigmoid loss for SigLIP, which has a bias of its logits, else softmax (CLIP)."""
    if not isinstance(batch, Mapping):
        raise MultiflowError(f"a batch is a {type(batch).__name__}; expected a dict of what the model's forward takes")
    with _fitting(model, batch):
        logits = getattr(model(**batch), "logits_per_text", None)
    if logits is None:
        raise MultiflowError(
            f"a {type(model).__name__} compares no texts with images by itself, which leaves no loss of pairs; take a "
            "method without gradients, such as multiflow, or pass mf.Adapter(loss=...)"
        )
    logits = logits.float()
    pairs = 2 * logits.new_ones(len(logits)).diag() - 1
    if getattr(model, "logit_bias", None) is not None:
        return -F.logsigmoid(pairs * logits).sum(-1).mean()
    own = pairs.argmax(-1)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
