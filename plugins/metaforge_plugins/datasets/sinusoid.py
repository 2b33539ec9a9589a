"""Sinusoid regression: a task is one sine wave of random amplitude and phase.

Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017, section 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from metaforge.data import Bits, CurveDataset, CurveOptions, Range, between, bits, episode_keys, uniforms

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, math.pi)
X_RANGE = (-5.0, 5.0)

Floats = NDArray[np.float64]


class SinusoidOptions(CurveOptions):
    """Options of the sinusoid data set."""

    phase: Literal["minus", "plus"] = Field(
        default="minus",
        description="minus: y = A sin(ωx - phase), as in MAML; plus: y = A sin(ωx + phase), as in iMAML",
    )
    frequency: Range = Field(
        default=(1.0, 1.0), description="limits of the angular frequency ω, which is drawn for each task"
    )


class Sinusoid(CurveDataset):
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
    name, x_range = "sinusoid", X_RANGE
    config: SinusoidOptions

    def curves(self, keys: Bits, x: Floats) -> Floats:
        """Return the waves of episodes with keys `[count]` at `x` `[count, n]`."""
        numbers = uniforms(keys, 3)
        amplitude, phase = between(AMPLITUDE, numbers[:, :1]), between(PHASE, numbers[:, 1:2])
        angle = between(self.config.frequency, numbers[:, 2:]) * x
        wave: Floats = amplitude * np.sin(angle - phase if self.config.phase == "minus" else angle + phase)
        return wave

    def truth(self, split: str, index: int, xs: ArrayLike, *, seed: int) -> Floats:
        """Return the values `[n]` of the wave of episode `index` at `xs` `[n]`, for plots."""
        keys = bits(episode_keys(seed, split, index, 1), 3)
        values: Floats = self.curves(keys[:, 0], np.asarray(xs, dtype=np.float64)[None])[0]
        return values

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the ranges of the waves, and the mean squared errors of two predictors that ignore the task."""
        self.check(split)
        low, high = AMPLITUDE
        zero = (high**3 - low**3) / (3 * (high - low)) / 2
        mean = (low + high) / 2 * 2 / math.pi
        slowest, fastest = self.config.frequency
        return {
            "tasks": "unlimited",
            "amplitude": f"{low} to {high}",
            "phase": f"0 to pi, {self.config.phase}",
            "frequency": f"{slowest} to {fastest}",
            "x": f"{X_RANGE[0]} to {X_RANGE[1]}",
            "error of predicting 0": zero,
            "error of the mean wave": zero - mean**2 * self._mean_square_cosine(),
        }

    def _mean_square_cosine(self) -> float:
        """Return the mean, over the range of x, of the square of the mean of cos(ωx) over the frequencies."""
        slowest, fastest = self.config.frequency
        nodes, weights = np.polynomial.legendre.leggauss(600)
        x = X_RANGE[1] * nodes
        # The mean of cos(ωx) over an interval of ω is cos(mx) sin(hx) / hx, with the interval's middle and half width.
        cosine = np.cos((slowest + fastest) / 2 * x) * np.sinc((fastest - slowest) / 2 * x / math.pi)
        return float(weights @ cosine**2) / 2
