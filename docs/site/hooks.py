"""What ``mkdocs`` does besides: pages that stand elsewhere in the repository, and two that are made from the code."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Page of the repository -> its name on the site."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in ``docs``."""
    made = {place: (ROOT / name).read_text() for name, place in OUTSIDE.items()}
    made |= {"api.md": api(), "commands.md": commands()}
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to pages of the site; what the site does not hold, such as code, becomes plain text."""
    source = next((name for name, place in OUTSIDE.items() if place == page.file.src_uri), None)
    here = ROOT if source else (ROOT / "docs" / page.file.src_uri).parent
    depth = "../" * page.file.src_uri.count("/")

    def lead(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = (here / target).resolve()
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else target
        place = OUTSIDE.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else None)
        known = place is not None and (place in OUTSIDE.values() or (ROOT / "docs" / place).is_file())
        if known and not str(place).endswith(".py"):
            return f"{found[1]}{depth}{place}{anchor}{found[4]}"
        if not path.exists():
            return found[0]  # mkdocs says that it leads nowhere
        return f"{found[1]}{depth}contributing.md{found[4]}"

    return LINK.sub(lead, text)


def api() -> str:
    """Make the page of every public name, in the order of the package's own list."""
    sys.path.insert(0, str(ROOT / "src"))
    import multiflow

    parts = ["# Python\n", "Every public name of `import multiflow as mf`.\n"]
    homes = {name: home for home, names in multiflow._HOMES.items() for name in names}
    for name in sorted(multiflow.__all__, key=str.lower):
        home = f"multiflow.{homes[name]}" if name in homes else "multiflow"
        parts.append(f"## `mf.{name}`\n\n::: {home}.{name}\n    options:\n      heading_level: 3\n")
    return "\n".join(parts)


def commands() -> str:
    """Make the page of every command: its help, as it prints it."""
    from multiflow.cli import COMMANDS, main

    parts = ["# Commands\n"]
    for name in COMMANDS:
        said = io.StringIO()
        with redirect_stdout(said):
            main([*name.split(), "--help"])
        parts.append(f"## multiflow {name}\n\n```text\n{COLOURS.sub('', said.getvalue()).strip()}\n```\n")
    return "\n".join(parts)
