"""`Adapter`: what the library must know of a model, and nothing more.

Which linear layers are prunable and how they group; whose padding each layer's input follows; how to run the model on
a calibration batch; what its pretraining loss is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.layout import find_layout
from multiflow.base.types import Layout

Forward = Callable[[nn.Module, Any], Any]
Loss = Callable[[nn.Module, Any], Tensor]
TokenMasks = Callable[[Any], Mapping[str, Tensor | None]]


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch: a mapping as keyword arguments, a tuple or list as arguments, else one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@dataclass(frozen=True)
class Adapter:
    """How to prune a model that the library does not know.

    Args:
        groups: group name -> regex, searched in module paths (without ``.weight``); every ``nn.Linear`` it finds is
            prunable. Layers in no group stay dense.
        forward: ``f(model, batch)`` that runs the model for calibration; by default the model is called with the
            batch (a mapping as keyword arguments, a tuple as arguments).
        loss: ``f(model, batch) -> scalar``; needed only by pruners that use gradients.
        streams: regex -> stream, searched in module paths: whose padding mask the inputs of those layers follow.
            The first match counts; layers without a stream have no padding.
        token_masks: ``f(batch) -> {stream: bool (B, L)}``, True = a real token; None for a stream without padding.
        idle: ``f(model)``, only for a loss in which several processes tell each other something: what one without a
            batch does meanwhile, once for each part of a batch.
        forward_moves_buffers: whether ``forward`` may change buffers of the model, which are then put back; False
            spares a copy of them.
        exclude: regex of module paths that stay dense although a group matches them.
        name: what lists and reports call it.

    Example:
        >>> adapter = mf.Adapter(groups={"vision": r"^encoder\\.", "text": r"^decoder\\."})     # doctest: +SKIP
        >>> mf.prune(model, "wanda", sparsity=0.5, batches=batches, adapter=adapter)            # doctest: +SKIP
    """

    groups: Mapping[str, str]
    forward: Forward = call
    loss: Loss | None = None
    streams: Mapping[str, str] = field(default_factory=dict)
    token_masks: TokenMasks | None = None
    idle: Callable[[nn.Module], object] | None = None
    forward_moves_buffers: bool = True
    exclude: str | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.groups:
            raise MultiflowError("an adapter needs at least one group, such as groups={'vision': r'^encoder'}")
        if self.streams and self.token_masks is None:
            raise MultiflowError(
                f"an adapter with streams {sorted(set(self.streams.values()))} needs token_masks=f(batch), which says "
                "for each stream which tokens are real"
            )
        for regex in [*self.groups.values(), *self.streams, *([self.exclude] if self.exclude else [])]:
            try:
                re.compile(regex)
            except re.error as error:
                raise MultiflowError(f"'{regex}' is not a regular expression ({error})") from error

    def layout(self, model: nn.Module) -> Layout:
        """List the prunable layers of a model, in module order; what does not fit is an error that names it."""
        paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
        for regex in [*self.streams, *([self.exclude] if self.exclude else [])]:
            if not any(re.search(regex, path) for path in paths):
                what = "streams" if regex in self.streams else "exclude"
                raise MultiflowError(
                    f"'{regex}' of {what} matches no module{did_you_mean(regex.strip('^$'), paths)}; "
                    f"modules are called such as '{paths[-1]}'"
                )
        return find_layout(model, self.groups, self.exclude, self.stream)

    def stream(self, path: str) -> str | None:
        """Whose padding mask the input of the module at this path follows."""
        return next((stream for regex, stream in self.streams.items() if re.search(regex, path)), None)


def parts(batch: Any) -> list[Any]:
    """Split a batch that carries a ``region`` batch into the two; any other batch is one part."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get("region"), Mapping):
        return [batch]
    general = {name: value for name, value in batch.items() if name != "region"}
    return [*([general] if general else []), dict(batch["region"])]


def require(batch: Any, *names: str) -> None:
    """Check that a batch is a mapping with these keys."""
    if not isinstance(batch, Mapping):
        raise MultiflowError(f"a batch is a {type(batch).__name__}; expected a dict with {', '.join(names)}")
    for name in names:
        if name not in batch:
            raise MultiflowError(
                f"a batch has no '{name}'; it has {', '.join(map(str, batch)) or 'nothing'}, "
                f"and needs {', '.join(names)}"
            )
