"""Tables of an evaluation contain every score that was measured."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fake_runs import FakeRun, interaction_run, regression_run
from metaforge.authoring.scale import ACCURACY, MEAN_SQUARED_ERROR, Scale
from metaforge.results.statistics import Estimate
from metaforge.results.tables import (
    baseline_texts,
    estimate_text,
    markdown_table,
    mean_text,
    notes_and_warnings,
    own_metric_text,
    own_metrics_table,
    plus_minus,
    protocol_text,
    steps_text,
    summary_markdown,
    summary_table,
)
from run_folders import run_evaluation, run_folder


def estimate(mean: float | None, ci: float | None) -> Estimate:
    return {"mean": mean, "sd": None, "ci": ci, "tasks": 8}


def printed(table: Any) -> str:
    console = Console(file=io.StringIO(), width=200, no_color=True)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.98213, 0.00151, "0.9821 ± 0.0015"),
        (0.084, 0.00684, "0.0840 ± 0.0068"),
        (12.345, 1.6, "12.3 ± 1.6"),
        (1234.5, 67.8, "1234 ± 68"),
        (0.5, 0.0, "0.5 ± 0"),
        (0.5, None, "0.5"),
        (1e-9, 1e-10, "1e-09 ± 1e-10"),
    ],
)
def test_a_mean_has_as_many_decimals_as_its_interval(mean: float, half: float | None, text: str) -> None:
    assert plus_minus(mean, half) == text


def test_scores_have_the_unit_of_their_scale() -> None:
    degrees = Scale("angle", higher_is_better=False, unit="°")
    assert estimate_text(estimate(12.345, 1.6), degrees) == "12.3 ± 1.6 °"
    assert mean_text(estimate(12.345, 1.6), degrees) == "12.35 °"
    assert mean_text(estimate(None, None), degrees) == "not finite"


def test_a_kind_without_baselines_has_no_column_for_them(tmp_path: Path) -> None:
    summary = run_evaluation(interaction_run(None))
    text = printed(summary_table(summary)) + summary_markdown(summary)
    assert "mean return ± 95 % CI" in text
    assert "2 rollouts" in text
    assert not re.search("chance|nearest|None", text)
    assert baseline_texts(summary["results"][0]) == {}


@pytest.mark.parametrize("run", [FakeRun(None), regression_run(None)], ids=["accuracy", "error"])
def test_records_that_are_older_than_scales_read_the_same(run: FakeRun) -> None:
    summary = run_evaluation(run)
    old = {**summary, "results": [{k: v for k, v in one.items() if k != "scale"} for one in summary["results"]]}
    assert summary_markdown(old) == summary_markdown(summary)


def test_accuracies_are_per_cent_and_errors_are_not() -> None:
    assert estimate_text(estimate(0.98213, 0.00151), ACCURACY) == "98.21 ± 0.15 %"
    assert estimate_text(estimate(0.084, 0.00684), MEAN_SQUARED_ERROR) == "0.0840 ± 0.0068"
    assert estimate_text(estimate(None, None), MEAN_SQUARED_ERROR) == "not finite"
    assert mean_text(estimate(0.2, 0.1), ACCURACY) == "20.0 %"
    assert mean_text(estimate(4.4051, 0.1), MEAN_SQUARED_ERROR) == "4.405"
    assert mean_text(estimate(None, None), MEAN_SQUARED_ERROR) == "not finite"


def test_own_metrics_that_were_not_measured_or_not_finite_are_a_dash() -> None:
    assert own_metric_text(estimate(0.5, 0.012)) == "0.500 ± 0.012"
    assert own_metric_text(estimate(None, None)) == own_metric_text(None) == "–"


def test_steps_are_numbers_or_none() -> None:
    assert (steps_text(0), steps_text(None)) == ("0", "after adaptation")


def test_notes_and_warnings_appear_once() -> None:
    results = [{"note": "a note", "warn": ""}, {"note": "a note", "warn": "a warning"}]
    assert notes_and_warnings({"results": results}) == ["a note", "a warning"]
    assert notes_and_warnings({"note": "a note", "warn": ""}) == ["a note"]


def test_the_protocol_has_the_outer_step_if_it_is_known() -> None:
    summary = {"transductive": False, "tasks": 9, "split": "test", "seed": 7, "norm": "running"}
    text = "9 tasks of the test split (seed 7); norm: running; transductive: no."
    assert protocol_text(summary) == text
    assert protocol_text({**summary, "step": 40}) == f"after outer step 40; {text}"


def test_the_table_for_the_terminal_is_complete(tmp_path: Path) -> None:
    summary = run_folder(tmp_path / "run")
    text = printed(summary_table(summary))
    for part in ("pixels · reader", "5-way 1-shot", "5-way 3-shot", "20.0 %", "25.00 ± ", "norm: support"):
        assert part in text
    for part in ("transductive: yes", "The data are synthetic.", "Only 8 tasks", "seed 7"):
        assert part in text
    own = own_metrics_table(summary)
    assert own is not None
    assert "instance 1" in printed(own)
    assert "0.25 ± 0" in printed(own)


def test_names_from_plugins_are_no_markup(tmp_path: Path) -> None:
    summary = run_folder(tmp_path / "run")
    assert "[red]evil[/red]" in printed(summary_table({**summary, "learner": "[red]evil[/red]"}))


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    summary = run_folder(tmp_path / "run")
    evil = {"learner": "\x1b[31m", "norm": "\x9b1m", "note": "\x07"}
    changed = {**summary, **evil, "results": [{**result, **evil} for result in summary["results"]]}
    for table in (summary_table(changed), own_metrics_table(changed)):
        assert table is not None
        assert printed(table).replace("\n", "").isprintable()
    assert summary_markdown(changed).replace("\n", "").isprintable()


def test_markdown_is_a_table_whatever_the_cells_contain() -> None:
    lines = markdown_table(["a", "b"], [["x|y", "two\nlines"]]).splitlines()
    assert lines == ["| a    | b         |", "|------|-----------|", "| x\\|y | two lines |"]


def test_markdown_of_a_summary(tmp_path: Path) -> None:
    text = summary_markdown(run_folder(tmp_path / "run"))
    assert text.count("\n| 5-way") == 4
    assert "> The data are synthetic." in text
    assert "| instance 1 |" in text
