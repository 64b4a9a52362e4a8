"""Shapes on disk: one folder with pretraining and downstream data in the layouts of the real data sets.

The layouts are those of CC3M (img2dataset shards), Visual Genome, COCO (Karpathy's JSON) and VQA v2. The same scenes
give the same bytes: no clock, no user, no unordered set enters a file. Pictures are JPEGs of quality 95 without chroma
subsampling: at 64 pixels six times as fast to write as PNG, half its size where there is texture, one or two grey
levels off, and named as in the real data sets.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from PIL import Image

from multiflow import __version__
from multiflow.base.errors import MultiflowError, unknown
from multiflow.worlds.shapes.language import SceneQuestion, describe, questions, regions, variants
from multiflow.worlds.shapes.render import MIN_SIZE, render
from multiflow.worlds.shapes.scene import STYLES, Scene, make_scenes

Tick = Callable[[], None]
"""Called after every picture."""
QUESTIONS_PER_IMAGE = 5
SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015"}
"""Split -> COCO's name of the pictures."""
_ANSWER_TYPES = {"yes/no": "yes/no", "count": "number"}
_QUESTION_TYPES = ("how many", "is there a", "is there", "is the", "what color is the", "what", "where is the")
_README = """# Shapes

A synthetic image-text world, written by multiflow {version}: scenes of one to four objects, {size} x {size} pixels.

    {command}

| folder | layout | style | holds |
|---|---|---|---|
| `pretrain/cc3m` | CC3M shards of img2dataset | {style} | {train} training scenes with a caption each |
| `pretrain/vg` | Visual Genome regions | {style} | {half} other training scenes, a box and a phrase for every object |
| `coco_plain` | COCO, Karpathy's JSON | {style} | {val} val and {test} test scenes, 5 captions each |
| `coco`, `images` | COCO, Karpathy's JSON | {downstream_style} | {half} train, {val} val, {test} test scenes |
| `vqa`, `images` | VQA v2 | {downstream_style} | 5 questions on every picture of `coco`, 10 answers each |

No scene of val or test (objects with attributes and rough places) is in any training part. The same command writes the
same bytes with the same versions of multiflow and Pillow. `dataset.json` says the same to programs.
"""


@dataclass(frozen=True)
class _Settings:
    train: int
    val: int
    test: int
    size: int
    seed: int
    style: str
    downstream_style: str
    shard_size: int

    def __post_init__(self) -> None:
        lowest = {"train": 2, "val": 1, "test": 1, "size": MIN_SIZE, "seed": 0, "shard_size": 1}
        for name, low in lowest.items():
            given, high = getattr(self, name), 10_000 if name == "shard_size" else None
            if given < low or (high and given > high):
                expected = f"from {low} to {high}" if high else f"of at least {low}"
                raise MultiflowError(
                    f"{name}={given} was given, a whole number {expected} was expected; "
                    f"pass {name}={low if given < low else high}"
                )
        for given in (self.style, self.downstream_style):
            if given not in STYLES:
                raise unknown("style", given, STYLES)


