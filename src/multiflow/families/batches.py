"""Calibration batches for a model of a known family, from a data set or from the synthetic world."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from torch import nn

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.parallel import exchange, rank
from multiflow.base.registry import resolve
from multiflow.data import Batches, Inputs, open_data
from multiflow.data.batches import ImageBatches
from multiflow.data.dataset import AnyData, SkipReport, as_pairs, from_memory
from multiflow.data.examples import ExampleBatches
from multiflow.data.source import label_classes, open_images
from multiflow.families.family import find_family, model_types, type_of
from multiflow.families.opening import pixel_statistics

COUNTED = ("input_ids", "flattened_patches", "pixel_values", "input_features", "input_values")  # a row each sample
MOST_BATCHES = 3000  # as published
SHAPES_BATCHES = 16


@dataclass(frozen=True)
class Source:
    """Where calibration data come from."""

    data: str | None  # a data set on disk; None = scenes of Shapes, made on the fly
    images: str | None = None  # folder of the images that the data name
    tokenizer: str | None = None  # folder or Hugging Face id; None = the model's own, or ``bert-base-uncased``
    batches: int | None = None  # how many at most; None = all, at most 3,000 (of Shapes 16)
    batch_size: int = 32  # pairs or images a batch
    seed: int = 0  # of the order, of captions, hidden tokens and augmentation
    split: str | None = None  # of data that have splits; None = train
    augment: str | None = None  # None, or ``paper``, as in the published calibration
    workers: int = 0  # processes that read and decode in the background
    image_column: str | None = None  # column or key of the data that holds the images, where its name does not tell
    text_column: str | None = None  # as `image_column`, of the texts
    processor: Any = None  # of a model of transformers: a processor, or its folder or id; None = the model's own
    prompt: str | None = None  # what is asked of an image where the data do not say; None = the usual
    trust_remote_code: bool = False  # whether Python code that comes with the processor may run

    @property
    def options(self) -> dict[str, Any]:
        limit = MOST_BATCHES if self.batches is None else self.batches
        return {"batch_size": self.batch_size, "limit": limit, "seed": self.seed, "workers": self.workers}


@dataclass
class Counted:
    """Batches that remember how many samples went by in the latest pass."""

    batches: Batches | ImageBatches | ExampleBatches
    what: str
    source: str
    seen: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __repr__(self) -> str:
        return f"Counted({len(self)} batches of {self.what} from {self.source})"

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self._counted(self.batches)

    def numbered(self, numbers: Iterable[int]) -> Iterator[Mapping[str, Any] | None]:
        """Make the batches with these numbers; None for one that is broken."""
        return self._counted(self.batches.numbered(numbers))

    def _counted(self, batches: Iterable[Any]) -> Iterator[Any]:
        self.seen = 0
        for batch in batches:
            for part in (batch, batch.get("region", {})) if batch else ():
                rows = next((part[name] for name in COUNTED if name in part), None)
                self.seen += 0 if rows is None else len(rows)
            yield batch

    @property
    def skipped(self) -> SkipReport:
        """What could not be read in the latest pass, as far as it has come."""
        return self.batches.skipped

    def summary(self) -> dict[str, Any]:
        """What was read by all processes, as plain values."""
        report, data = self.batches.skipped, cast("AnyData", self.batches.data)
        unseen = len(data.skipped) if rank() else 0  # what opening the data skipped counts once
        everyone = exchange("data", (self.seen, report.seen - unseen, report.skips))
        skips = list(dict.fromkeys(skip for *_, skips in everyone for skip in skips))
        seen = {
            "kind": self.what,
            "samples": sum(samples for samples, *_ in everyone),
            "looked_at": sum(looked for _, looked, _ in everyone),
            "skipped": len(skips),
        }
        return {"source": self.source, **seen, "skips": [list(skip) for skip in skips[:5]]}


def calibration_batches(
    model: nn.Module,
    data: str | None = None,
    *,
    processor: Any = None,
    image_column: str | None = None,
    text_column: str | None = None,
    **options: Any,
) -> Counted:
    """Return calibration batches for a model, as ``multiflow prune`` makes them.

    Models of transformers that are of no family here are fed through their own processor: a chat model gets image and
    prompt as the user's turn, caption or answer as the assistant's; labels of prompt and padding are -100.

    Args:
        model: from ``mf.load_model`` or ``from_pretrained``; tokenizer and processor in its folder are used.
        data: a data set on disk or ``hf:NAME``; None = scenes of Shapes, made on the fly (X-VLM and BLIP).
        processor: of a model of transformers, where the model's folder has none or another is wanted: a processor, or
            its folder or Hugging Face id.
        image_column: column or key of the data that holds the images, where its name does not tell.
        text_column: as `image_column`, of the texts.
        options: further fields of `Source`, such as images, tokenizer, batches, batch_size, seed, split, augment,
            workers, prompt and trust_remote_code.

    Returns:
        An iterable of batches that can be iterated again; ``.skipped`` says what could not be read and why.

    Raises:
        MultiflowError: an unknown option, data that do not fit the model, a processor that lacks files or packages, or
            a model that is neither of a known family nor of transformers.

    >>> batches = mf.calibration_batches(mf.load_model("xvlm-shapes"), batches=4)                       # doctest: +SKIP
    >>> batches = mf.calibration_batches(smolvlm, "photos.csv", text_column="alt", batches=32)          # doctest: +SKIP
    """
    known = [field.name for field in fields(Source) if field.name != "data"]
    for name in options:
        if name not in known:
            raise unknown("option", name, known)
    source = Source(data, processor=processor, image_column=image_column, text_column=text_column, **options)
    return open_batches(model, getattr(model, "name_or_path", ""), source)


def open_batches(model: nn.Module, place: str, source: Source) -> Counted:
    """Return the calibration batches of a model.

    Args:
        model: of a known family, or of transformers.
        place: where it was loaded from; its tokenizer and pixel statistics may be there.
        source: the data, and how many.
    """
    counts = (
        ("--batches", source.batches, 1),
        ("--batch-size", source.batch_size, 1),
        ("--workers", source.workers, 0),
    )
    for option, value, least in counts:
        if value is not None and value < least:
            raise MultiflowError(f"{option} {value} was given; expected at least {least}")
    found = find_family(model)
    if found is None or found[1].batches is None:
        able = ", ".join(name for name, _, known in model_types() if known.batches)
        raise MultiflowError(
            f"there are no calibration batches for models of type '{type_of(model)}', only for {able}; "
            "prune this one from Python with mf.prune(model, batches=...)"
        )
    for name in ("processor", "prompt"):
        if getattr(source, name) is not None and found[1] is not found[0].others:
            raise MultiflowError(
                f"{{{name}=}} was given, and family '{found[0].name}' reads without a processor; leave it out",
                field=name,
            )
    return found[0].get(found[1].batches)(model, place, source)


def sample_batch(model: nn.Module, place: str, *, trust_remote_code: bool = False) -> Any:
    """Return a batch of one made-up picture and text, by the model's own processor.

    Args:
        model: any.
        place: where it was loaded from, or its processor is.
        trust_remote_code: whether Python code that comes with the processor may run.

    Raises:
        MultiflowError: there is no processor, or it cannot be used here.
    """
    found = find_family(model)
    if found is None or found[1].sample is None:
        raise MultiflowError(f"a {type(model).__name__} has no processor of its own")
    return found[0].get(found[1].sample)(model, place, trust_remote_code)


def open_source(source: Source, size: int) -> AnyData:
    """Open the data; where none were given, draw training scenes of Shapes, ``size`` pixels wide, a caption each."""
    if source.data is not None:
        columns = {"image_column": source.image_column, "text_column": source.text_column}
        return as_pairs(open_data(source.data, images=source.images, split=source.split, **columns))
    draw = resolve("multiflow.worlds.shapes:draw_pairs")  # a world lies above: it is found by name, as data are
    return from_memory(draw((source.batches or SHAPES_BATCHES) * source.batch_size, size, seed=source.seed))


def pair_batches(data: AnyData, inputs: Inputs, source: Source) -> Counted:
    return Counted(Batches(data, inputs, **source.options), "pairs", str(data))


def image_batches(model: Any, place: str, source: Source) -> Counted:
    """Make batches of images for an encoder or classifier, with labels where they lie in a folder a class."""
    if source.data is None:
        raise MultiflowError("there are no images to calibrate on; give some with data= (--data DIR)")
    data, classes = open_images(source.data, source.images, source.split)
    labels = label_classes(classes, getattr(model.config, "label2id", None) or {})
    options = {**source.options, **pixel_statistics(place), "augment": source.augment}
    batches = ImageBatches(data, model.config.image_size, classes=labels, **options)
    return Counted(batches, "images", str(batches))
