"""Pictures of tasks on a grid: each pixel is where its input says, and unknown ones are blue."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from metaforge.results.grid_picture import Panel, on_grid, panel_grid, pixels
from pictures import colours

SKY = (0x56, 0xB4, 0xE9)


def test_values_are_at_their_places() -> None:
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 6), indexing="ij")
    x = torch.stack([rows, columns], -1).reshape(-1, 2)
    values = torch.arange(48.0).reshape(24, 2)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(on_grid((4, 6), x[order], values[order]), values.reshape(4, 6, 2).double())
    some = on_grid((4, 6), x[:5], values[:5])
    assert int(some.isnan().all(-1).sum()) == 19
    assert torch.equal(some[0, :5], values[:5].double())
    assert on_grid((1, 1), torch.tensor([[-1.0, -1.0]]), torch.ones(1, 1)).tolist() == [[[1.0]]]


def test_colours_of_a_panel() -> None:
    grey = torch.tensor([[[0.25], [2.0]], [[-1.0], [math.nan]]], dtype=torch.float64)
    found = pixels(Panel("grey", grey), 0.0)
    assert found[:, :, 0].tolist()[0] == [0.25, 1.0]
    assert found[1, 0].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(found[1, 1] * 255, SKY)
    coloured = torch.rand(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(pixels(Panel("colour", coloured), 0.0), coloured.numpy())
    # A deviation is the mean of the channels, relative to the largest of the picture.
    deviation = pixels(Panel("deviation", coloured, True), 2.0)
    np.testing.assert_allclose(deviation, np.repeat(coloured.numpy().mean(-1, keepdims=True) / 2, 3, axis=-1))
    assert pixels(Panel("deviation", torch.zeros(2, 2, 1, dtype=torch.float64), True), 0.0).max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_the_colours_of_its_panels(channels: int, tmp_path: Path) -> None:
    known = torch.full((4, 4, channels), 0.4, dtype=torch.float64)
    holes = known.clone()
    holes[0] = math.nan
    panel_grid([[Panel("image", known)]], tmp_path / "known.png")
    panel_grid([[Panel("image", known), Panel("given", holes)]] * 2, tmp_path / "holes.png", title="two tasks")
    assert (102, 102, 102) in colours(tmp_path / "known.png")
    assert SKY not in colours(tmp_path / "known.png")
    assert {SKY, (102, 102, 102)} <= colours(tmp_path / "holes.png")
