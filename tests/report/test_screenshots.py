from __future__ import annotations

from pathlib import Path

import pytest

from tests import processes

SCRIPT = Path(__file__).parents[2] / "docs" / "screenshots.py"


def test_without_a_browser_it_says_which_ones_it_looks_for(tmp_path):
    ran = processes.run(processes.PYTHON, SCRIPT, env={"PATH": str(tmp_path)})
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: no browser found")
    assert "chromium" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        import screenshots

        yield screenshots


def test_what_is_folded_is_open_on_paper_and_rules_for_paper_hold(script):
    page = '<style>@media print { a }</style><details><summary>x</summary></details><details open="open">y</details>'
    shown = script.printed(page)
    assert "@media all" in shown
    assert shown.count('<details open="open"') == 2


def test_a_picture_is_as_wide_as_a_phone_and_as_high_as_the_page(script, tmp_path):
    try:
        browser = script.find_browser()
    except script.MultiflowError:
        pytest.skip("no browser")
    script.shoot(
        browser, '<body style="margin:0"><div style="height:300px;background:red">x</div>', 390, tmp_path / "a.png"
    )
    from PIL import Image

    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (390, 340)
        assert picture.getpixel((389, 100)) == (255, 0, 0)
