"""Scenes in the file layouts of CC3M (img2dataset shards), Visual Genome, COCO (Karpathy's JSON) and VQA v2.

Every writer writes the same bytes for the same scenes: no clock, no user, no unordered set enters a file. Pictures are
JPEGs of quality 95 without chroma subsampling: at 64 pixels six times as fast to write as PNG, half its size where
there is texture, one or two grey levels off, and named as in the real data sets.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from multiflow.worlds.shapes.language import describe
from multiflow.worlds.shapes.lexicon import variants
from multiflow.worlds.shapes.questions import Question, questions
from multiflow.worlds.shapes.regions import regions
from multiflow.worlds.shapes.render import render
from multiflow.worlds.shapes.scene import Scene

Tick = Callable[[], None]
"""Called after every picture."""
QUESTIONS_PER_IMAGE = 5
SUBSETS = {"train": "train2014", "val": "val2014", "test": "test2015"}
"""Split -> COCO's name of the pictures."""
_ANSWER_TYPES = {"yes/no": "yes/no", "count": "number"}
_QUESTION_TYPES = ("how many", "is there a", "is there", "is the", "what color is the", "what", "where is the")


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


def _some(scene: Scene) -> list[Question]:
    rng = Random(scene.seed ^ 0x0A)
    return sorted(questions(scene), key=lambda _: rng.random())[:QUESTIONS_PER_IMAGE]


def _annotation(question: Question) -> dict[str, Any]:
    """Ten people answer: eight with the usual word, two with another one where there is another."""
    words = variants(question.answer)
    given = [words[0]] * 8 + [words[-1]] * 2
    return {
        "question_type": next(start for start in _QUESTION_TYPES if question.question.startswith(start)),
        "answer_type": _ANSWER_TYPES.get(question.kind, "other"),
        "multiple_choice_answer": question.answer,
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(given, 1)],
    }
