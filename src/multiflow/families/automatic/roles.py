"""What the parts of a transformers model are for, read from the model itself.

A model of transformers is built of sub-models with a config of their own: its *towers*. What a tower is for is said by
the entry of the config that it was built from (``vision_config``), by what it takes in (``input_modalities``), and by
the model's ``get_encoder(modality=...)`` and ``get_decoder()``. A linear layer belongs to its innermost tower; outside
of towers, numbered blocks and projectors are told apart by how they are held and by their names.

Groups: ``vision``, ``text``, ``audio``, ``protein`` (Evolla's), ``connector`` (from tower to tower) and ``fusion``
(layers that see both, by cross-attention to the image or as joint encoders). What is no layer to prune stays dense,
each with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from multiflow.base.guards import NO_PROJECTION, STAYS_DENSE
from multiflow.base.types import weights_of

VISION, TEXT, AUDIO, CONNECTOR, FUSION = "vision", "text", "audio", "connector", "fusion"
PROTEIN = "protein"  # what Evolla reads in the place of an image
MODALITIES = {"image": VISION, "video": VISION, "text": TEXT, "audio": AUDIO}
ENTRIES = {  # of a config, by what their name says
    r"vq|codebook": "image tokens are made, not read, with it",
    r"vision|image|visual|video": VISION,
    r"audio|speech": AUDIO,
    r"protein": PROTEIN,
    r"qformer|perceiver|resampler|adapter|projector|connector": CONNECTOR,
    r"text|llm|language": TEXT,
}
SOUNDS, OTHERS = {"input_features", "input_values"}, {"input_ids", "pixel_values"}
UNKNOWN = "?"
BETWEEN = re.compile(r"projector|connector|resampler|perceiver|merger|adapter|abstractor|aligner|qformer", re.I)
HEAD = re.compile(r"(\w+_)?(pooler|head|classifier|scorer?|logits|attention_pool)(_\w+)?|qa_outputs|cls", re.I)
CROSS = re.compile(r"cross_?att|encoder_attn|encoder_decoder_att|encdecatt|(^|_)x_attn", re.I)
SELF = re.compile(r"self_?att|^attention$|^attn$", re.I)
ROUTER = re.compile(r"gate|router|switch|shared_expert_gate", re.I)
EMBEDDING = re.compile(r"embed", re.I)
PATCHES = re.compile(r"\w*embed_tokens|patch_\w+", re.I)
GENERATION = re.compile(r"generation_\w+", re.I)
STACKS = {  # of numbered blocks side by side, by what their names say; one that says nothing reads the text
    r"(^|_)(r|v|visn|visual|vision|image)_?layers?$": VISION,
    r"(^|_)(x|cross)_?layers?$": FUSION,
    r"^(l_)?layers?$": TEXT,
}
LOOKED_UP = re.compile(r"latent|probe|norm|rel_pos", re.I)
"""Parameters beside those of `NO_PROJECTION` that no input is multiplied by."""
POSITIONS = re.compile(r"rel(ative)?_(pos|position|attention)\w*_bias|rel_logits_proj")
NO_LINEAR = "no linear layer"
BY_POSITION = "looked up by relative positions"
SHARED_SPACE = re.compile(r"(visual|vision|image|text|video)_proj(ection)?", re.I)


@dataclass(frozen=True)
class Roles:
    """Where the linear layers of a model belong.

    Args:
        groups: group -> paths of its linear layers, in module order.
        dense: path of a layer, or of the parameter, that stays dense -> why.
        unknown: path of a tower that could not be placed -> what is known of it.
        towers: path of a tower -> its group.
    """

    groups: Mapping[str, tuple[str, ...]]
    dense: Mapping[str, str]
    unknown: Mapping[str, str]
    towers: Mapping[str, str]


def find_roles(model: Any) -> Roles:
    """Find the group of every linear layer of a transformers model, or why it stays dense."""
    modules = dict(model.named_modules())
    towers = find_towers(model, modules)
    place = _Place(model, modules, towers)
    groups: dict[str, list[str]] = {}
    dense: dict[str, str] = {}
    unknown: dict[str, str] = {}
    stacks: dict[str, None] = {}  # numbered blocks outside of towers that attend to themselves
    for path, module in modules.items():
        weights = weights_of(path, module)
        dense.update(_other_weights(path, module, {part.parameter if part else "weight" for part in weights.values()}))
        for name in weights:
            group, reason = place(name, module)
            if reason is not None:
                dense[name] = reason
            elif group == UNKNOWN:
                tower = place.tower(name)
                unknown[tower] = type(modules[tower]).__name__
            else:
                groups.setdefault(group, []).append(name)
                if not place.tower(name) and group not in (CONNECTOR, place.cross(name)):
                    stacks.setdefault(_block(name).rpartition(".")[0])
    roles = {path: _told(path) for path in stacks}
    if len(stacks) > 1 and None not in roles.values() and len({*roles.values()}) == len(roles):
        for path, role in roles.items():
            moved = [layer for layer in groups[place.stack] if layer.startswith(f"{path}.")]
            groups[place.stack] = [layer for layer in groups[place.stack] if layer not in moved]
            groups.setdefault(str(role), []).extend(moved)
    elif len(stacks) > 1:  # of which nobody says what each is for
        unknown.update({path: type(modules[path]).__name__ for path in stacks})
        under = tuple(f"{path}." for path in stacks)
        groups = {group: [path for path in paths if not path.startswith(under)] for group, paths in groups.items()}
    known = {path: role for path, role in towers.items() if role in (*MODALITIES.values(), PROTEIN, CONNECTOR)}
    return Roles({group: tuple(paths) for group, paths in groups.items() if paths}, dense, unknown, known)


def _told(path: str) -> str | None:
    """What the name of a stack says of it, as those of LXMERT do: ``r_layers`` for regions, ``x_layers`` across."""
    name = path.rpartition(".")[2]
    return next((role for pattern, role in STACKS.items() if re.search(pattern, name)), None)


def _other_weights(path: str, module: nn.Module, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Give the weights of a module that multiply as those of a linear layer do, but are none."""
    kind = type(module).__name__
    if isinstance(module, STAYS_DENSE) or "Embed" in kind or "Norm" in kind:
        return
    for name, parameter in module._parameters.items():
        if (
            name in known
            or parameter is None
            or parameter.dim() < 2
            or NO_PROJECTION.search(name)
            or LOOKED_UP.search(name)
        ):
            continue
        if min(parameter.shape[-2:]) > 1:
            parts = path.split(".")
            head = "head or pooler" if any(HEAD.fullmatch(part) for part in parts) else None
            head = BY_POSITION if POSITIONS.fullmatch(parts[-1]) else head
            router = "router of experts" if "Router" in kind else None
            yield f"{path}.{name}".lstrip("."), head or router or f"{NO_LINEAR} ({kind})"


