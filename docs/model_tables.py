"""The short table of README of which models work, from the long one of ``models.md``."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

FOLDER = Path(__file__).parent
PLACES = {"models-short": FOLDER.parent / "README.md"}
"""Name of a part -> the page that it stands in, between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

BUILDS = {
    "dual": "two encoders and one space (CLIP and its kin)",
    "chat": "a vision tower that feeds a language model",
    "cross": "text that attends to the image in layers of its own",
    "joint": "one stack for pixels and words",
    "sound": "with sound too",
}
"""How a model is built -> the words for it, in the order of the table."""


def built(name: str, groups: set[str]) -> str:
    """Return how a model is built, by its class and the groups that were found in it."""
    if "audio" in groups:
        return "sound"
    if groups == {"text", "vision"} and name.endswith(("Model", "Retrieval")):
        return "dual"
    if "fusion" in groups and len(groups) > 1:
        return "cross"
    return "joint" if groups in ({"fusion"}, {"text"}) else "chat"


def parts() -> dict[str, str]:
    """Return the parts of pages that come from ``models.md``, by name."""
    lines = [line for line in (FOLDER / "models.md").read_text().splitlines() if line.startswith("| ")]
    types: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for line in lines[1:]:
        kind, name, groups, *_, result = line.strip("| ").split(" | ")
        if result.startswith("passes"):
            types[built(name, {group.rpartition(" ")[0] for group in groups.split(", ")})][f"`{kind}`"] = None
    rows = [f"| {words} | {', '.join(types[key])} |" for key, words in BUILDS.items()]
    return {"models-short": "| how it is built | `model_type` |\n|---|---|\n" + "\n".join(rows)}
