"""One entry point for data on disk: the layout is told by the content of the file or folder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import cast

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.data.dataset import AnyData, Dataset, Item, Mixed, Pair, RegionItem
from multiflow.data.files import NoSuchSplit, WrongLayout, choose_split, image_files, is_image, read_json, split_in_name
from multiflow.data.join import join
from multiflow.data.layouts import captions, huggingface, regions, shards, vqa

LAYOUTS = (
    "*.tar (shards of img2dataset, as for CC3M)",
    "dataset_*.json (Karpathy splits of COCO or Flickr30k)",
    "region_descriptions.json (Visual Genome)",
    "a JSON list of {image, caption}, {image, elems: [{bb, caption}]} or {image, question, answer}",
    "v2_*_questions.json with v2_*_annotations.json (VQA v2)",
    "captions.json ({image: caption}) or captions.txt (image<TAB>caption) beside images",
    "NAME.txt beside each NAME.jpg",
    "a Hugging Face data set on disk (save_to_disk, or parquet files), or hf:OWNER/NAME on the Hub",
    "a folder with one sub-folder of pairs and one of regions (mixed)",
    "several of these, joined: A+B",
)
KARPATHY = "dataset_"
SIDE_FILES = ("_stats.json", "_annotations.json", "image_data.json", "answer_list.json")


def open_data(source: str | Path, *, images: str | Path | None = None, split: str | None = None) -> AnyData:
    """Open a data set on disk, or several joined by ``+``.

    Args:
        source: a file or folder in one of the layouts of `LAYOUTS`, or ``hf:`` and a Hugging Face data set: its name
            on the Hub or its folder, with ``,image=COLUMN,text=COLUMN,config=NAME,split=NAME`` where these are not
            plain from the data. ``A+B`` joins: pairs follow pairs, pairs and regions come side by side.
        images: folder that the image names of a JSON file are relative to; default: looked for around the file. For
            ``A+B``, one folder for all, or as many, also joined by ``+``.
        split: ``train``, ``val`` or ``test``, for data that have splits; default ``train``; ``train+val`` takes both.
            In a folder of several sources, those that lack the split are left out.

    Returns:
        `Dataset` of pairs, regions or questions, or `Mixed` for general pairs and regions together.

    Errors: MultiflowError when nothing is found, captions are missing, a JSON file cannot be read, an image path leads
    out of its folder, the split is unknown, or the columns of a Hugging Face data set are not plain.

    >>> data = open_data("coco/dataset_coco.json", split="test")   # doctest: +SKIP
    >>> data[0].captions[0]                                         # doctest: +SKIP
    'a man riding a wave on a surfboard'
    """
    parts = _parts(str(source))
    if len(parts) > 1:
        return join([open_data(part, images=of_part, split=split) for part, of_part in _with_images(parts, images)])
    if split is not None and "+" in split:
        return join([open_data(source, images=images, split=part) for part in split.split("+")])
    if str(source).startswith(huggingface.PREFIX):
        return huggingface.open_named(str(source), split)
    path = Path(source).expanduser()
    folder = None if images is None else Path(images).expanduser()
    if not path.exists():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near_by = did_you_mean(path.name, near)
        raise MultiflowError(f"no data at '{source}': no such file or folder{near_by}; check the path")
    data = _open(path, folder, split)
    if data is not None:
        return data
    if path.is_dir() and image_files(path):
        raise MultiflowError(
            f"captions are missing: '{source}' holds images but neither captions.json, captions.txt nor NAME.txt "
            "beside each image; write one of them"
        )
    raise WrongLayout(f"no data found in '{source}'{_held(path)}; looked for {'; '.join(LAYOUTS)}")


def _held(path: Path) -> str:
    """Say what the first JSON file at a path holds, in which no layout was recognised."""
    file = path if path.is_file() else next((p for p in sorted(path.glob("*.json")) if p.is_file()), None)
    if file is None or file.suffix != ".json":
        return ""
    content = read_json(file)
    first = content[0] if isinstance(content, list) and content else content
    held = f"{{{', '.join(islice(first, 8))}}}" if isinstance(first, dict) else type(first).__name__
    return f" ('{file.name}' holds {'a list of ' if isinstance(content, list) and content else ''}{held})"


def _parts(source: str) -> list[str]:
    """Split ``A+B``, unless it is the path of something."""
    parts = [source] if Path(source).expanduser().exists() else source.split("+")
    if "" in parts:
        raise MultiflowError(f"'{source}' names nothing on one side of a '+'; expected A+B")
    return parts


def _with_images(parts: list[str], images: str | Path | None) -> list[tuple[str, str | None]]:
    """Give each part its folder of images."""
    folders: Sequence[str | None] = [None] if images is None else _parts(str(images))
    if len(folders) not in (1, len(parts)):
        raise MultiflowError(
            f"{len(folders)} image folders were given for {len(parts)} sources; give one for all, or one for each"
        )
    return list(zip(parts, list(folders) * (len(parts) // len(folders)), strict=True))


def _open(path: Path, images: Path | None, split: str | None) -> AnyData | None:
    """Open one source, or return None when nothing is recognised."""
    if path.is_dir():
        return _open_folder(path, images, split, depth=2)
    if path.suffix == ".tar":
        return _without_split(shards.open_shards([path], path), split)
    if path.suffix in (".json", ".jsonl"):
        return _open_json(path, images, split)
    if path.suffix == ".parquet":
        return huggingface.open_parquet([path], path, split)
    if path.name == "captions.txt":
        return _without_split(captions.open_captions_txt(path, images), split)
    return None


def _open_folder(folder: Path, images: Path | None, split: str | None, depth: int) -> AnyData | None:
    tars = sorted(folder.glob("*.tar"))
    if tars:
        return _without_split(shards.open_shards(tars, folder), split)
    if huggingface.is_saved(folder):
        return huggingface.open_saved(folder, split)
    for name in ("region_descriptions.json", "captions.json", "captions.txt"):
        if (folder / name).is_file():
            return _open(folder / name, images, split)
    files = [path for path in sorted(folder.glob("*.json*")) if not path.name.endswith(SIDE_FILES)]
    files, inner = _of_split([path for path in files if path.name.startswith(KARPATHY)] or files, folder, split)
    found = [data for path in files if (data := _open_json(path, images, inner)) is not None]
    if not found and (parquet := huggingface.parquet_files(folder)):
        return huggingface.open_parquet(parquet, folder, split)
    if not found and _has_texts_beside(folder):
        return _without_split(captions.open_text_beside(folder), split)
    if not found and depth:
        found = _open_subfolders(folder, images, split, depth - 1)
    return _combine(found, folder)


def _open_subfolders(folder: Path, images: Path | None, split: str | None, depth: int) -> list[AnyData]:
    """Open what lies in the sub-folders; those that lack the split are left out, unless all do."""
    found, lacking = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            data = _open_folder(path, images, split, depth)
        except NoSuchSplit as error:
            lacking.append(error)
            continue
        if data is not None:
            found.append(data)
    if lacking and not found:
        raise lacking[0]
    return found


def _open_json(path: Path, images: Path | None, split: str | None) -> AnyData | None:
    """Open a JSON file by what it holds."""
    content = read_json(path)
    match content:
        case {"images": [{"sentences": _}, *_]}:
            return captions.open_karpathy(content, path, images, split)
        case {"questions": list()}:
            return _without_split(vqa.open_vqa(content, path, images), split)
        case [{"elems": _}, *_]:
            return _without_split(regions.open_region_list(content, path, images), split)
        case [{"regions": _}, *_]:
            return _without_split(regions.open_visual_genome(content, path, images), split)
        case [{"question": _}, *_]:
            return _without_split(vqa.open_question_list(content, path, images), split)
        case [{"image": _}, *_]:
            return _without_split(captions.open_list(content, path, images), split)
        case dict() if content and all(is_image(name) for name in content):
            return _without_split(captions.open_mapping(content, path, images), split)
        case _ if path.name.startswith(KARPATHY):  # which says what it lacks
            return captions.open_karpathy(content, path, images, split)
    return None


def _of_split(files: list[Path], folder: Path, split: str | None) -> tuple[list[Path], str | None]:
    """Where the splits are files of their own, keep those of the wanted one; else pass the split on.

    ``vg_qa.json``, the questions of Visual Genome beside those of VQA v2, are for training.
    """
    names = ["train" if path.stem == "vg_qa" else split_in_name(path) for path in files]
    named = [name for name in names if name]
    if not named or None in names:
        return files, split
    held = list(dict.fromkeys(named))
    chosen = choose_split(split, held, f"'{folder}'")
    return [path for path, name in zip(files, named, strict=True) if name == chosen], None


def _has_texts_beside(folder: Path) -> bool:
    return any((folder / name).with_suffix(".txt").is_file() for name in image_files(folder)[:100])


def _combine(found: list[AnyData], folder: Path) -> AnyData | None:
    """Return the one source of a folder, its pairs and regions mixed, or its lists of questions; refuse the rest."""
    if len(found) < 2:
        return found[0] if found else None
    if all(isinstance(data, Dataset) and data.layout == vqa.LIST for data in found):
        return join(found)
    by_kind = {data.kind: data for data in found if isinstance(data, Dataset)}
    if len(found) == 2 and "pairs" in by_kind and "regions" in by_kind:
        return Mixed(cast("Dataset[Pair]", by_kind["pairs"]), cast("Dataset[RegionItem]", by_kind["regions"]))
    raise MultiflowError(
        f"'{folder}' holds several data sets; open one of them, or join some as A+B: {'; '.join(map(str, found))}"
    )


def _without_split(data: Dataset[Item], split: str | None) -> Dataset[Item]:
    """Refuse a split for data that have none."""
    if split is not None:
        raise NoSuchSplit(f"split '{split}' was given, but {data.source} ({data.layout}) has no splits; leave it out")
    return data
