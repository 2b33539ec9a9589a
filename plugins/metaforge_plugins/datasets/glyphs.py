"""Glyphs: synthetic handwritten characters that are drawn in memory; nothing is downloaded.

A character is a few strokes (lines, arcs, hooks, loops) between the nodes of a coarse grid. For each writer the strokes
are bent and displaced, the character is slanted, rotated, scaled and shifted, and the pen has its own width.

Two characters whose strokes connect the same nodes can look alike. So no two characters of a split do, and a hash of
what a character connects decides in which split it may be.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import Field

from metaforge.data import (
    Bits,
    ClassPool,
    ImageDataset,
    ImageOptions,
    Pixels,
    bits,
    check_split,
    episode_keys,
    uniforms,
)

SPLITS = ("train", "val", "test")

Floats = NDArray[np.float64]

_MAX_STROKES = 5
_GRID = 4
_POINTS = 12
_OVERSAMPLING = 4


class GlyphsOptions(ImageOptions):
    """Options of the glyphs data set."""

    size: int = Field(default=28, ge=8, le=128, description="height and width of the images in pixels")
    train: int = Field(default=800, ge=2, le=10_000, description="number of characters to train on")
    val: int = Field(default=100, ge=2, le=10_000, description="number of characters to validate on")
    test: int = Field(default=200, ge=2, le=10_000, description="number of characters to test on")
    writers: int = Field(default=20, ge=2, le=1_000, description="images of each character, each by a different writer")
    jitter: float = Field(default=1.0, ge=0, le=4, description="how much the writers differ; 0: not at all")
    alphabet_seed: int = Field(default=0, ge=0, description="seed of the characters and their writers")


class Glyphs(ImageDataset):
    """Synthetic handwritten characters of random strokes, drawn by 20 writers each; needs no download.

    A character depends on alphabet_seed, split and its number only, so a larger split begins with the characters of a
    smaller one. No two characters of one split or of different splits connect the same points.

    Example:
        >>> from pathlib import Path
        >>> from metaforge.authoring import TaskShape
        >>> from metaforge_plugins.datasets.glyphs import Glyphs
        >>> glyphs = Glyphs(Glyphs.Config(train=10), root=Path())
        >>> glyphs.sample("train", TaskShape(ways=5, shots=1, queries=15), 0, 4, seed=0).query.x.shape
        torch.Size([4, 75, 1, 28, 28])
    """

    Config = GlyphsOptions
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"classification": {"backbone": {"name": "conv4"}}}
    note: ClassVar[str] = "synthetic glyphs: compare learners with each other, not with published Omniglot results"

    def __init__(self, config: GlyphsOptions, *, root: Path) -> None:
        self.config = config
        self._pools: dict[str, ClassPool] = {}

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the numbers of characters and images of a split, and how they are drawn."""
        classes = self._classes(split)
        return {
            "classes": classes,
            "images per class": self.config.writers,
            "images": classes * self.config.writers,
            "image size": self.config.size,
            "jitter": self.config.jitter,
        }

    def pool(self, split: str) -> ClassPool:
        """Return the characters of a split, which are drawn on the first call; 255 is ink."""
        if split not in self._pools:
            classes = self._classes(split)
            keys = bits(episode_keys(self.config.alphabet_seed, f"glyphs/{split}", 0, classes), 2)
            curves = _characters(keys[:, 0], split)
            lines, pens = _writers_lines(curves, keys[:, 1], self.config.writers, self.config.jitter)
            images = _render(lines, pens, self.config.size)
            self._pools[split] = ClassPool(images, [f"{split}/{number:04d}" for number in range(classes)])
        return self._pools[split]

    def training_classes(self) -> int:
        """Return the number of characters to train on, without drawing them."""
        return self.config.train

    def _classes(self, split: str) -> int:
        check_split(split, SPLITS, "glyphs")
        return {"train": self.config.train, "val": self.config.val, "test": self.config.test}[split]


def _characters(keys: Bits, split: str) -> Floats:
    """Return control points `[classes, strokes, 4, 2]` of cubic Bézier curves, roughly in [-1, 1].

    Characters have different numbers of strokes; unused strokes are NaN. A character is drawn again while its skeleton
    belongs to another split, or is that of a character before it.
    """
    keys, strokes = keys.copy(), np.full((len(keys), _MAX_STROKES, 4, 2), np.nan)
    skeletons, missing = [""] * len(keys), np.arange(len(keys))
    while len(missing):
        drawn, keys[missing] = np.moveaxis(bits(keys[missing], 2), -1, 0)
        strokes[missing], ends = _strokes(drawn)
        for number, own in zip(missing.tolist(), ends, strict=True):
            skeletons[number] = _skeleton(own)
        missing = _refused(skeletons, split)
    low, high = np.nanmin(strokes, axis=(1, 2)), np.nanmax(strokes, axis=(1, 2))
    # Centred and of similar size, like characters written into the boxes of a form.
    scale = 1.4 / np.maximum((high - low).max(axis=1), 0.5)
    centred: Floats = (strokes - ((low + high) / 2)[:, None, None]) * scale[:, None, None, None]
    return centred


