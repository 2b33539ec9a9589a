"""A picture of one task: its support and query examples, and the predictions for the queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from metaforge.authoring.kinds import TaskKind
from metaforge.authoring.protocols import Examples, Task
from metaforge.errors import DataError
from metaforge.results.canvas import BLUE, GREY, INK, VERMILION, new_figure, save_png
from metaforge.results.grid_picture import Panel, on_grid, panel_grid

# The most support and query images that are drawn per class.
_SHOTS, _QUERIES = 5, 8
# Side of an image, gap between two of them, and height of the text below.
_CELL, _GAP, _TEXT = 1.0, 0.16, 0.26


def episode_grid(
    task: Task,
    out: Path,
    kind: TaskKind,
    predictions: Tensor | None = None,
    *,
    grid: tuple[int, ...] = (),
    title: str = "",
) -> None:
    """Draw one task with a row per class: its support images, then its queries with the predicted class below.

    A task whose kind is drawn as curves is drawn as points if it is one of scalars, and as images if its inputs are
    places of a grid with two dimensions.

    Args:
        task: The task, without a task dimension.
        out: PNG file to write.
        kind: The kind of the task, which says how it is drawn.
        predictions: For the queries: class indices `[n]`, logits `[n, ways]`, or the predicted numbers.
        grid: The shape of the grid of the inputs, see `Dataset.grid`.
        title: Title of the picture.

    Raises:
        DataError: The inputs are neither images of classes, nor scalars with scalar targets, nor places of a grid.
    """
    x_shape, y_shape = task.support.x.shape[1:], task.support.y.shape[1:]
    if kind.picture == "classes" and len(x_shape) == 3:
        _draw_images(task, out, predictions, title)
    elif kind.picture == "curves" and x_shape == y_shape == (1,):
        _draw_points(task, out, predictions, title)
    elif kind.picture == "curves" and len(grid) == 2:
        _draw_places(task, grid, out, title)
    else:
        raise DataError(
            f"A {kind.name} task with inputs of shape {tuple(x_shape)} cannot be drawn.",
            where="episode",
            remedy="draw a task of images with classes",
        )


def _draw_images(task: Task, out: Path, predictions: Tensor | None, title: str) -> None:
    labels = None if predictions is None else _labels(predictions)
    if labels is not None:
        correct = int((labels == task.query.y.cpu()).sum())
        score = f"{correct} of {len(labels)} queries correct"
        title = f"{title}\n{score}" if title else score
    ways = int(task.support.y.max()) + 1
    shots = min(_SHOTS, int(task.support.y.bincount().max()))
    queries = min(_QUERIES, int((task.query.y == 0).sum()))
    width = (shots + queries) * (_CELL + _GAP) + 1.0
    height = ways * (_CELL + _TEXT) + 0.6
    scale = min(0.85, 14 / height)
    figure = new_figure(max(width * scale + 0.3, 4.5), height * scale + (0.45 if title else 0.1), title)
    ax = figure.subplots()
    brightest = max(float(task.support.x.max()), float(task.query.x.max()))
    for way in range(ways):
        y = way * (_CELL + _TEXT)
        ax.text(-0.15, y + _CELL / 2, f"class {way}", ha="right", va="center", fontsize=9, color=INK)
        for column, index in enumerate(_members(task.support, way)[:shots]):
            _draw_image(ax, task.support.x[index], column * (_CELL + _GAP), y, brightest)
        start = shots * (_CELL + _GAP) + 0.5
        for column, index in enumerate(_members(task.query, way)[:queries]):
            x = start + column * (_CELL + _GAP)
            _draw_image(ax, task.query.x[index], x, y, brightest)
            if labels is not None:
                _mark_prediction(ax, x, y, int(labels[index]), way)
    per_class = int((task.query.y == 0).sum())
    shown = f" ({queries} of {per_class} per class)" if queries < per_class else ""
    _draw_headings(ax, shots, queries, start, shown)
    ax.set_xlim(-0.95, width - 0.4)
    ax.set_ylim(height - 0.55, -0.4)
    ax.set_aspect("equal")
    ax.set_axis_off()
    save_png(figure, out)


def _draw_headings(ax: Axes, shots: int, queries: int, start: float, shown: str) -> None:
    """Write a heading above the support images and one above the queries, and draw a line between them."""
    for x, count, text in ((0.0, shots, "support"), (start, queries, f"queries{shown}")):
        ax.text(x + (count * (_CELL + _GAP) - _GAP) / 2, -0.15, text, ha="center", fontsize=10, color=INK)
    ax.axvline(start - 0.25 - _GAP / 2, color=GREY, lw=0.8)


def _draw_image(ax: Axes, image: Tensor, x: float, y: float, brightest: float) -> None:
    """Draw an image `[C, H, W]` with its upper left corner at (x, y).

    Its values are from 0 to 255 if the task's `brightest` value is larger than 1, otherwise from 0 to 1.
    """
    pixels: NDArray[np.float64] = image.detach().cpu().double().permute(1, 2, 0).numpy()
    white = 255.0 if brightest > 1 else 1.0
    scaled = (pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]) / white
    ax.imshow(np.clip(scaled, 0, 1), extent=(x, x + _CELL, y + _CELL, y), cmap="gray", vmin=0, vmax=1)
    ax.add_patch(Rectangle((x, y), _CELL, _CELL, fill=False, edgecolor=GREY, lw=0.6))


def _mark_prediction(ax: Axes, x: float, y: float, label: int, way: int) -> None:
    """Frame a query and write its predicted class below, with a tick if it is correct and a cross if it is not."""
    correct = label == way
    colour = BLUE if correct else VERMILION
    ax.add_patch(Rectangle((x, y), _CELL, _CELL, fill=False, edgecolor=colour, lw=2.2))
    text = f"✓ {label}" if correct else f"✗ {label}"
    weight = "normal" if correct else "bold"
    ax.text(x + _CELL / 2, y + _CELL + 0.03, text, ha="center", va="top", fontsize=9, color=colour, weight=weight)


def _draw_points(task: Task, out: Path, predictions: Tensor | None, title: str) -> None:
    figure = new_figure(6.0, 4.0, title)
    ax = figure.subplots()
    query = task.query.x.flatten().cpu()
    ax.plot(query, task.query.y.flatten().cpu(), "o", color=GREY, ms=5, alpha=0.7, label="queries")
    if predictions is not None:
        ax.plot(query, predictions.detach().flatten().cpu(), "x", color=BLUE, ms=6, label="predictions")
    ax.plot(task.support.x.flatten().cpu(), task.support.y.flatten().cpu(), "^", color=INK, ms=8, label="support")
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_png(figure, out)


def _draw_places(task: Task, grid: tuple[int, ...], out: Path, title: str) -> None:
    everything = [torch.cat(pair) for pair in zip(task.support, task.query, strict=True)]
    support, both = on_grid(grid, *task.support), on_grid(grid, everything[0], everything[1])
    panel_grid([[Panel("support", support), Panel("support and queries", both)]], out, title=title)


def _labels(predictions: Tensor) -> Tensor:
    """Return class indices `[n]` for indices or logits."""
    labels = predictions.argmax(-1) if predictions.dim() == 2 else predictions
    return labels.detach().cpu()


def _members(examples: Examples, way: int) -> list[int]:
    """Return the indices of the examples of a class."""
    indices: list[int] = (examples.y.cpu() == way).nonzero().flatten().tolist()
    return indices
