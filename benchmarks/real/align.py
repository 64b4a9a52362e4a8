"""An image-text model whose towers others pretrained, aligned here: ViT layers 1 to 10 and MiniLM, by contrast.

All layers but the last of each tower are frozen, so what they compute is computed once; the last layers, the final
norm, the pooler and both projections are trained on emoji as Google draws them and on clip art. Of the last layers
only the class token goes on, so only it is computed: a tenth of the work. Every epoch is a function of the seed and
its number, and leaves a checkpoint: a killed training goes on to the same bits.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizerFast, VisionTextDualEncoderModel

from benchmarks.real.folders import SIDE, training, unseen
from benchmarks.real.models import minilm, vit
from benchmarks.real.pictures import Picture, on_white, texts_of
from benchmarks.real.retrieval import both_ways
from benchmarks.real.towers import MEAN, STD, load_minilm, load_vit, write_processor
from multiflow.families.opening import quiet_transformers

WORDS = 24  # tokens of a text at most
VARIANTS = 1  # pictures of each thing: as it is, and mirrored, smaller, on a ground of some colour
BATCH = 128
EPOCHS = 12
RATE, NEW_RATE = 1e-4, 1e-3  # of pretrained layers, and of what is new
SCALE = 2.66  # logarithm of the first factor of the similarities, as CLIP has it
MOST_SCALE = math.log(100)


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Return pictures as the ViT takes them: (pictures, 3, side, side)."""
    raw = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures]) / 255
    normal = (raw - np.array(MEAN, dtype=np.float32)) / np.array(STD, dtype=np.float32)
    return torch.from_numpy(normal.transpose(0, 3, 1, 2).copy())


def variant(picture: Image.Image, number: int, seed: int) -> Image.Image:
    """Return a picture as it is (0), or mirrored, smaller, and moved on a ground of some light colour."""
    if number == 0:
        return picture
    random = np.random.default_rng([seed, number])
    side = picture.width
    small = round(side * random.uniform(0.65, 0.95))
    colour = tuple(int(c) for c in random.integers(190, 256, 3))
    marked = ImageOps.mirror(picture).resize((small, small), Image.Resampling.BICUBIC)
    ground = Image.new("RGB", (side, side), colour)
    at = tuple(int(x) for x in random.integers(0, side - small + 1, 2))
    light = np.asarray(marked).min(2) > 245  # the white ground of the picture
    ground.paste(marked, at, Image.fromarray(np.where(light, 0, 255).astype(np.uint8)))
    return ground


def build(vit: Path, minilm: Path) -> VisionTextDualEncoderModel:
    """Join the two towers; new are the projections, and the pooler begins as nearly nothing but a scale."""
    torch.manual_seed(0)
    with quiet_transformers():
        model = VisionTextDualEncoderModel(vision_model=load_vit(vit), text_model=load_minilm(minilm))
    with torch.no_grad():
        model.text_model.pooler.dense.weight.copy_(0.5 * torch.eye(model.text_embed_dim))
        model.text_model.pooler.dense.bias.zero_()
        model.logit_scale.fill_(SCALE)
    return model.eval()


def trained(model: VisionTextDualEncoderModel) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    last = [f"{side}_model.encoder.layer.{len(tower.encoder.layer) - 1}." for side, tower in towers(model).items()]
    new = ("vision_model.layernorm.", "text_model.pooler.", "visual_projection.", "text_projection.", "logit_scale")
    return {name: parameter for name, parameter in model.named_parameters() if name.startswith((*last, *new))}


def towers(model: VisionTextDualEncoderModel) -> dict[str, nn.Module]:
    return {"vision": model.vision_model, "text": model.text_model}


@torch.no_grad()
def lower_vision(model: VisionTextDualEncoderModel, images: Tensor) -> Tensor:
    """Return what the frozen layers make of pixels: (images, tokens, width)."""
    hidden = model.vision_model.embeddings(images)
    for layer in model.vision_model.encoder.layer[:-1]:
        hidden = layer(hidden)
    return hidden


