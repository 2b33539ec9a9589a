"""Pictures: each is a PNG with something on it, whatever the data, and none touches what is global."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fake_runs import FakeRun, Pixels, regression_run
from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.errors import DataError
from metaforge.results.evaluate import evaluate_run
from metaforge.results.pictures import Fit, episode_grid, regression_fits, score_histogram, steps_curve, training_curve
from metaforge.results.records import read_evaluations
from metaforge.results.run_pictures import draw

BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def colours(path: Path) -> set[tuple[int, ...]]:
    """Return the colours of a valid PNG."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(data)) as image:
        found = image.convert("RGB").getcolors(1 << 24)
    assert found is not None
    assert len(found) > 2
    return {colour for _, colour in found}


def records(folder: Path, run: FakeRun, **changes: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"shots": None, "steps": None, "tasks": 8, "split": "test", "seed": 7}
    evaluate_run(run, **{**settings, **changes})
    return read_evaluations(folder)


def write_metrics(path: Path, count: int, **more: float) -> None:
    lines = [
        {"step": 20 * (i + 1), "loss": 2.0 / (i + 1), "score": 1 - 0.8 / (i + 1), "score_ci": 0.01, **more}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def one_task(shape: TaskShape) -> Task:
    return Task(*(Examples(part.x[0], part.y[0]) for part in Pixels().sample("test", shape, 1, 1, seed=0)))


@pytest.mark.parametrize("count", [1, 2, 30, 200])
@pytest.mark.parametrize("metric", ["accuracy", "mse"])
def test_training_curve(tmp_path: Path, count: int, metric: str) -> None:
    write_metrics(tmp_path / "metrics.jsonl", count, val_score=0.5, val_score_ci=0.1)
    training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", title="pixels · reader", metric=metric)
    assert {BLUE, VERMILION} <= colours(tmp_path / "curve.png")


def test_training_curve_of_a_learner_without_scores_and_of_figures_that_are_not_finite(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": None if i == 2 else 1.0 / i, "odd": None} for i in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert BLUE not in colours(tmp_path / "curve.png")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.2, "score": null, "val_score": 0.5}\n')
    training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert VERMILION in colours(tmp_path / "curve.png")


def test_training_curve_without_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training"):
        training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")


def test_training_curve_of_a_file_cut_short(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 80, "lo')
    training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert BLUE in colours(tmp_path / "curve.png")


def test_score_histogram(tmp_path: Path) -> None:
    (record,) = records(tmp_path, FakeRun(tmp_path))
    score_histogram(record, tmp_path / "scores.png")
    assert VERMILION in colours(tmp_path / "scores.png")
    (record,) = records(tmp_path / "lines", regression_run(tmp_path / "lines"), tasks=200)
    score_histogram(record, tmp_path / "errors.png")
    assert VERMILION in colours(tmp_path / "errors.png")


def test_histogram_of_equal_scores(tmp_path: Path) -> None:
    (record,) = records(tmp_path, FakeRun(tmp_path), steps=[0])
    score_histogram(record, tmp_path / "scores.png")
    colours(tmp_path / "scores.png")


def test_steps_curve(tmp_path: Path) -> None:
    steps_curve(records(tmp_path, FakeRun(tmp_path), shots=[1, 3], steps=[0, 1, 2]), tmp_path / "steps.png")
    assert {BLUE, VERMILION} <= colours(tmp_path / "steps.png")


def test_episode_shows_right_and_wrong_in_two_colours(tmp_path: Path) -> None:
    task = one_task(TaskShape(3, 2, 12))
    episode_grid(task, tmp_path / "plain.png")
    assert not {BLUE, VERMILION} & colours(tmp_path / "plain.png")
    episode_grid(task, tmp_path / "right.png", task.query.y, title="pixels")
    assert BLUE in colours(tmp_path / "right.png")
    assert VERMILION not in colours(tmp_path / "right.png")
    logits = torch.nn.functional.one_hot((task.query.y + 1) % 3).float()
    episode_grid(task, tmp_path / "wrong.png", logits)
    assert VERMILION in colours(tmp_path / "wrong.png")


def test_episode_of_colour_images_and_of_numbers(tmp_path: Path) -> None:
    task = one_task(TaskShape(2, 1, 1))
    coloured = Task(*(Examples((part.x / 255).expand(-1, 3, -1, -1), part.y) for part in task))
    episode_grid(coloured, tmp_path / "colour.png", coloured.query.y)
    assert BLUE in colours(tmp_path / "colour.png")
    x = torch.linspace(-1, 1, 5).unsqueeze(-1)
    episode_grid(Task(Examples(x, x), Examples(x, x)), tmp_path / "numbers.png", x)
    assert BLUE in colours(tmp_path / "numbers.png")
    with pytest.raises(DataError, match="cannot be drawn"):
        episode_grid(Task(Examples(x, x[:, 0].long()), Examples(x, x[:, 0].long())), tmp_path / "none.png")


@pytest.mark.parametrize("count", [1, 4])
def test_regression_fits(tmp_path: Path, count: int) -> None:
    x = torch.linspace(-5, 5, 50)
    fit = Fit(x, x.sin(), x[::10], x[::10].sin(), 0.9 * x.sin(), 0 * x)
    regression_fits([fit] * count, tmp_path / "fits.png", title="waves", steps=5)
    assert BLUE in colours(tmp_path / "fits.png")


def test_the_same_figures_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_metrics(tmp_path / name, 5)
        training_curve(tmp_path / name, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_runs_gallery(tmp_path: Path) -> None:
    for run, last in ((FakeRun(tmp_path / "a"), "episode-test"), (regression_run(tmp_path / "b"), "fits-test")):
        assert run.folder is not None
        evaluate_run(run, shots=None, steps=None, tasks=8, split="test", seed=7)
        write_metrics(run.folder / "metrics.jsonl", 5)
        drawn = draw(run, split="test")
        ways = run.resolved.run.task.ways
        shots = run.resolved.run.task.shots
        assert [path.stem for path in drawn] == ["training", f"scores-test-{ways}w{shots}s", "steps-test", last]
        for path in drawn:
            colours(path)


def test_a_gallery_without_evaluation_or_training_is_empty(tmp_path: Path) -> None:
    assert draw(FakeRun(tmp_path), split="test") == []
    assert draw(FakeRun(None), split="test") == []


def test_pyplot_and_its_global_state_are_not_loaded() -> None:
    code = "import sys, metaforge.results.run_pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
