"""The copy task: a sequence of random bits is shown and then has to be recalled in order.

Graves, Wayne, Danihelka, "Neural Turing Machines", 2014 (arXiv 1410.5401), section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from metaforge.authoring import MULTI_LABEL, Dataset, Examples, Options, Task, TaskKind, TaskShape, TaskSpec
from metaforge.data import bits, check_split, episode_keys, uniforms
from metaforge.errors import DataError

SPLITS = ("train", "val", "test")
# Time between two steps. A sequence starts at a random time in [0, 1).
TICK = 1 / 64


class CopyOptions(Options):
    """Options of the copy task."""

    bits: int = Field(8, ge=1, le=64, description="bits of an element of the sequence")


class Copy(Dataset):
    """Recall of a sequence of random bits: the support set shows it, and the queries ask for it in the same order.

    An example is a step in time, and its input has three parts: the bits of the element, a flag that is 1 where an
    element is asked for, and the time, by which the steps are to be ordered. The shots are the length of the sequence,
    and as many queries, with bits of zero, ask for its elements one after the other. Of more queries, the further ones
    have a flag of 0 and targets of 0. `metaforge evaluate RUN --shots 40 --queries 40` evaluates on sequences of 40.

    Departures from the paper:
    - End of the sequence. In the paper a step between sequence and recall has the flag; here every step of the recall
      has it, and there is no step between. No option changes that.
    - Lengths. In the paper they are random, from 1 to 20. Here all tasks of a batch have the same; the preset
      `ntm-copy` draws it for every outer step, by `train.shots=[1, …, 20]`, equal `train.queries` and
      `train.together=true`.
    - Targets. In the paper nothing is asked for while the sequence is shown. Here the target of a step of the support
      set is its own element.

    Example:
        >>> from pathlib import Path
        >>> from metaforge.authoring import TaskShape
        >>> from metaforge_plugins.datasets.copy import Copy
        >>> copy = Copy(Copy.Config(), root=Path())
        >>> copy.sample("train", TaskShape(ways=1, shots=10, queries=10), 0, 4, seed=0).query.x.shape
        torch.Size([4, 10, 10])
    """

    Config = CopyOptions
    reference: ClassVar[str] = "Graves et al. 2014, arXiv 1410.5401, section 4.1"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "multi-label": {
            "task": {"ways": 1, "shots": 20, "queries": 20},
            "backbone": {"name": "mlp"},
        }
    }
    kind: ClassVar[TaskKind] = MULTI_LABEL

    def __init__(self, config: CopyOptions, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec of tasks from x `[n, bits + 2]` to y `[n, bits]`; raise `DataError` for other shapes."""
        self._check(split, shape)
        return TaskSpec(MULTI_LABEL, (self.config.bits + 2,), self.config.bits, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return a batched task of float32: support x `[count, shots, bits + 2]`, query y `[count, queries, bits]`."""
        self._check(split, shape)
        keys = bits(episode_keys(seed, split, first, count), 2)
        size, shots, queries = self.config.bits, shape.shots, shape.queries
        shown = (uniforms(keys[:, 0], shots * size) < 0.5).reshape(count, shots, size)
        times = uniforms(keys[:, 1], 1) + TICK * np.arange(shots + queries)
        asked = np.zeros((count, queries, size), dtype=bool)
        targets, flags = asked.copy(), np.zeros((count, queries, 1), dtype=bool)
        targets[:, :shots], flags[:, :shots] = shown, True
        no_flags = np.zeros((count, shots, 1), dtype=bool)
        support = np.concatenate([shown, no_flags, times[:, :shots, None]], axis=-1, dtype=np.float32)
        query = np.concatenate([asked, flags, times[:, shots:, None]], axis=-1, dtype=np.float32)
        return Task(_examples(support, shown), _examples(query, targets))

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the number of bits of an element."""
        self._check(split, None)
        return {"tasks": "unlimited", "bits": self.config.bits}

    def _check(self, split: str, shape: TaskShape | None) -> None:
        check_split(split, SPLITS, "copy")
        if shape is not None and (shape.ways != 1 or not 1 <= shape.shots <= shape.queries):
            raise DataError(
                f"a task of recall cannot have {shape.ways} ways, {shape.shots} shots and {shape.queries} queries",
                where="copy, task shape",
                remedy="set ways = 1, shots (the length of the sequence) to 1 or more, and queries to shots or more",
            )


def _examples(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Examples:
    return Examples(torch.from_numpy(x), torch.from_numpy(y.astype(np.float32)))
