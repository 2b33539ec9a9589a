"""Glyphs: a procedural alphabet of handwritten characters, drawn when it is needed; nothing is downloaded.

A character is a few strokes (lines, arcs, hooks, loops) between the nodes of a coarse grid. A writer bends and
misplaces them, slants, turns, scales and shifts the whole, and has a pen of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field

from metaforge.authoring import Dataset, Kind, Options, Task, TaskShape, TaskSpec
from metaforge.data import Bits, ClassPool, Pixels, bits, check_split, episode_keys, feasible, sample_episodes, uniforms

SPLITS = ("train", "val", "test")

Floats = NDArray[np.float64]

_MAX_STROKES = 5
_GRID = 4
_POINTS = 12
_OVERSAMPLING = 4


class GlyphsOptions(Options):
    """Options of the glyphs data set."""

    size: int = Field(default=28, ge=8, le=128, description="height and width of the images in pixels")
    train: int = Field(default=800, ge=2, le=10_000, description="number of characters to train on")
    val: int = Field(default=100, ge=2, le=10_000, description="number of characters to validate on")
    test: int = Field(default=200, ge=2, le=10_000, description="number of characters to test on")
    writers: int = Field(default=20, ge=2, le=1_000, description="images of each character, each by another writer")
    jitter: float = Field(default=1.0, ge=0, le=4, description="how much writers differ (0: not at all)")
    alphabet_seed: int = Field(default=0, ge=0, description="seed of the characters and their writers")


class Glyphs(Dataset):
    """Synthetic handwritten characters of random strokes, drawn by 20 writers each; needs no download.

    A character depends on (alphabet_seed, split, its number) alone, so that more characters leave the first ones alone.
    """

    Config = GlyphsOptions
    reference: ClassVar[str] = ""
    defaults: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {"classification": {"backbone": {"name": "conv4"}}}
    kind: ClassVar[Kind] = "classification"
    note: ClassVar[str] = "synthetic glyphs: compare learners with it, not with published Omniglot figures"

    def __init__(self, config: GlyphsOptions, *, root: Path) -> None:
        self.config = config
        self._pools: dict[str, ClassPool] = {}

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks of `[1, size, size]` images; `DataError` if the split is too small for the shape."""
        feasible(self.pool(split), shape)
        return TaskSpec("classification", (1, self.config.size, self.config.size), shape.ways, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return episodes as one batched task: x `[count, n, 1, size, size]` uint8 (ink 255), y `[count, n]` int64."""
        return sample_episodes(self.pool(split), shape, first, count, seed=seed, split=split)

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return how many characters and images a split has."""
        classes = self._classes(split)
        return {
            "classes": classes,
            "images per class": self.config.writers,
            "images": classes * self.config.writers,
            "image size": self.config.size,
            "jitter": self.config.jitter,
        }

    def pool(self, split: str) -> ClassPool:
        """Return the characters of a split, drawn at the first call."""
        if split not in self._pools:
            classes = self._classes(split)
            keys = bits(episode_keys(self.config.alphabet_seed, f"glyphs/{split}", 0, classes), 4)
            curves = _characters(keys)
            inked = _written(curves, keys, self.config.writers, self.config.jitter)
            images = _drawn(*inked, self.config.size)
            self._pools[split] = ClassPool(images, [f"{split}/{number:04d}" for number in range(classes)])
        return self._pools[split]

    def _classes(self, split: str) -> int:
        check_split(split, SPLITS, "glyphs")
        return {"train": self.config.train, "val": self.config.val, "test": self.config.test}[split]


def _characters(keys: Bits) -> Floats:
    """Return control points `[classes, strokes, 4, 2]` of cubic curves in about [-1, 1]; absent ones are NaN."""
    number = 2 + (uniforms(keys[:, 0], 1)[:, 0] * (_MAX_STROKES - 1)).astype(np.int64)
    drawn = uniforms(bits(keys[:, 1], _MAX_STROKES), 16)
    strokes = np.full((len(keys), _MAX_STROKES, 4, 2), np.nan)
    for stroke in range(_MAX_STROKES):
        one = drawn[:, stroke]
        start = _node(one[:, 0:2])
        if stroke:
            # Most strokes go on where the last one ended, or touch an earlier one at an end.
            earlier = (one[:, 2] * stroke).astype(np.int64)
            touched = strokes[np.arange(len(keys)), earlier, np.where(one[:, 3] < 0.5, 0, 3)]
            joint = one[:, 4:5]
            start = np.where(joint < 0.4, strokes[:, stroke - 1, 3], np.where(joint < 0.7, touched, start))
        strokes[:, stroke] = _stroke(start, one[:, 5:])
    strokes[np.arange(_MAX_STROKES) >= number[:, None]] = np.nan
    low, high = np.nanmin(strokes, axis=(1, 2)), np.nanmax(strokes, axis=(1, 2))
    # Centred, and of much the same size, as characters in a box on a form are.
    scale = 1.4 / np.maximum((high - low).max(axis=1), 0.5)
    centred: Floats = (strokes - ((low + high) / 2)[:, None, None]) * scale[:, None, None, None]
    return centred


def _node(drawn: Floats) -> Floats:
    """Return points `[classes, 2]` of a coarse grid: strokes that line up make a character look designed."""
    nodes: Floats = np.floor(drawn * _GRID) * (2 / (_GRID - 1)) - 1
    return nodes


def _stroke(start: Floats, drawn: Floats) -> Floats:
    """Return control points `[classes, 4, 2]` of lines, arcs, hooks and loops from `start` `[classes, 2]`."""
    end = _node(drawn[:, 0:2])
    # Never a stroke without length: it goes through the centre instead.
    same = np.abs(end - start).sum(axis=1, keepdims=True) < 0.1
    end = np.where(same, -start + 2 / 3 * (np.abs(start).sum(axis=1, keepdims=True) < 0.1), end)
    across = end - start
    normal = np.stack([-across[:, 1], across[:, 0]], axis=1)
    bend = np.where(drawn[:, 2:3] < 0.5, -1, 1) * (0.4 + 0.5 * drawn[:, 3:4])
    kind = drawn[:, 4:5]
    line = [start + across / 3, start + across * 2 / 3]
    arc = [start + across / 6 + bend * normal, start + across * 5 / 6 + bend * normal]
    hook = [start + bend * normal, end - bend * normal]
    loop = [start + across * 1.4 + bend * normal, start + across * 1.4 - bend * normal]
    inner = np.where(kind < 0.45, line, np.where(kind < 0.75, arc, np.where(kind < 0.88, hook, loop)))
    closed = np.where(kind < 0.88, end, start)
    return np.stack([start, inner[0], inner[1], closed], axis=1)


def _normal(keys: Bits, count: int) -> Floats:
    """Return `count` roughly normal numbers for each key, `[..., count]`: sums of four uniform ones, of variance 1."""
    total: Floats = uniforms(keys, 4 * count).reshape(*keys.shape, count, 4).sum(-1)
    return (total - 2) * math.sqrt(3)


def _written(strokes: Floats, keys: Bits, writers: int, jitter: float) -> tuple[Floats, Floats]:
    """Return polylines `[classes, writers, strokes, points, 2]` in [-1, 1] and pen widths `[classes, writers]`."""
    hands = bits(bits(keys[:, 2], writers), 3)
    time = np.linspace(0, 1, _POINTS)
    basis = np.stack([(1 - time) ** 3, 3 * time * (1 - time) ** 2, 3 * time**2 * (1 - time), time**3], axis=1)
    lines = (basis @ strokes)[:, None]
    # A smooth field bends all strokes alike, so that what touches goes on touching; each is misplaced a little too.
    lines = lines + jitter * _bent(lines, hands[..., 0])
    lines += jitter * 0.03 * _normal(hands[..., 1], _MAX_STROKES * 2).reshape(*hands.shape[:2], _MAX_STROKES, 1, 2)
    turn, shear, wide, high, right, down, pen = np.moveaxis(_normal(hands[..., 2], 7), -1, 0) * jitter
    matrix = np.empty((*turn.shape, 2, 2))
    matrix[..., 0, 0], matrix[..., 0, 1] = np.cos(0.12 * turn), 0.17 * shear - np.sin(0.12 * turn)
    matrix[..., 1, 0], matrix[..., 1, 1] = np.sin(0.12 * turn), np.cos(0.12 * turn)
    matrix *= np.exp(0.16 * np.stack([wide, high], axis=-1))[..., None]
    lines = lines @ np.swapaxes(matrix, -1, -2)[:, :, None]
    lines += 0.105 * np.stack([right, down], axis=-1)[:, :, None, None]
    return np.clip(lines, -0.95, 0.95), 0.11 * np.exp(0.15 * pen)


def _bent(lines: Floats, hands: Bits) -> Floats:
    """Return a displacement for each point of `lines` `[classes, 1, ...]` by each of `hands` `[classes, writers]`."""
    total = np.zeros((*hands.shape, *lines.shape[2:]))
    for wave in np.moveaxis(_normal(hands, 18).reshape(*hands.shape, 3, 6), 2, 0):
        direction, amplitude, phase = wave[..., 0:2], wave[..., 2:4], 3 * wave[..., 4]
        along = np.einsum("cwspx,cwx->cwsp", np.broadcast_to(lines, total.shape), 2 * direction)
        total += 0.07 * amplitude[:, :, None, None] * np.sin(along + phase[..., None, None])[..., None]
    return total


def _drawn(lines: Floats, pens: Floats, size: int) -> Pixels:
    """Return images `[classes, writers, 1, size, size]` of polylines, ink 255, drawn large and averaged down."""
    large = size * _OVERSAMPLING
    classes, writers = pens.shape
    images = np.empty((classes, writers, 1, size, size), dtype=np.uint8)
    pixels = (lines + 1) * (large / 2)
    widths = np.maximum(np.rint(pens * large / 2), 1).astype(np.int64)
    for place in np.ndindex(classes, writers):
        image = Image.new("L", (large, large))
        pen = ImageDraw.Draw(image)
        for line in pixels[place]:
            if not np.isnan(line[0, 0]):
                _ink(pen, line, int(widths[place]))
        images[place] = np.asarray(image.reduce(_OVERSAMPLING))
    return images


def _ink(pen: ImageDraw.ImageDraw, line: Floats, width: int) -> None:
    """Draw one stroke with round ends."""
    pen.line(line.ravel().tolist(), fill=255, width=width)
    for x, y in line[[0, -1]].tolist():
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