def write(
    out_dir: str | os.PathLike[str],
    *,
    train: int = 20000,
    val: int = 1000,
    test: int = 1000,
    size: int = 64,
    seed: int = 0,
    style: str = "plain",
    downstream_style: str = "chalk",
    shard_size: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the Shapes data sets to a new or empty folder and return it; about 1,000 pictures a second.

    Args:
        out_dir: the folder; it appears complete or not at all.
        train: pairs in the CC3M shards; Visual Genome and COCO get half as many pictures each.
        val: validation pictures, for each of the two styles.
        test: test pictures, for each of the two styles.
        size: pixels a side.
        seed: the same seed and settings give the same bytes.
        style: style of the pretraining data.
        downstream_style: style of the COCO and VQA data.
        shard_size: pairs in a tar shard, at most 10,000.
        progress: called as ``progress(pictures done, pictures in all)``.

    Raises:
        MultiflowError: a value out of range, an unknown style, a folder that holds something or cannot be written.
    """
    settings = _Settings(train, val, test, size, seed, style, downstream_style, shard_size)
    out = Path(out_dir)
    try:
        if out.exists() and not out.is_dir():
            raise MultiflowError(f"the output folder '{out}' is a file; choose a new folder")
        if out.exists() and any(out.iterdir()):
            raise MultiflowError(f"the output folder '{out}' already holds files; choose a new folder or empty it")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            temporary.chmod(0o755)
            _write_all(temporary, settings, progress or (lambda done, total: None))
            os.replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MultiflowError(f"cannot write Shapes to '{out}': {reason}; choose a folder you can write to") from error
    return out


def _write_all(root: Path, settings: _Settings, progress: Callable[[int, int], None]) -> None:
    s, half = settings, settings.train // 2
    done, total = 0, s.train + 2 * half + 2 * (s.val + s.test)

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def scenes(style: str, **counts: int) -> dict[str, list[Scene]]:
        return {split: make_scenes(split, count, seed=s.seed, style=style) for split, count in counts.items()}

    pretrain = root / "pretrain"
    seen = make_scenes("train", s.train + half, seed=s.seed, style=s.style)
    write_cc3m(pretrain / "cc3m", seen[: s.train], s.size, s.shard_size, tick)
    write_visual_genome(pretrain / "vg", seen[s.train :], s.size, tick)
    held_out = scenes(s.style, val=s.val, test=s.test)
    write_coco(
        root / "coco_plain", root / "coco_plain", held_out, s.size, tick
    )  # not in pretrain: nothing trains on it
    downstream = scenes(s.downstream_style, train=half, val=s.val, test=s.test)
    write_coco(root / "coco", root / "images", downstream, s.size, tick)
    write_vqa(root / "vqa", downstream)

    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(s).items())
    about = {"name": "shapes", "version": __version__, "command": f"multiflow shapes OUT_DIR {options}"}
    write_json(root / "dataset.json", about | asdict(s) | {"pictures": total}, indent=2)
    (root / "README.md").write_text(_README.format(**about, **asdict(s), half=half), encoding="utf-8")


def jpeg(scene: Scene, size: int) -> bytes:
    """Return a scene as the bytes of a JPEG file of ``size`` x ``size`` pixels."""
    buffer = io.BytesIO()
    Image.fromarray(render(scene, size)).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Write JSON without spaces, or indented for people."""
    separators = (",", ":") if indent is None else None
    path.write_text(json.dumps(content, indent=indent, separators=separators) + "\n", encoding="utf-8")


def write_cc3m(folder: Path, scenes: Sequence[Scene], size: int, shard_size: int, tick: Tick) -> None:
    """Write shards ``00000.tar`` of ``KEY.jpg``, ``KEY.txt`` and ``KEY.json``, each with ``00000_stats.json``."""
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, len(scenes), shard_size)):
        part = scenes[first : first + shard_size]
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, scene in enumerate(part):
                key, caption, picture = f"{shard:05d}{number:04d}", describe(scene, 1)[0], jpeg(scene, size)
                about = _about(key, caption, picture, size)
                for suffix, content in (("jpg", picture), ("txt", caption.encode()), ("json", about)):
                    member = tarfile.TarInfo(f"{key}.{suffix}")  # its owner, group and time stay 0
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                tick()
        write_json(folder / f"{shard:05d}_stats.json", _stats(len(part)))


def _about(key: str, caption: str, picture: bytes, size: int) -> bytes:
    about: dict[str, Any] = {"caption": caption, "url": "", "key": key, "status": "success", "error_message": None}
    about |= {"width": size, "height": size, "original_width": size, "original_height": size}
    return json.dumps(about | {"sha256": sha256(picture).hexdigest()}).encode()


def _stats(count: int) -> dict[str, Any]:
    failed = {"failed_to_download": 0, "failed_to_resize": 0}
    times = {"duration": 0.0, "start_time": 0.0, "end_time": 0.0}
    return {"count": count, "successes": count, **failed, **times, "status_dict": {"success": count}}


