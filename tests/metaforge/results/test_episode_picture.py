"""Pictures of one task: images with predictions marked, or points; other inputs are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fake_runs import Pixels
from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.errors import DataError
from metaforge.results.episode_picture import episode_grid
from pictures import BLUE, VERMILION, colours


def one_task(shape: TaskShape) -> Task:
    return Task(*(Examples(part.x[0], part.y[0]) for part in Pixels().sample("test", shape, 1, 1, seed=0)))


def test_episode_marks_correct_and_wrong_predictions_in_two_colours(tmp_path: Path) -> None:
    task = one_task(TaskShape(3, 2, 12))
    episode_grid(task, tmp_path / "plain.png")
    assert not {BLUE, VERMILION} & colours(tmp_path / "plain.png")
    episode_grid(task, tmp_path / "correct.png", task.query.y, title="pixels")
    assert BLUE in colours(tmp_path / "correct.png")
    assert VERMILION not in colours(tmp_path / "correct.png")
    logits = torch.nn.functional.one_hot((task.query.y + 1) % 3).float()
    episode_grid(task, tmp_path / "wrong.png", logits)
    assert VERMILION in colours(tmp_path / "wrong.png")


def test_episode_of_colour_images_and_of_scalars(tmp_path: Path) -> None:
    task = one_task(TaskShape(2, 1, 1))
    coloured = Task(*(Examples((part.x / 255).expand(-1, 3, -1, -1), part.y) for part in task))
    episode_grid(coloured, tmp_path / "colour.png", coloured.query.y)
    assert BLUE in colours(tmp_path / "colour.png")
    x = torch.linspace(-1, 1, 5).unsqueeze(-1)
    episode_grid(Task(Examples(x, x), Examples(x, x)), tmp_path / "numbers.png", x)
    assert BLUE in colours(tmp_path / "numbers.png")
    with pytest.raises(DataError, match="cannot be drawn"):
        episode_grid(Task(Examples(x, x[:, 0].long()), Examples(x, x[:, 0].long())), tmp_path / "none.png")
