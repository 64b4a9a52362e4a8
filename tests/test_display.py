"""What values show of themselves: one line in a console, a table or a drawing in a notebook, a page on disk."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import multiflow as mf

LONGEST = 250  # characters of a line that a person reads


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eyes, self.words = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.words(self.eyes(x))


ADAPTER = mf.Adapter(groups={"vision": "eyes", "<b>text</b>": "words"}, forward=lambda model, batch: model(batch))


@pytest.fixture
def result() -> mf.Result:
    torch.manual_seed(0)
    return mf.prune(Model(), "wanda", [0.25, 0.5], [torch.randn(4, 8)] * 2, adapter=ADAPTER)


def test_nothing_prints_more_than_a_line(result):
    batches = mf.calibration_batches(mf.load_model("xvlm-shapes"), batches=1, batch_size=2)
    for value in (result, result.masks[0.5], result.masks[0.5].layout, result.stats, result.scores, batches):
        assert len(repr(value)) < LONGEST
        assert "\n" not in repr(value)
        assert repr(value).startswith(type(value).__name__)
    assert "wanda" in repr(mf.PRUNERS)


def test_a_line_says_what_there_is(result):
    assert "wanda" in repr(result)
    assert "0.25, 0.5" in repr(result)
    assert "2 layers" in repr(result)
    assert "256 weights" in repr(result)
    assert "vision 50 %" in repr(result.masks[0.5])


def test_a_notebook_shows_groups_with_their_zeros(result):
    for value in (result, result.masks[0.5]):
        tags, text = parse(value._repr_html_())
        assert tags.count("table") == 1
        assert "50 %" in text
        assert "<b>text</b>" in text  # escaped: a name is no markup


def test_a_result_is_drawn(result, tmp_path):
    drawn = result.plot()
    assert len(repr(drawn)) < LONGEST
    tags, _ = parse(drawn._repr_html_())
    assert tags == ["iframe"]  # its style stays inside
    page = drawn.save(tmp_path / "zeros.html").read_text()
    assert page.count("at 25") + page.count("at 50") >= 2  # a drawing a sparsity
    assert "<b>text</b>" not in page


@pytest.fixture
def comparison() -> mf.Comparison:
    torch.manual_seed(0)
    batches = [torch.randn(4, 8)] * 2
    return mf.compare_pruners(Model(), ["magnitude", "wanda"], [0.25, 0.5], batches, adapter=ADAPTER)


def test_a_notebook_shows_a_comparison_as_a_table(comparison):
    tags, text = parse(comparison._repr_html_())
    assert tags.count("table") == 1
    assert tags.count("tr") == 1 + 4  # a head, then two methods at two sparsities
    assert all(name in text for name in ("magnitude", "wanda", "50"))
    assert "b" in tags[tags.index("tr") :]  # the best of a column


@pytest.mark.parametrize("name", ["page.html", "page.md"])
def test_a_comparison_is_written_as_a_page(comparison, tmp_path, name):
    page = comparison.report(tmp_path / name).read_text()
    for fact in ("magnitude", "wanda", "vision", "alike"):
        assert fact in page


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_a_report_says_how_much_went_and_how(result, tmp_path, name):
    page = result.report(tmp_path / name).read_text()
    for fact in ("wanda", "Model", "50.00", "vision", "calibrate"):
        assert fact in page


def test_a_report_is_html_or_markdown(result, comparison, tmp_path):
    for value in (result, comparison):
        with pytest.raises(mf.MultiflowError, match=r"report\.pdf.*\.html or \.md"):
            value.report(tmp_path / "report.pdf")


def parse(html: str) -> tuple[list[str], str]:
    """The tags and the text of HTML."""
    tags: list[str] = []
    texts: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.handle_data = texts.append  # type: ignore[method-assign]
    parser.feed(html)
    return tags, " ".join(texts)