def _skeleton(ends: Floats) -> str:
    """Return a text that is equal for characters whose strokes connect the same nodes `[strokes, 2, 2]`.

    It does not depend on the order, the direction and the curvature of the strokes, nor on the position and the size of
    the character.
    """
    nodes = np.rint((ends[~np.isnan(ends[:, 0, 0])] + 1) * ((_GRID - 1) / 2)).astype(np.int64)
    # 6 is a multiple of every size that a character can have on the grid: 1, 2 or 3.
    nodes = (nodes - nodes.min((0, 1))) * 6 // np.ptp(nodes, (0, 1)).max()
    parts = set[tuple[tuple[int, ...], ...]]()
    for start, end in nodes:
        # In parts without a point of the lattice between their ends, because strokes on one line can overlap.
        count = int(np.gcd(*(end - start)))
        points = [tuple((start + (end - start) * i // count).tolist()) for i in range(count + 1)]
        parts |= {tuple(sorted(pair)) for pair in pairwise(points)}
    return repr(sorted(parts))


def _refused(skeletons: Sequence[str], split: str) -> NDArray[np.int64]:
    """Return the numbers of the characters that are not in the split, or that have the skeleton of one before them."""
    seen, refused = set[str](), []
    for number, skeleton in enumerate(skeletons):
        place = hashlib.blake2b(skeleton.encode()).digest()[0] % len(SPLITS)
        if SPLITS[place] != split or skeleton in seen:
            refused.append(number)
        else:
            seen.add(skeleton)
    return np.array(refused, dtype=np.int64)


def _strokes(keys: Bits) -> tuple[Floats, Floats]:
    """Return strokes on the grid, NaN where a character has fewer than others.

    Returns:
        Control points `[classes, strokes, 4, 2]`, and the nodes that each stroke connects `[classes, strokes, 2, 2]`.
    """
    count = 2 + (uniforms(keys, 1)[:, 0] * (_MAX_STROKES - 1)).astype(np.int64)
    random = uniforms(bits(keys, _MAX_STROKES + 1)[:, 1:], 16)
    strokes = np.full((len(keys), _MAX_STROKES, 4, 2), np.nan)
    ends = np.full((len(keys), _MAX_STROKES, 2, 2), np.nan)
    for stroke in range(_MAX_STROKES):
        numbers = random[:, stroke]
        start = _grid_node(numbers[:, 0:2])
        if stroke:
            # Most strokes begin at the end of the previous one, or at an end of an earlier one.
            earlier = (numbers[:, 2] * stroke).astype(np.int64)
            joined = strokes[np.arange(len(keys)), earlier, np.where(numbers[:, 3] < 0.5, 0, 3)]
            choice = numbers[:, 4:5]
            start = np.where(choice < 0.4, strokes[:, stroke - 1, 3], np.where(choice < 0.7, joined, start))
        end = _end(start, numbers[:, 5:7])
        strokes[:, stroke], ends[:, stroke] = _stroke(start, end, numbers[:, 7:]), np.stack([start, end], axis=1)
    unused = np.arange(_MAX_STROKES) >= count[:, None]
    strokes[unused], ends[unused] = np.nan, np.nan
    return strokes, ends


def _grid_node(numbers: Floats) -> Floats:
    """Return nodes `[classes, 2]` of a coarse grid, which lets strokes line up as in real scripts."""
    nodes: Floats = np.floor(numbers * _GRID) * (2 / (_GRID - 1)) - 1
    return nodes


def _end(start: Floats, numbers: Floats) -> Floats:
    """Return the nodes `[classes, 2]` where strokes from `start` `[classes, 2]` end."""
    end = _grid_node(numbers)
    # A stroke of zero length is replaced by one through the centre.
    same = np.abs(end - start).sum(axis=1, keepdims=True) < 0.1
    other: Floats = np.where(same, -start, end)
    return other


def _stroke(start: Floats, end: Floats, numbers: Floats) -> Floats:
    """Return control points `[classes, 4, 2]` of lines, arcs, hooks and loops from `start` to `end` `[classes, 2]`."""
    across = end - start
    normal = np.stack([-across[:, 1], across[:, 0]], axis=1)
    bend = np.where(numbers[:, 0:1] < 0.5, -1, 1) * (0.4 + 0.5 * numbers[:, 1:2])
    kind = numbers[:, 2:3]
    line = [start + across / 3, start + across * 2 / 3]
    arc = [start + across / 6 + bend * normal, start + across * 5 / 6 + bend * normal]
    hook = [start + bend * normal, end - bend * normal]
    loop = [start + across * 1.4 + bend * normal, start + across * 1.4 - bend * normal]
    inner = np.where(kind < 0.45, line, np.where(kind < 0.75, arc, np.where(kind < 0.88, hook, loop)))
    closed = np.where(kind < 0.88, end, start)
    return np.stack([start, inner[0], inner[1], closed], axis=1)


def _normal(keys: Bits, count: int) -> Floats:
    """Return approximately standard normal numbers `[..., count]`: scaled sums of four uniform numbers."""
    total: Floats = uniforms(keys, 4 * count).reshape(*keys.shape, count, 4).sum(-1)
    return (total - 2) * math.sqrt(3)


def _writers_lines(strokes: Floats, keys: Bits, writers: int, jitter: float) -> tuple[Floats, Floats]:
    """Return polylines `[classes, writers, strokes, points, 2]` in [-1, 1] and pen widths `[classes, writers]`."""
    writer_keys = bits(bits(keys, writers), 3)
    time = np.linspace(0, 1, _POINTS)
    basis = np.stack([(1 - time) ** 3, 3 * time * (1 - time) ** 2, 3 * time**2 * (1 - time), time**3], axis=1)
    lines = (basis @ strokes)[:, None]
    # One smooth displacement field bends all strokes, so that strokes that touch stay connected. Each stroke is also
    # shifted a little.
    lines = lines + jitter * _displacement(lines, writer_keys[..., 0])
    shifts = _normal(writer_keys[..., 1], _MAX_STROKES * 2)
    lines += jitter * 0.03 * shifts.reshape(*writer_keys.shape[:2], _MAX_STROKES, 1, 2)
    angle, shear, width, height, right, down, pen = np.moveaxis(_normal(writer_keys[..., 2], 7), -1, 0) * jitter
    matrix = np.empty((*angle.shape, 2, 2))
    matrix[..., 0, 0], matrix[..., 0, 1] = np.cos(0.12 * angle), 0.17 * shear - np.sin(0.12 * angle)
    matrix[..., 1, 0], matrix[..., 1, 1] = np.sin(0.12 * angle), np.cos(0.12 * angle)
    matrix *= np.exp(0.16 * np.stack([width, height], axis=-1))[..., None]
    lines = lines @ np.swapaxes(matrix, -1, -2)[:, :, None]
    lines += 0.105 * np.stack([right, down], axis=-1)[:, :, None, None]
    return np.clip(lines, -0.95, 0.95), 0.11 * np.exp(0.15 * pen)


def _displacement(lines: Floats, keys: Bits) -> Floats:
    """Return displacements `[classes, writers, strokes, points, 2]`: sums of three random waves.

    `lines` `[classes, 1, strokes, points, 2]` are the points, and `keys` `[classes, writers]` decide the waves.
    """
    total = np.zeros((*keys.shape, *lines.shape[2:]))
    for wave in np.moveaxis(_normal(keys, 18).reshape(*keys.shape, 3, 6), 2, 0):
        direction, amplitude, phase = wave[..., 0:2], wave[..., 2:4], 3 * wave[..., 4]
        along = np.einsum("cwspx,cwx->cwsp", np.broadcast_to(lines, total.shape), 2 * direction)
        total += 0.07 * amplitude[:, :, None, None] * np.sin(along + phase[..., None, None])[..., None]
    return total


def _render(lines: Floats, pens: Floats, size: int) -> Pixels:
    """Return images `[classes, writers, 1, size, size]` of polylines, 255 where there is ink.

    They are drawn at several times the size and averaged down, which smooths their edges.
    """
    large = size * _OVERSAMPLING
    classes, writers = pens.shape
    images = np.empty((classes, writers, 1, size, size), dtype=np.uint8)
    pixels = (lines + 1) * (large / 2)
    widths = np.maximum(np.rint(pens * large / 2), 1).astype(np.int64)
    for index in np.ndindex(classes, writers):
        image = Image.new("L", (large, large))
        pen = ImageDraw.Draw(image)
        for line in pixels[index]:
            if not np.isnan(line[0, 0]):
                _draw_stroke(pen, line, int(widths[index]))
        images[index] = np.asarray(image.reduce(_OVERSAMPLING))
    return images


def _draw_stroke(pen: ImageDraw.ImageDraw, line: Floats, width: int) -> None:
    """Draw one polyline with round ends."""
    pen.line(line.ravel().tolist(), fill=255, width=width)
    for x, y in line[[0, -1]].tolist():
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