def write_visual_genome(folder: Path, scenes: Sequence[Scene], size: int, tick: Tick) -> None:
    """Write ``images/ID.jpg``, ``region_descriptions.json`` and ``image_data.json``; boxes in whole pixels."""
    (folder / "images").mkdir(parents=True)
    described, known = [], []
    region_id = 0
    for image_id, scene in enumerate(scenes, 1):
        (folder / "images" / f"{image_id}.jpg").write_bytes(jpeg(scene, size))
        records = []
        for phrase, (cx, cy, width, height) in regions(scene):
            region_id += 1
            x, y = round((cx - width / 2) * size), round((cy - height / 2) * size)
            box = {"x": x, "y": y, "width": round(width * size), "height": round(height * size)}
            records.append({"region_id": region_id, **box, "image_id": image_id, "phrase": phrase})
        described.append({"id": image_id, "regions": records})
        known.append({"image_id": image_id, "url": "", "width": size, "height": size, "coco_id": None})
        tick()
    write_json(folder / "region_descriptions.json", described)
    write_json(folder / "image_data.json", known)


def write_coco(folder: Path, images: Path, splits: Mapping[str, Sequence[Scene]], size: int, tick: Tick) -> None:
    """Write ``dataset_coco.json`` into ``folder`` and the pictures into a folder of ``images`` for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for split, image_id, scene in numbered(splits):
        subset, imgid = SUBSETS[split], len(records)
        filename = f"COCO_{subset}_{image_id:012d}.jpg"
        (images / subset).mkdir(parents=True, exist_ok=True)
        (images / subset / filename).write_bytes(jpeg(scene, size))
        sentences = [
            {"tokens": raw.replace(",", "").split(), "raw": raw, "imgid": imgid, "sentid": 5 * imgid + i}
            for i, raw in enumerate(describe(scene, 5))
        ]
        place = {"filepath": subset, "filename": filename, "split": split, "cocoid": image_id, "imgid": imgid}
        records.append(place | {"sentids": [s["sentid"] for s in sentences], "sentences": sentences})
        tick()
    write_json(folder / "dataset_coco.json", {"images": records, "dataset": "coco"})


def write_vqa(folder: Path, splits: Mapping[str, Sequence[Scene]]) -> None:
    """Write questions and annotations for the pictures that ``write_coco`` wrote of the same splits.

    Those of the test pictures have answers too, which of VQA v2 itself only the evaluation server knows.
    """
    folder.mkdir(parents=True)
    asked: dict[str, list[dict[str, Any]]] = {}
    noted: dict[str, list[dict[str, Any]]] = {}
    for split, image_id, scene in numbered(splits):
        subset = SUBSETS[split]
        for number, question in enumerate(_some(scene)):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            asked.setdefault(subset, []).append({**ids, "question": question.question})
            noted.setdefault(subset, []).append({**ids, **_annotation(question)})
    about: dict[str, Any] = {"info": {"description": "Shapes", "version": "2.0"}, "license": {}, "data_type": "mscoco"}
    for subset in asked:
        head = about | {"data_subtype": subset}
        path = folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"
        write_json(path, head | {"task_type": "Open-Ended", "questions": asked[subset]})
        write_json(folder / f"v2_mscoco_{subset}_annotations.json", head | {"annotations": noted[subset]})


def numbered(splits: Mapping[str, Sequence[Scene]]) -> Iterator[tuple[str, int, Scene]]:
    """Yield (split, image id, scene); ids run from 1 through all splits."""
    image_id = 0
    for split, scenes in splits.items():
        for scene in scenes:
            image_id += 1
            yield split, image_id, scene


def _some(scene: Scene) -> list[SceneQuestion]:
    rng = Random(scene.seed ^ 0x0A)
    return sorted(questions(scene), key=lambda _: rng.random())[:QUESTIONS_PER_IMAGE]


def _annotation(question: SceneQuestion) -> dict[str, Any]:
    """Ten people answer: eight with the usual word, two with another one where there is another."""
    words = variants(question.answer)
    given = [words[0]] * 8 + [words[-1]] * 2
    return {
        "question_type": next(start for start in _QUESTION_TYPES if question.question.startswith(start)),
        "answer_type": _ANSWER_TYPES.get(question.kind, "other"),
        "multiple_choice_answer": question.answer,
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(given, 1)],
    }
