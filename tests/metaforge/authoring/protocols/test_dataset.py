"""The protocol of data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from metaforge.authoring.protocols import Dataset, Examples, Options, Task, TaskShape, TaskSpec


class Numbers(Dataset):
    """Every example of an episode is the number of the episode."""

    Config = Options
    kind = "regression"

    def __init__(self, config: Options, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        return TaskSpec("regression", (1,), 1, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        numbers = torch.arange(first, first + count, dtype=torch.float32).reshape(-1, 1, 1)
        support, query = numbers.expand(-1, shape.shots, 1), numbers.expand(-1, shape.queries, 1)
        return Task(Examples(support, support), Examples(query, query))

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        return {}


def test_a_data_set_has_no_note_by_default() -> None:
    assert Numbers(Options(), root=Path()).note == ""


def test_a_data_set_must_choose_its_kind() -> None:
    assert not hasattr(Dataset, "kind")
    assert "kind" in Dataset.__annotations__


@pytest.mark.parametrize("first", [0, 7])
def test_a_batch_has_the_episodes_from_first_on(first: int) -> None:
    batch = Numbers(Options(), root=Path()).sample("train", TaskShape(1, 2, 3), first, 4, seed=0)
    assert batch.support.x.shape == (4, 2, 1)
    assert batch.query.x[:, 0, 0].tolist() == [first, first + 1, first + 2, first + 3]
