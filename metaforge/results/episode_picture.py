"""A picture of one task: its support and query examples, and what was predicted of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from metaforge.authoring.protocols import Examples, Task
from metaforge.errors import DataError
from metaforge.results.canvas import BLUE, GREY, INK, VERMILION, new_figure, save

_SHOTS, _QUERIES, _CELL, _GAP, _TEXT = 5, 8, 1.0, 0.16, 0.26


def episode_grid(task: Task, out: Path, predictions: Tensor | None = None, *, title: str = "") -> None:
    """Draw one task, a row for each class: its support images, then its queries with the predicted class below.

    `predictions` are class indices `[n]` or logits `[n, ways]` of the queries. Tasks of numbers are drawn as points.
    Raises `DataError` if the inputs are neither images nor numbers.
    """
    if task.support.x.dim() == 4 and not task.support.y.is_floating_point():
        _images(task, out, predictions, title)
    elif task.support.x.dim() == 2 and task.support.x.shape[1] == 1 and task.support.y.is_floating_point():
        _points(task, out, predictions, title)
    else:
        shape = tuple(task.support.x.shape[1:])
        raise DataError(f"Inputs of shape {shape} cannot be drawn.", where="episode", remedy="draw a task of images")


def _images(task: Task, out: Path, predictions: Tensor | None, title: str) -> None:
    labels = None if predictions is None else _labels(predictions)
    if labels is not None:
        right = int((labels == task.query.y.cpu()).sum())
        score = f"{right} of {len(labels)} queries right"
        title = f"{title}\n{score}" if title else score
    ways = int(task.support.y.max()) + 1
    shots = min(_SHOTS, int((task.support.y == 0).sum()))
    queries = min(_QUERIES, int((task.query.y == 0).sum()))
    width = (shots + queries) * (_CELL + _GAP) + 1.0
    height = ways * (_CELL + _TEXT) + 0.6
    scale = min(0.85, 14 / height)
    figure = new_figure(max(width * scale + 0.3, 4.5), height * scale + (0.45 if title else 0.1), title)
    ax = figure.subplots()
    top = max(float(task.support.x.max()), float(task.query.x.max()))
    for way in range(ways):
        y = way * (_CELL + _TEXT)
        ax.text(-0.15, y + _CELL / 2, f"class {way}", ha="right", va="center", fontsize=9, color=INK)
        for column, index in enumerate(_members(task.support, way)[:shots]):
            _image(ax, task.support.x[index], column * (_CELL + _GAP), y, top)
        start = shots * (_CELL + _GAP) + 0.5
        for column, index in enumerate(_members(task.query, way)[:queries]):
            x = start + column * (_CELL + _GAP)
            _image(ax, task.query.x[index], x, y, top)
            if labels is not None:
                _verdict(ax, x, y, int(labels[index]), way)
    each = int((task.query.y == 0).sum())
    _headings(ax, shots, queries, start, f" ({queries} of {each} of each class)" if queries < each else "")
    ax.set_xlim(-0.95, width - 0.4)
    ax.set_ylim(height - 0.55, -0.4)
    ax.set_aspect("equal")
    ax.set_axis_off()
    save(figure, out)


def _headings(ax: Axes, shots: int, queries: int, start: float, shown: str) -> None:
    for x, count, words in ((0.0, shots, "support"), (start, queries, f"queries{shown}")):
        ax.text(x + (count * (_CELL + _GAP) - _GAP) / 2, -0.15, words, ha="center", fontsize=10, color=INK)
    ax.axvline(start - 0.25 - _GAP / 2, color=GREY, lw=0.8)


def _image(ax: Axes, image: Tensor, x: float, y: float, top: float) -> None:
    """Put an image `[C, H, W]` of numbers from 0 to `top` into the cell whose upper left corner is at (x, y)."""
    pixels: NDArray[np.float64] = image.detach().cpu().double().permute(1, 2, 0).numpy()
    full = 255.0 if top > 1 else 1.0
    shown = (pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]) / full
    ax.imshow(np.clip(shown, 0, 1), extent=(x, x + _CELL, y + _CELL, y), cmap="gray", vmin=0, vmax=1)
    ax.add_patch(Rectangle((x, y), _CELL, _CELL, fill=False, edgecolor=GREY, lw=0.6))


def _verdict(ax: Axes, x: float, y: float, label: int, way: int) -> None:
    """Frame a query and write its predicted class below, with a tick where it is right and a cross where not."""
    right = label == way
    colour = BLUE if right else VERMILION
    ax.add_patch(Rectangle((x, y), _CELL, _CELL, fill=False, edgecolor=colour, lw=2.2))
    text = f"✓ {label}" if right else f"✗ {label}"
    weight = "normal" if right else "bold"
    ax.text(x + _CELL / 2, y + _CELL + 0.03, text, ha="center", va="top", fontsize=9, color=colour, weight=weight)


def _points(task: Task, out: Path, predictions: Tensor | None, title: str) -> None:
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
    save(figure, out)


def _labels(predictions: Tensor) -> Tensor:
    chosen = predictions.argmax(-1) if predictions.dim() == 2 else predictions
    return chosen.detach().cpu()


def _members(examples: Examples, way: int) -> list[int]:
    """Return the numbers of a class's examples."""
    found: list[int] = (examples.y.cpu() == way).nonzero().flatten().tolist()
    return found
