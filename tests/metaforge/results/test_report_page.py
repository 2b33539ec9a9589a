"""Tables, the page of a run and the tables of many runs: every figure that was measured is there."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fake_runs import FakeRun, regression_run
from metaforge.errors import ConfigError, DataError
from metaforge.results.comparison import main, write_results
from metaforge.results.evaluate import evaluate_run
from metaforge.results.records import read_evaluations, read_metrics, write_in_folder
from metaforge.results.report_page import duration, machine, write_report
from metaforge.results.tables import (
    estimate_text,
    markdown,
    measures_table,
    plus_minus,
    summary_markdown,
    summary_table,
)

ENVIRONMENT = {
    "python": "3.11.9",
    "torch": "2.13.0",
    "platform": "Linux",
    "processor": "x86_64",
    "threads": 2,
    "cuda": False,
    "plugins": {"learner reader": "somebody 1.0"},
    "git_commit": "abc",
}


def run_folder(folder: Path, run: FakeRun | None = None, **changes: Any) -> dict[str, Any]:
    """Fill a run folder as training and evaluation do; return the evaluation's summary."""
    folder.mkdir(parents=True)
    run = run or FakeRun(folder)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "training.png").write_bytes(b"png")
    (folder / "config.toml").write_text('seed = 3\n[learner]\nname = "reader"\n[dataset]\nname = "pixels"\nside = 4\n')
    (folder / "command.txt").write_text("metaforge train --learner reader --seed 3\n")
    (folder / "env.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "status.json").write_text(json.dumps({"outcome": "finished", "steps": 400, "seconds": 83.4}))
    (folder / "metrics.jsonl").write_text('{"step": 400, "loss": 0.1234, "score": 0.91, "score_ci": 0.012}\n')
    settings: dict[str, Any] = {"shots": [1, 3], "steps": None, "tasks": 8, "split": "test", "seed": 7}
    return evaluate_run(run, **{**settings, **changes})


def shown(table: Any) -> str:
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


def test_accuracies_are_per_cent_and_errors_are_not() -> None:
    assert estimate_text({"mean": 0.98213, "ci": 0.00151}, "accuracy") == "98.21 ± 0.15 %"
    assert estimate_text({"mean": 0.084, "ci": 0.00684}, "mse") == "0.0840 ± 0.0068"
    assert estimate_text({"mean": None, "ci": None}, "mse") == "not finite"


def test_the_terminals_table_says_all(tmp_path: Path) -> None:
    summary = run_folder(tmp_path / "run")
    text = shown(summary_table(summary))
    for part in ("pixels · reader", "5-way 1-shot", "5-way 3-shot", "20.0 %", "25.00 ± ", "norm: support"):
        assert part in text
    for part in ("transductive: yes", "The data are synthetic.", "Only 8 tasks", "seed 7"):
        assert part in text
    own = measures_table(summary)
    assert own is not None
    assert "instance 1" in shown(own)
    assert "0.25 ± 0" in shown(own)


def test_names_from_plugins_are_no_markup(tmp_path: Path) -> None:
    summary = run_folder(tmp_path / "run")
    assert "[red]evil[/red]" in shown(summary_table({**summary, "learner": "[red]evil[/red]"}))


def test_markdown_is_a_table_whatever_the_cells_hold() -> None:
    lines = markdown(["a", "b"], [["x|y", "two\nlines"]]).splitlines()
    assert lines == ["| a    | b         |", "|------|-----------|", "| x\\|y | two lines |"]


def test_markdown_of_a_summary(tmp_path: Path) -> None:
    text = summary_markdown(run_folder(tmp_path / "run"))
    assert text.count("\n| 5-way") == 4
    assert "> The data are synthetic." in text
    assert "| instance 1 |" in text


def test_the_report_mentions_every_figure(tmp_path: Path) -> None:
    summary = run_folder(tmp_path / "run")
    path = write_report(tmp_path / "run")
    text = path.read_text()
    assert path.name == "report.md"
    assert text.startswith("# pixels · reader\n")
    for result in summary["results"]:
        for figure in (*result["scores"], result["floor"]):
            assert estimate_text(figure, "accuracy") in text
        for figure in result["measures"].values():
            assert plus_minus(figure["mean"], figure["ci"]) in text
    for part in ("chance 20.0 %", "norm: support", "transductive: yes", "![training](pictures/training.png)"):
        assert part in text
    for part in ("metaforge train --learner reader --seed 3", "finished", "1 min 23 s", "0.1234", "0.910 ± 0.012"):
        assert part in text
    for part in ("2.13.0", "somebody 1.0", "Only 8 tasks"):
        assert part in text


def test_the_report_of_a_folder_with_nothing(tmp_path: Path) -> None:
    assert "Not evaluated yet." in write_report(tmp_path).read_text()


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    damaged = tmp_path / "run" / "evaluation" / "test-5w1s.json"
    damaged.write_text(damaged.read_text()[:100])
    with pytest.raises(DataError, match=r"test-5w1s\.json"):
        write_report(tmp_path / "run")


def test_a_damaged_line_of_the_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match="Line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_evaluations_are_read_in_the_order_of_their_shapes(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", shots=[10, 2])
    assert [record["shots"] for record in read_evaluations(tmp_path / "run")] == [2, 10]


