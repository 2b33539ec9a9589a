"""Pictures of one task: images with predictions marked, or points; other inputs are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fake_runs import Pixels
from metaforge.authoring import functional
from metaforge.authoring.kinds import CLASSIFICATION, INTERACTION, MULTI_LABEL, REGRESSION
from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.errors import DataError
from metaforge.results.episode_picture import episode_grid
from pictures import BLUE, VERMILION, colours


def one_task(shape: TaskShape) -> Task:
    return functional.one_task(Pixels().sample("test", shape, 1, 1, seed=0))


def test_episode_marks_correct_and_wrong_predictions_in_two_colours(tmp_path: Path) -> None:
    task = one_task(TaskShape(3, 2, 12))
    episode_grid(task, tmp_path / "plain.png", CLASSIFICATION)
    assert not {BLUE, VERMILION} & colours(tmp_path / "plain.png")
    episode_grid(task, tmp_path / "correct.png", CLASSIFICATION, task.query.y, title="pixels")
    assert BLUE in colours(tmp_path / "correct.png")
    assert VERMILION not in colours(tmp_path / "correct.png")
    logits = torch.nn.functional.one_hot((task.query.y + 1) % 3).float()
    episode_grid(task, tmp_path / "wrong.png", CLASSIFICATION, logits)
    assert VERMILION in colours(tmp_path / "wrong.png")


def test_episode_of_colour_images_and_of_scalars(tmp_path: Path) -> None:
    task = one_task(TaskShape(2, 1, 1))
    coloured = Task(*(Examples((part.x / 255).expand(-1, 3, -1, -1), part.y) for part in (task.support, task.query)))
    episode_grid(coloured, tmp_path / "colour.png", CLASSIFICATION, coloured.query.y)
    assert BLUE in colours(tmp_path / "colour.png")
    x = torch.linspace(-1, 1, 5).unsqueeze(-1)
    numbers = Task(Examples(x, x), Examples(x, x))
    episode_grid(numbers, tmp_path / "numbers.png", REGRESSION, x)
    assert BLUE in colours(tmp_path / "numbers.png")
    wide = Task(Examples(x, x.expand(-1, 2)), Examples(x, x.expand(-1, 2)))
    classes = Task(Examples(x, x[:, 0].long()), Examples(x, x[:, 0].long()))
    # Scores of labels are no points of a curve, although their targets are floats.
    for kind, task in ((CLASSIFICATION, classes), (MULTI_LABEL, numbers), (INTERACTION, numbers), (REGRESSION, wide)):
        with pytest.raises(DataError, match=f"A {kind.name} task with inputs of shape .* cannot be drawn"):
            episode_grid(task, tmp_path / "none.png", kind)


def test_a_task_on_a_grid_is_drawn_as_images(tmp_path: Path) -> None:
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    y = torch.tensor([[0.2], [0.6], [1.0]])
    task = Task(Examples(x[:1], y[:1]), Examples(x[1:], y[1:]))
    episode_grid(task, tmp_path / "grid.png", REGRESSION, grid=(2, 2))
    assert {(51, 51, 51), (153, 153, 153), (0x56, 0xB4, 0xE9)} <= colours(tmp_path / "grid.png")
    for grid in ((), (2,)):
        with pytest.raises(DataError, match="cannot be drawn"):
            episode_grid(task, tmp_path / "none.png", REGRESSION, grid=grid)
