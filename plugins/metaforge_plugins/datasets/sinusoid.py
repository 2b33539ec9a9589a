"""Sinusoid regression: a task is one sine wave of random amplitude and phase.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017, section 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from metaforge.authoring import REGRESSION, Dataset, Examples, Options, Task, TaskKind, TaskShape, TaskSpec
from metaforge.data import Bits, bits, check_split, episode_keys, uniforms
from metaforge.errors import DataError

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, math.pi)
X_RANGE = (-5.0, 5.0)
SPLITS = ("train", "val", "test")

Floats = NDArray[np.float64]


class SinusoidOptions(Options):
    """Options of the sinusoid data set."""

    phase: Literal["minus", "plus"] = Field(
        default="minus", description="minus: y = A sin(x - phase), as in MAML; plus: y = A sin(x + phase), as in iMAML"
    )
    query_grid: bool = Field(
        default=False, description="place the query points of val and test tasks on an even grid over [-5, 5]"
    )


class Sinusoid(Dataset):
    """Regression of sine waves with random amplitude in [0.1, 5] and phase in [0, pi] from a few points in [-5, 5].

    The splits are independent samples of the same distribution of waves.

    Example:
        >>> from pathlib import Path
        >>> from metaforge.authoring import TaskShape
        >>> from metaforge_plugins.datasets.sinusoid import Sinusoid
        >>> sinusoid = Sinusoid(Sinusoid.Config(), root=Path())
        >>> sinusoid.sample("train", TaskShape(ways=1, shots=10, queries=15), 0, 4, seed=0).query.y.shape
        torch.Size([4, 15, 1])
    """

    Config = SinusoidOptions
    reference: ClassVar[str] = "https://arxiv.org/abs/1703.03400"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "regression": {"task": {"ways": 1, "shots": 10, "queries": 10}, "backbone": {"name": "mlp"}}
    }
    kind: ClassVar[TaskKind] = REGRESSION

    def __init__(self, config: SinusoidOptions, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks from x `[n, 1]` to y `[n, 1]`; raise `DataError` unless the shape has one way."""
        self._check(split, shape)
        return TaskSpec(REGRESSION, (1,), 1, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return a batched task of float32: support `[count, shots, 1]`, query `[count, queries, 1]`."""
        self._check(split, shape)
        keys = bits(episode_keys(seed, split, first, count), 3)
        support = _between(X_RANGE, uniforms(keys[:, 1], shape.shots))
        query = _between(X_RANGE, uniforms(keys[:, 2], shape.queries))
        if self.config.query_grid and split != "train":
            query = np.broadcast_to(np.linspace(*X_RANGE, shape.queries), query.shape)
        return Task(support=self._examples(keys, support), query=self._examples(keys, query))

    def truth(self, split: str, index: int, xs: ArrayLike, *, seed: int) -> Floats:
        """Return the values `[n]` of the wave of episode `index` at `xs` `[n]`, for plots."""
        keys = bits(episode_keys(seed, split, index, 1), 3)
        values: Floats = self._wave(keys, np.asarray(xs, dtype=np.float64)[None])[0]
        return values

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the ranges of the waves, and the mean squared errors of two predictors that ignore the task."""
        self._check(split, None)
        low, high = AMPLITUDE
        zero = (high**3 - low**3) / (3 * (high - low)) / 2
        mean = (low + high) / 2 * 2 / math.pi
        return {
            "tasks": "unlimited",
            "amplitude": f"{low} to {high}",
            "phase": f"0 to pi, {self.config.phase}",
            "x": f"{X_RANGE[0]} to {X_RANGE[1]}",
            "error of predicting 0": zero,
            "error of the mean wave": zero - mean**2 * _mean_square_cosine(),
        }

    def _examples(self, keys: Bits, x: Floats) -> Examples:
        """Return inputs `x` `[count, n]` and their targets, both as `[count, n, 1]` float32."""
        y = self._wave(keys, x)
        return Examples(*(torch.from_numpy(np.ascontiguousarray(part[..., None], dtype=np.float32)) for part in (x, y)))

    def _wave(self, keys: Bits, x: Floats) -> Floats:
        """Return the waves of episodes with keys `[count, 3]` at `x` `[count, n]`."""
        numbers = uniforms(keys[:, 0], 2)
        amplitude, phase = _between(AMPLITUDE, numbers[:, :1]), _between(PHASE, numbers[:, 1:])
        wave: Floats = amplitude * np.sin(x - phase if self.config.phase == "minus" else x + phase)
        return wave

    def _check(self, split: str, shape: TaskShape | None) -> None:
        check_split(split, SPLITS, "sinusoid")
        if shape is not None and (shape.ways != 1 or shape.shots < 1 or shape.queries < 1):
            raise DataError(
                f"a regression task cannot have {shape.ways} ways, {shape.shots} shots and {shape.queries} queries",
                where="sinusoid, task shape",
                remedy="set ways = 1, and shots and queries (numbers of points, without an upper limit) to 1 or more",
            )


def _between(limits: tuple[float, float], uniform: Floats) -> Floats:
    low, high = limits
    return low + (high - low) * uniform


def _mean_square_cosine() -> float:
    """Return the mean of cos² over the range of x, which is symmetric about 0."""
    half = X_RANGE[1]
    return 0.5 + math.sin(2 * half) / (4 * half)