def test_writing_leaves_the_old_file_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_in_folder(tmp_path / "deep" / "file", "old")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_in_folder(tmp_path / "deep" / "file", "new")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
    assert (tmp_path / "deep" / "file").read_text() == "old"


def test_durations_and_machines_in_words() -> None:
    assert [duration(s) for s in (1.234, 83.4, 3600 * 2 + 60)] == ["1.23 s", "1 min 23 s", "2 h 1 min"]
    assert machine(ENVIRONMENT) == "x86_64, 2 threads, torch 2.13.0"
    assert machine({}) == ""


def test_results_of_many_runs(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "one")
    run_folder(tmp_path / "two", seed=8)
    lines = run_folder(tmp_path / "three", regression_run(tmp_path / "three"), shots=None)
    out = write_results(tmp_path / "docs" / "results.md", [tmp_path / name for name in ("one", "two", "three")])
    text = out.read_text()
    # Other seeds are other tasks: they are no rows of one table.
    assert text.count("## pixels, 5-way 1-shot") == 2
    assert text.count("## pixels, 2 points") == 1
    for result in (*first["results"], *lines["results"]):
        for score in result["scores"]:
            assert estimate_text(score, result["metric"]) in text
    for part in ("side = 4", "support", "400", "1 min 23 s", "x86_64", "The data are synthetic.", "| instance 1"):
        assert part in text
    assert text.count("metaforge train --learner reader --seed 3") == 3
    assert "published" not in text


def test_published_figures_stand_beside_with_their_source(tmp_path: Path) -> None:
    run_folder(tmp_path / "one")
    figures = tmp_path / "published.toml"
    figures.write_text(
        '[[published]]\nlearner = "reader"\ndataset = "pixels"\nways = 5\nshots = 1\n'
        'figure = "98.7 ± 0.4 %"\nsource = "A paper, table 1"\n'
    )
    text = write_results(tmp_path / "r.md", [tmp_path / "one"], published=figures).read_text()
    assert "98.7 ± 0.4 % [1]" in text
    assert "[1] reader: A paper, table 1" in text
    assert text.count("98.7") == 1


def test_incomplete_published_figures_are_refused(tmp_path: Path) -> None:
    run_folder(tmp_path / "one")
    (tmp_path / "published.toml").write_text('[[published]]\nlearner = "reader"\n')
    with pytest.raises(ConfigError, match="lacks dataset, ways, shots, figure, source"):
        write_results(tmp_path / "r.md", [tmp_path / "one"], published=tmp_path / "published.toml")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "one")
    assert main([str(tmp_path / "r.md"), str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'r.md'}\n"
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "r.md"), str(tmp_path / "empty")]) == 3
    assert "holds no evaluation" in capsys.readouterr().err
