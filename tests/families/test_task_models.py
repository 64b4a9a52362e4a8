from __future__ import annotations

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.families.task_models import resize_positions


def ramp(side):
    """[CLS] at 7, then the row and the column of each cell's middle, in shares of the side."""
    middle = (torch.arange(side) + 0.5) / side
    grid = torch.stack(torch.meshgrid(middle, middle, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat([torch.full((1, 2), 7.0), grid])


def test_an_equal_size_changes_nothing_and_gives_a_copy():
    positions = torch.randn(1 + 9, 5)
    resized = resize_positions(positions, 3)
    assert torch.equal(resized, positions)
    assert resized.data_ptr() != positions.data_ptr()


@pytest.mark.parametrize(("old", "new"), [(8, 12), (14, 24), (12, 8)])
def test_a_ramp_stays_a_ramp_inside(old, new):
    resized, expected = resize_positions(ramp(old), new), ramp(new)
    assert torch.equal(resized[0], expected[0])
    inside = (expected > 2.5 / old) & (expected < 1 - 2.5 / old)  # bicubic looks two cells around itself
    inside[0] = False
    assert inside.any()
    torch.testing.assert_close(
        resized[inside], expected[inside], atol=0.05 / old, rtol=0
    )  # of a cell; a = -0.75 is not exact


def test_the_weights_are_those_of_bicubic_interpolation():
    """Twice as fine, a new cell lies a quarter from the nearest old one: the kernel (a = -0.75) at 0.25, 0.75, ..."""
    positions = torch.cat([torch.zeros(1, 8), torch.eye(8).repeat_interleave(8, 0)])  # channel i: row i is one
    before, after = resize_positions(positions, 16)[1:].view(16, 16, 8)[7:9, 0]  # of the middle
    kernel = torch.tensor([-0.10546875, 0.87890625, 0.26171875, -0.03515625])
    torch.testing.assert_close(before[2:6], kernel)
    torch.testing.assert_close(after[2:6], kernel.flip(0))


def test_rows_and_columns_are_not_mixed_up():
    positions = torch.zeros(1 + 16, 1)
    positions[1 + 4 * 3] = 1.0  # row 3, column 0
    assert resize_positions(positions, 8)[1:, 0].view(8, 8)[:, :4].argmax() // 4 >= 6


def test_half_precision_is_resized_in_single():
    positions = torch.randn(1 + 16, 3).bfloat16()
    resized = resize_positions(positions, 6)
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized, resize_positions(positions.float(), 6).bfloat16())


@pytest.mark.parametrize("count", [0, 9, 12])
def test_no_square_grid(count):
    with pytest.raises(MultiflowError, match=f"there are {count} position embeddings; expected that of"):
        resize_positions(torch.zeros(count, 4), 4)
