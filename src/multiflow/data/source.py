"""One entry point for data on disk: the layout is told by the content of the file or folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from multiflow.data import captions, regions, shards, vqa
from multiflow.data.base import AnyData, Dataset, Item, Mixed, Pair, RegionItem
from multiflow.data.files import NoSuchSplit, choose_split, image_files, is_image, read_json
from multiflow.errors import MultiflowError, did_you_mean

LAYOUTS = (
    "*.tar (shards of img2dataset, as for CC3M)",
    "dataset_*.json (Karpathy splits of COCO or Flickr30k)",
    "region_descriptions.json (Visual Genome)",
    "a JSON list of {image, caption}, {image, elems: [{bb, caption}]} or {image, question, answer}",
    "v2_*_questions.json with v2_*_annotations.json (VQA v2)",
    "captions.json ({image: caption}) or captions.txt (image<TAB>caption) beside images",
    "NAME.txt beside each NAME.jpg",
    "a folder with one sub-folder of pairs and one of regions (mixed)",
)
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val|test)(?![a-z])")
SIDE_FILES = ("_stats.json", "_annotations.json", "image_data.json", "answer_list.json")


def open_data(source: str | Path, *, images: str | Path | None = None, split: str | None = None) -> AnyData:
    """Open a data set on disk.

    Args:
        source: a file or folder in one of the layouts of `LAYOUTS`.
        images: folder that the image names of a JSON file are relative to; default: looked for around the file.
        split: ``train``, ``val`` or ``test``, for data that have splits; default ``train``. In a folder of several
            sources, those that lack the split are left out.

    Returns:
        `Dataset` of pairs, regions or questions, or `Mixed` for general pairs and regions together.

    Errors: MultiflowError when nothing is found, captions are missing, a JSON file cannot be read, an image path leads
    out of its folder, or the split is unknown.

    >>> data = open_data("coco/dataset_coco.json", split="test")   # doctest: +SKIP
    >>> data[0].captions[0]                                         # doctest: +SKIP
    'a man riding a wave on a surfboard'
    """
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
    raise MultiflowError(f"no data found in '{source}'; looked for {'; '.join(LAYOUTS)}")


def _open(path: Path, images: Path | None, split: str | None) -> AnyData | None:
    """Open one source, or return None when nothing is recognised."""
    if path.is_dir():
        return _open_folder(path, images, split, depth=2)
    if path.suffix == ".tar":
        return _without_split(shards.open_shards([path], path), split)
    if path.suffix in (".json", ".jsonl"):
        return _open_json(path, images, split)
    if path.name == "captions.txt":
        return _without_split(captions.open_captions_txt(path, images), split)
    return None


def _open_folder(folder: Path, images: Path | None, split: str | None, depth: int) -> AnyData | None:
    tars = sorted(folder.glob("*.tar"))
    if tars:
        return _without_split(shards.open_shards(tars, folder), split)
    for name in ("region_descriptions.json", "captions.json", "captions.txt"):
        if (folder / name).is_file():
            return _open(folder / name, images, split)
    files = [path for path in sorted(folder.glob("*.json*")) if not path.name.endswith(SIDE_FILES)]
    files, inner = _of_split([path for path in files if path.name.startswith("dataset_")] or files, folder, split)
    found = [data for path in files if (data := _open_json(path, images, inner)) is not None]
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
    return None


def _of_split(files: list[Path], folder: Path, split: str | None) -> tuple[list[Path], str | None]:
    """Where the splits are files of their own, keep those of the wanted one; else pass the split on."""
    matches = [SPLIT_IN_NAME.search(path.stem.lower()) for path in files]
    named = [match[0] for match in matches if match]
    if not named or None in matches:
        return files, split
    held = list(dict.fromkeys(named))
    chosen = choose_split(split, held, f"'{folder}'")
    return [path for path, name in zip(files, named, strict=True) if name == chosen], None


def _has_texts_beside(folder: Path) -> bool:
    return any((folder / name).with_suffix(".txt").is_file() for name in image_files(folder)[:100])


def _combine(found: list[AnyData], folder: Path) -> AnyData | None:
    """Return the one source of a folder, or its pairs and regions mixed; refuse any other company."""
    if len(found) < 2:
        return found[0] if found else None
    by_kind = {data.kind: data for data in found if isinstance(data, Dataset)}
    if len(found) == 2 and "pairs" in by_kind and "regions" in by_kind:
        return Mixed(cast("Dataset[Pair]", by_kind["pairs"]), cast("Dataset[RegionItem]", by_kind["regions"]))
    raise MultiflowError(f"'{folder}' holds several data sets; open one of them: {'; '.join(map(str, found))}")


def _without_split(data: Dataset[Item], split: str | None) -> Dataset[Item]:
    """Refuse a split for data that have none."""
    if split is not None:
        raise NoSuchSplit(f"split '{split}' was given, but {data.source} ({data.layout}) has no splits; leave it out")
    return data