def find_towers(model: Any, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Find the sub-models and their roles: a group, `UNKNOWN`, or the reason why they stay dense.

    A sub-model that takes in several kinds of input has no role of its own; its layers have that of the tower around
    it, if there is one.
    """
    from transformers import PreTrainedModel

    if heard := _listening_towers(model, modules):
        return heard
    entries = list(_config_entries(model.config))
    towers = {}
    for path, module in modules.items():
        if path and isinstance(module, PreTrainedModel) and (role := _role(module, entries)):
            towers[path] = role
    paths = {id(module): path for path, module in reversed(list(modules.items()))}
    ways = [(VISION, lambda: model.get_encoder(modality="image")), (AUDIO, lambda: model.get_encoder(modality="audio"))]
    for group, find in [*ways, (TEXT, model.get_decoder)]:
        try:
            path = paths.get(id(find()), "")
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            continue
        if not path or towers.get(path, UNKNOWN) != UNKNOWN:
            continue
        within = [at for at in towers if at.startswith(f"{path}.")]
        vague = [at for at in within if towers[at] == UNKNOWN and modules[at].config is modules[path].config]
        if {towers[at] for at in within if at not in vague} <= {group} and not _joint(model, modules[path], towers):
            towers = {at: other for at, other in towers.items() if at not in vague} | {path: group}
    return towers


def _listening_towers(model: Any, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return encoder and decoder of a model that writes what it hears, whatever its parts say of themselves."""
    import inspect

    parameters = inspect.signature(model.forward).parameters
    alone = bool(SOUNDS & parameters.keys()) and not OTHERS & parameters.keys()
    if not alone or not getattr(model.config, "is_encoder_decoder", False):
        return {}
    paths = {id(module): path for path, module in reversed(list(modules.items()))}
    try:
        encoder, decoder = (paths.get(id(part), "") for part in (model.get_encoder(), model.get_decoder()))
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return {}
    apart = encoder and decoder and not f"{encoder}.".startswith(f"{decoder}.") and encoder != decoder
    return {encoder: AUDIO, decoder: TEXT} if apart and not f"{decoder}.".startswith(f"{encoder}.") else {}


def _config_entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Give the names and configs of all parts of a config, innermost last."""
    for key in getattr(config, "sub_configs", None) or ():
        part = getattr(config, key, None)
        if part is not None and not isinstance(part, dict):
            yield key, part
            yield from _config_entries(part)


def _role(module: Any, entries: list[tuple[str, Any]]) -> str | None:
    keys = [key for key, part in entries if part is module.config]
    if not keys:  # a copy: the class of its config says which, where only one entry has it
        alike = {key for key, part in entries if type(part) is type(module.config)}
        keys = list(alike) if len(alike) == 1 else []
    for key in keys:
        for pattern, role in ENTRIES.items():
            if re.search(pattern, key):
                return role
    declared = _modalities(module)
    if declared is not None:
        kinds = {MODALITIES.get(kind, UNKNOWN) for kind in declared}
        return kinds.pop() if len(kinds) == 1 else None
    if not keys:
        return None
    return VISION if module.main_input_name == "pixel_values" else UNKNOWN


def _modalities(module: Any) -> set[str] | None:
    """What a model's class says that it takes in; None where it says nothing (transformers then assumes text)."""
    from transformers import PreTrainedModel

    if not any("input_modalities" in vars(kind) for kind in type(module).__mro__ if kind is not PreTrainedModel):
        return None
    given = module.input_modalities
    return {given} if isinstance(given, str) else set(given)


def _joint(model: Any, module: Any, towers: Mapping[str, str]) -> bool:
    """Whether a module is the model's one stack, which reads images and text alike."""
    declared = _modalities(module) if hasattr(module, "input_modalities") else None
    alone = VISION not in towers.values() and not getattr(model.config, "is_encoder_decoder", False)
    return alone and len({MODALITIES.get(kind) for kind in declared or ()}) > 1


class _Place:
    """Tells the group of a linear layer, or why it stays dense."""

    def __init__(self, model: Any, modules: Mapping[str, nn.Module], towers: Mapping[str, str]) -> None:
        self._modules, self._towers = modules, towers
        self._embeddings = {id(m.weight): path for path, m in modules.items() if isinstance(m, nn.Embedding)}
        output = model.get_output_embeddings()
        self._output = id(output) if isinstance(output, nn.Module) else None
        shared = sum(bool(SHARED_SPACE.fullmatch(name)) for name, _ in model.named_children())
        inner = (model, *model.children())  # a head may stand around what compares
        compares = shared > 1 or any(hasattr(of, name) for of in inner for name in ("logit_scale", "get_text_features"))
        self._dual = compares and VISION in towers.values()
        self.stack = self._lone_stack(model)
        self._unused = dict(_unused_vision_layers(model, modules, towers))

    def tower(self, path: str) -> str:
        """Return the path of the innermost tower around a module; empty outside of towers."""
        around = (at for at in self._towers if path == at or path.startswith(f"{at}."))
        return max(around, key=len, default="")

    def cross(self, path: str) -> str:
        """Return the group of a layer outside of towers that attends to the image; empty if it does not."""
        return FUSION if self._reads_image(path, "") else ""

    def _around(self, tower: str) -> list[str]:
        """The paths of the towers of text around a tower, and its own."""
        return [at for at, role in self._towers.items() if role == TEXT and f"{tower}.".startswith(f"{at}.")]

    def _lone_stack(self, model: Any) -> str:
        """The group of numbered blocks outside of towers that attend to nothing but themselves."""
        roles = set(self._towers.values())
        declared = _modalities(model) or {"image" if model.main_input_name == "pixel_values" else "text"}
        kinds = {MODALITIES[kind] for kind in declared if kind in MODALITIES}
        if len(kinds) == 1:
            return kinds.pop()
        return TEXT if VISION in roles and TEXT not in roles else FUSION

    def __call__(self, path: str, module: Any) -> tuple[str, str | None]:
        """Return the group, and the reason if the layer stays dense."""
        parts = path.split(".")
        tower = self.tower(path)
        role = self._towers.get(tower, "")
        inner = path[len(tower) :].lstrip(".").split(".") if tower else parts
        if role not in ("", UNKNOWN, VISION, TEXT, AUDIO, PROTEIN, CONNECTOR):
            return "", role
        if id(module) == self._output:
            return "", "output embeddings"
        if (embedding := self._embeddings.get(id(module._parameters.get("weight")))) is not None:
            return "", f"shares its weight with the embedding '{embedding}'"
        if any(HEAD.fullmatch(part) for part in inner):
            return "", "head or pooler"
        if POSITIONS.fullmatch(parts[-1]):
            return "", BY_POSITION
        if "router" in type(module).__name__.lower() or ROUTER.fullmatch(parts[-1]):
            return "", "router of experts"
        if self._dual and not tower and any(SHARED_SPACE.fullmatch(part) for part in parts):
            return "", "projection into the space that images and texts share"
        if not self._dual and any(GENERATION.fullmatch(part) for part in parts):
            return "", "only makes images"
        if (reason := self._unused.get(_block(path))) is not None:
            return "", reason
        if role == UNKNOWN:
            return UNKNOWN, None
        if (
            role in (VISION, AUDIO)
            and EMBEDDING.search(".".join(inner[:-1]) or inner[-1])
            and not _block(".".join(inner))
        ):
            return "", "embedding of patches"
        if not tower and PATCHES.fullmatch(parts[-1]):
            return "", "embedding of patches"
        between = role in (VISION, AUDIO, "") and BETWEEN.search(_before_block(inner))
        if between or not (role or _block(path)):
            return CONNECTOR, None
        if role in (TEXT, "") and self._reads_image(path, tower):
            return ("", "never used: the model encodes texts alone") if self._dual and role else (FUSION, None)
        return role or self.stack, None

    def _reads_image(self, path: str, tower: str) -> bool:
        """Whether a layer attends to the image, or stands in a block that does nothing else."""
        if any(f"{at}.encoder" in self._modules and f"{at}.decoder" in self._modules for at in self._around(tower)):
            return False  # it attends to its own encoder
        if any(CROSS.search(part) for part in path.split(".")):
            return True
        block = _block(path)
        children = [name for name, _ in self._modules[block].named_children()] if block else []
        return any(CROSS.search(name) for name in children) and not any(SELF.search(name) for name in children)


def _block(path: str) -> str:
    """The path of the numbered block that a module stands in; empty where there is none.

    >>> _block("model.layers.3.mlp.fc1"), _block("projector.0")
    ('model.layers.3', '')
    """
    found = re.match(r"(?:.*?\.)?\w+\.\d+(?=\.)", path)
    return found[0] if found else ""


def _before_block(parts: list[str]) -> str:
    """What stands before the first number of a path."""
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0]] if numbers else parts)


def _unused_vision_layers(
    model: Any, modules: Mapping[str, nn.Module], towers: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Give the blocks of the vision tower behind the last one whose states the model takes, and why."""
    taken = getattr(model.config, "vision_feature_layer", None)
    if taken is None:
        return
    for tower, role in towers.items():
        if role != VISION:
            continue
        stacks = [p for p, m in modules.items() if p.startswith(f"{tower}.") and isinstance(m, nn.ModuleList)]
        stacks = [path for path in stacks if re.search(r"(layers|blocks|layer)$", path) and path.count(".layers.") == 0]
        for stack in stacks[:1]:
            count = len(modules[stack])  # type: ignore[arg-type]
            states = [taken] if isinstance(taken, int) else list(taken)
            last = max(state if state >= 0 else count + 1 + state for state in states)
            for number in range(last, count):
                yield f"{stack}.{number}", f"never used: vision_feature_layer is {taken}"
