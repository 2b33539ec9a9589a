"""Every plot is a PNG with something on it, whatever the data are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fake_runs import FakeRun, interaction_run, regression_run
from metaforge.authoring.scale import ACCURACY, MEAN_SQUARED_ERROR, Scale
from metaforge.errors import DataError
from metaforge.results.plots import Fit, regression_fits, score_histogram, steps_curve, training_curve
from metaforge.results.records import Record, read_evaluations
from pictures import BLUE, VERMILION, colours
from run_folders import run_evaluation, write_metrics

# Texts that matplotlib would refuse as formulas.
DOLLARS = Scale("cost $x^$", higher_is_better=False, unit="$\\frac$", chance="$^$", floor="$_$", examples="$^$")


def records(folder: Path, run: FakeRun, **changes: object) -> list[Record]:
    run_evaluation(run, **changes)
    return read_evaluations(folder)


@pytest.mark.parametrize("count", [1, 2, 30, 200])
@pytest.mark.parametrize("scale", [ACCURACY, MEAN_SQUARED_ERROR, DOLLARS], ids=lambda scale: scale.metric)
def test_training_curve(tmp_path: Path, count: int, scale: Scale) -> None:
    write_metrics(tmp_path / "metrics.jsonl", count, val_score=0.5, val_score_ci=0.1)
    training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", title="pixels · reader", scale=scale)
    assert {BLUE, VERMILION} <= colours(tmp_path / "curve.png")


def test_training_curve_of_a_learner_without_scores_and_with_metrics_that_are_not_finite(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": None if i == 2 else 1.0 / i, "odd": None} for i in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert BLUE not in colours(tmp_path / "curve.png")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.2, "score": null, "val_score": 0.5}\n')
    training_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert VERMILION in colours(tmp_path / "curve.png")


def test_training_curve_without_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training metrics to plot"):
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


@pytest.mark.parametrize("words", ["", "return $_^$"])
def test_plots_of_a_kind_without_baselines(tmp_path: Path, words: str) -> None:
    (record,) = records(tmp_path, interaction_run(tmp_path))
    record["scale"] |= {"words": words, "unit": "$^", "examples": "$"}
    score_histogram(record, tmp_path / "scores.png")
    steps_curve([record], tmp_path / "steps.png")
    assert BLUE in colours(tmp_path / "steps.png")
    # Chance would be drawn in this colour.
    assert VERMILION not in colours(tmp_path / "scores.png")


def test_histogram_of_equal_scores(tmp_path: Path) -> None:
    (record,) = records(tmp_path, FakeRun(tmp_path), steps=[0])
    score_histogram(record, tmp_path / "scores.png")
    colours(tmp_path / "scores.png")


def test_steps_curve(tmp_path: Path) -> None:
    steps_curve(records(tmp_path, FakeRun(tmp_path), shots=[1, 3], steps=[0, 1, 2]), tmp_path / "steps.png")
    assert {BLUE, VERMILION} <= colours(tmp_path / "steps.png")


@pytest.mark.parametrize("count", [1, 4])
def test_regression_fits(tmp_path: Path, count: int) -> None:
    x = torch.linspace(-5, 5, 50)
    fit = Fit(x, x.sin(), x[::10], x[::10].sin(), 0.9 * x.sin(), 0 * x)
    regression_fits([fit] * count, tmp_path / "fits.png", title="waves", steps=5)
    assert BLUE in colours(tmp_path / "fits.png")