def upper_vision(model: VisionTextDualEncoderModel, hidden: Tensor) -> Tensor:
    """Return unit vectors of images from what the frozen layers made of them; at last only the class token asks."""
    layer, heads = model.vision_model.encoder.layer[-1], model.config.vision_config.num_attention_heads
    part, normal = layer.attention, layer.norm1(hidden)
    seen = _attended(part.q_proj(normal[:, :1]), part.k_proj(normal), part.v_proj(normal), heads)
    first = hidden[:, :1] + layer.layer_scale1(part.o_proj(seen))
    first = first + layer.layer_scale2(layer.mlp(layer.norm2(first)))
    return F.normalize(model.visual_projection(model.vision_model.layernorm(first)[:, 0]), dim=-1)


@torch.no_grad()
def lower_text(model: VisionTextDualEncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return what the frozen layers make of tokens: (texts, tokens, width)."""
    hidden = model.text_model.embeddings(input_ids=ids)
    for layer in model.text_model.encoder.layer[:-1]:
        hidden = layer(hidden, mask[:, None, None, :].bool())
    return hidden


def upper_text(model: VisionTextDualEncoderModel, hidden: Tensor, mask: Tensor) -> Tensor:
    """Return unit vectors of texts, likewise."""
    layer, heads = model.text_model.encoder.layer[-1], model.config.text_config.num_attention_heads
    part = layer.attention.self
    seen = _attended(
        part.query(hidden[:, :1]), part.key(hidden), part.value(hidden), heads, mask[:, None, None, :].bool()
    )
    first = layer.attention.output(seen, hidden[:, :1])
    first = layer.output(layer.intermediate(first), first)
    return F.normalize(model.text_projection(model.text_model.pooler(first)), dim=-1)


def _attended(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Things:
    """What the frozen layers made of pictures and their texts."""

    images: Tensor  # (things, variants, tokens, width), half precision
    texts: Tensor  # (things, variants, tokens, width), half precision
    masks: Tensor  # (things, variants, tokens)
    names: Tensor  # number of the name of each thing: equal names are equally right


def measure(
    model: VisionTextDualEncoderModel,
    pictures: Sequence[Picture],
    tokenizer: BertTokenizerFast,
    variants: int,
    say: Callable[[str], None] = print,
) -> Things:
    """Run the frozen layers once over pictures and texts."""
    images, texts, masks = [], [], []
    names = {name: at for at, name in enumerate(dict.fromkeys(picture.text.lower() for picture in pictures))}
    for first in range(0, len(pictures), 32):
        part = pictures[first : first + 32]
        drawn = [on_white(picture.path, SIDE) for picture in part]
        rows = [
            lower_vision(model, pixels([variant(p, number, first + at) for at, p in enumerate(drawn)])).half()
            for number in range(variants)
        ]
        images.append(torch.stack(rows, 1))
        said = [text for picture in part for text in (list(texts_of(picture)) * 2)[:2]]
        encoded = tokenizer(said, padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt")
        hidden = lower_text(model, encoded["input_ids"], encoded["attention_mask"]).half()
        texts.append(hidden.unflatten(0, (len(part), 2)))
        masks.append(encoded["attention_mask"].unflatten(0, (len(part), 2)))
        if first % 320 == 0:
            say(f"frozen layers: {first} of {len(pictures)} pictures")
    number_of = torch.tensor([names[picture.text.lower()] for picture in pictures])
    return Things(torch.cat(images), torch.cat(texts), torch.cat(masks), number_of)


def loss_of(model: VisionTextDualEncoderModel, images: Tensor, texts: Tensor, names: Tensor) -> Tensor:
    """Contrast both ways; things of one name share the truth."""
    logits = model.logit_scale.clamp(max=MOST_SCALE).exp() * images @ texts.T
    truth = (names[:, None] == names[None, :]).float()
    truth = truth / truth.sum(1, keepdim=True)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def train(
    model: VisionTextDualEncoderModel,
    things: Things,
    place: Path,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    after: Callable[[int, float, float], None],
) -> None:
    """Train the upper layers, epoch by epoch, from the last checkpoint in ``place`` on.

    Args:
        model: changed in place.
        things: of `measure`.
        place: file of the checkpoint, tensors alone.
        epochs: how often every thing is seen.
        seed: of order, variants and dropout.
        after: told epoch, mean loss and seconds.
    """
    parameters = trained(model)
    new = [n for n in parameters if "projection" in n or "pooler" in n or n == "logit_scale"]
    groups = [
        {"params": [p for n, p in parameters.items() if n not in new], "lr": RATE, "top": RATE},
        {"params": [p for n, p in parameters.items() if n in new], "lr": NEW_RATE, "top": NEW_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))
    done = _resume(place, parameters, optimizer)
    count = len(things.names)
    steps = math.ceil(count / BATCH)
    for epoch in range(done, epochs):
        began, total = time.monotonic(), 0.0
        torch.manual_seed(seed * 1000 + epoch)
        order = torch.randperm(count)
        look = torch.randint(things.images.shape[1], (count,))
        say = torch.randint(2, (count,))
        model.train()
        for step in range(steps):
            share = (epoch * steps + step) / (epochs * steps)
            rise = min(1.0, (epoch * steps + step + 1) / (0.05 * epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * rise * 0.5 * (1 + math.cos(math.pi * share))
            chosen = order[step * BATCH : (step + 1) * BATCH]
            mask = things.masks[chosen, say[chosen]]
            length = int(mask.sum(1).max())
            images = upper_vision(model, things.images[chosen, look[chosen]].float())
            texts = upper_text(model, things.texts[chosen, say[chosen], :length].float(), mask[:, :length])
            loss = loss_of(model, images, texts, things.names[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            total += loss.item()
        model.eval()
        _keep(place, parameters, optimizer, epoch + 1)
        after(epoch, total / steps, time.monotonic() - began)


def _keep(place: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, epoch: int) -> None:
    state = {f"weight/{name}": of.detach() for name, of in parameters.items()}
    for name, of in parameters.items():
        for key, value in optimizer.state[of].items():
            state[f"{key}/{name}"] = value
    partial = place.with_suffix(".partial")
    save_file({name: of.contiguous() for name, of in state.items()}, partial, metadata={"epoch": str(epoch)})
    partial.replace(place)


def _resume(place: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Take weights and the optimizer's moments from a checkpoint; return the epochs that are done."""
    if not place.exists():
        return 0
    with safe_open(place, "pt") as file:
        epoch = int(file.metadata()["epoch"])
    state = load_file(place)
    with torch.no_grad():
        for name, of in parameters.items():
            of.copy_(state[f"weight/{name}"])
            optimizer.state[of] = {key: state[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return epoch


@torch.no_grad()
def recalls(model: VisionTextDualEncoderModel, things: Things) -> tuple[float, float]:
    """Return R@1 and R@10, in percent, both ways, of things from what the frozen layers made of them."""
    images = torch.cat([upper_vision(model, part.float()) for part in things.images[:, 0].split(64)])
    texts = torch.cat(
        [
            upper_text(model, h.float(), m)
            for h, m in zip(things.texts[:, 0].split(64), things.masks[:, 0].split(64), strict=True)
        ]
    )
    one, ten = (fmean(both_ways(images, texts, k)) for k in (1, 10))
    return one, ten


def align(cache: Path, *, epochs: int = EPOCHS, say: Callable[[str], None] = print) -> Path:
    """Make the aligned model in the cache unless it is there; return its folder."""
    out = cache / "models" / "aligned"
    if (out / "config.json").exists():
        return out
    model = build(vit(cache, 10), minilm(cache))
    tokenizer = BertTokenizerFast.from_pretrained(minilm(cache))
    work = cache / "models" / "aligned-training"
    work.mkdir(parents=True, exist_ok=True)
    things = _measured(work / "training.safetensors", model, training(cache), tokenizer, VARIANTS, say)
    held = _measured(work / "unseen.safetensors", model, unseen(cache, "google"), tokenizer, 1, say)

    def after(epoch: int, loss: float, seconds: float) -> None:
        one, ten = recalls(model, held)
        found = f"loss {loss:.3f}, R@1 {one:.1f}, R@10 {ten:.1f} of unseen emoji"
        say(f"epoch {epoch + 1} of {epochs}: {found} ({seconds:.0f} s)")

    train(model, things, work / "checkpoint.safetensors", epochs=epochs, after=after)
    partial = out.with_name("aligned.partial")
    with quiet_transformers():
        model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_processor(partial, SIDE)
    partial.replace(out)
    return out


def _measured(path: Path, model: VisionTextDualEncoderModel, *what: object) -> Things:
    names = ("images", "texts", "masks", "names")
    if not path.exists():
        made = measure(model, *what)  # type: ignore[arg-type]
        save_file({name: getattr(made, name).contiguous() for name in names}, path)
    state = load_file(path)
    return Things(*(state[name] for name in names))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    align(given.cache, epochs=given.epochs, say=lambda line: print(line, flush=True))
