"""Takes pictures of the reports of demo, bench and compare in a browser: ``python docs/screenshots.py``.

Each report is shown in light, dark, on a phone (390 pixels wide) and as printed. The pictures are for looking at, after
any change of the pages; none of them is compared with another. Needs Chromium or Chrome on the PATH.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops

from multiflow import MultiflowError

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars")
PAGES = {
    "demo": (("demo",), "report.html"),
    "bench": (("bench", "report", "benchmarks/results/shapes"), "report.html"),
    "compare": (
        ("compare", "xvlm-shapes", "--methods", "magnitude", "wanda", "ria", "multiflow", "sparsegpt"),
        "compare.html",
    ),
}
"""Name of a report -> the command that makes it, and its page in the folder that ``--out`` names."""
TALL = 16_000  # pixels; what is empty below a page is cut off


def find_browser() -> str:
    """Return the program; raises where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise MultiflowError(f"no browser found to take pictures with; put one of {', '.join(BROWSERS)} on the PATH")
    return found


def dark(html: str) -> str:
    return html.replace('<html lang="en">', '<html lang="en" data-theme="dark">')


def printed(html: str) -> str:
    """The page with its rules for paper in force, and everything that folds open, as printing opens it."""
    return re.sub(r"<details(?! ?[^>]*open=)", '<details open="open"', html.replace("@media print", "@media all"))


LOOKS: dict[str, tuple[int, Callable[[str], str]]] = {
    "light": (1240, str),
    "dark": (1240, dark),
    "narrow": (390, str),
    "print": (900, printed),
}
"""Name of a look -> width of the window in pixels, and what is changed in the page."""


def shoot(browser: str, html: str, width: int, to: Path) -> None:
    """Take a picture of a whole page."""
    with tempfile.TemporaryDirectory() as folder:
        page, frame = Path(folder) / "page.html", Path(folder) / "frame.html"
        page.write_text(html, encoding="utf-8")
        # a window cannot be as narrow as a phone: the page stands in a frame that can
        style = f"display:block;border:0;width:{width}px;height:{TALL}px"
        frame.write_text(f'<body style="margin:0"><iframe src="page.html" style="{style}"></iframe>', encoding="utf-8")
        size = f"--window-size={max(width, 600)},{TALL}"
        command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", size, f"--screenshot={to}", frame.as_uri()]
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    picture = Image.open(to).convert("RGB").crop((0, 0, width, TALL))
    ground = Image.new("RGB", picture.size, picture.getpixel((width - 1, TALL - 1)))
    box = ImageChops.difference(picture, ground).getbbox()
    picture.crop((0, 0, width, min(TALL, box[3] + 40 if box else TALL))).save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "screenshots")
    parser.add_argument("--only", nargs="+", choices=PAGES, default=[*PAGES])
    options = parser.parse_args()
    browser = find_browser()
    for name in options.only:
        words, page = PAGES[name]
        folder = options.out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "multiflow", *words, "--out", str(folder)], check=True, cwd=ROOT)
        html = (folder / page).read_text(encoding="utf-8")
        for look, (width, change) in LOOKS.items():
            to = options.out / f"{name}-{look}.png"
            shoot(browser, change(html), width, to)
            print(to)


if __name__ == "__main__":
    try:
        main()
    except MultiflowError as error:
        sys.exit(f"Error: {error}")
