"""Pictures of regression tasks whose inputs are places of a grid with two dimensions, such as pixels of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from torch import Tensor

from metaforge.results.canvas import INK, SKY, new_figure, save_png

# The side of an image in inches, and the largest width of a picture.
_SIDE, _WIDTH = 1.15, 14.0


class Panel(NamedTuple):
    """One image of a picture: its heading, and the values `[height, width, channels]`, NaN where nothing is known.

    Values are from 0 (black) to 1 (white), except that the largest deviation of a picture is white.
    """

    heading: str
    values: Tensor
    is_deviation: bool = False


def on_grid(grid: tuple[int, ...], x: Tensor, values: Tensor) -> Tensor:
    """Return values `[n, channels]` at their places x `[n, 2]` of a grid `[height, width, channels]`, else NaN."""
    sizes = torch.tensor(grid, dtype=torch.float64)
    rows, columns = ((x.detach().cpu().double() + 1) / 2 * (sizes - 1)).round().long().unbind(-1)
    placed = torch.full((*grid, values.shape[-1]), math.nan, dtype=torch.float64)
    placed[rows, columns] = values.detach().cpu().double()
    return placed


def panel_grid(rows: Sequence[Sequence[Panel]], out: Path, *, title: str = "") -> None:
    """Draw panels in rows, with a heading above each column; places where nothing is known are blue."""
    columns = len(rows[0])
    side = min(_SIDE, _WIDTH / columns)
    deviations = [panel.values.nan_to_num(0).mean(-1).max() for row in rows for panel in row if panel.is_deviation]
    largest = max((float(value) for value in deviations), default=0.0)
    figure = new_figure(max(columns * side + 0.3, 4.5), len(rows) * side + 0.9, title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for number, row in enumerate(rows):
        for ax, panel in zip(axes[number], row, strict=True):
            ax.imshow(pixels(panel, largest), interpolation="nearest")
            ax.set_axis_off()
            if number == 0:
                scale = f"\n(white: {largest:.2g})" if panel.is_deviation else ""
                ax.set_title(panel.heading + scale, fontsize=9, color=INK)
    save_png(figure, out)


def pixels(panel: Panel, largest: float) -> NDArray[np.float64]:
    """Return a panel as colours `[height, width, 3]`; a deviation of `largest`, in the mean of channels, is white."""
    values = panel.values.numpy()
    unknown = np.isnan(values).any(axis=-1)
    if panel.is_deviation:
        values = values.mean(axis=-1, keepdims=True) / (largest or 1.0)
    grey = values.shape[-1] < 3
    shown = np.repeat(values[..., :1], 3, axis=-1) if grey else values[..., :3]
    colours: NDArray[np.float64] = np.clip(np.where(unknown[..., None], to_rgb(SKY), shown), 0, 1)
    return colours
