"""The report of a run contains everything that its folder does."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaforge.errors import DataError
from metaforge.results.records import read_evaluations
from metaforge.results.report_page import duration_text, machine_text, write_report
from metaforge.results.tables import estimate_text, plus_minus
from run_folders import ENVIRONMENT, run_folder


def test_the_report_contains_every_score(tmp_path: Path) -> None:
    summary = run_folder(tmp_path / "run")
    path = write_report(tmp_path / "run")
    text = path.read_text()
    assert path.name == "report.md"
    assert text.startswith("# pixels · reader\n")
    for result in summary["results"]:
        for estimate in (*result["scores"], result["floor"]):
            assert estimate_text(estimate, "accuracy") in text
        for estimate in result["measures"].values():
            assert plus_minus(estimate["mean"], estimate["ci"]) in text
    for part in ("chance 20.0 %", "norm: support", "transductive: yes", "![training](pictures/training.png)"):
        assert part in text
    for part in ("metaforge train --learner reader --seed 3", "finished", "1 min 23 s", "0.1234", "0.910 ± 0.012"):
        assert part in text
    for part in ("2.13.0", "somebody 1.0", "Only 8 tasks"):
        assert part in text


def test_the_report_of_an_empty_folder(tmp_path: Path) -> None:
    assert "Not evaluated yet." in write_report(tmp_path).read_text()


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    damaged = tmp_path / "run" / "evaluation" / "test-5w1s.json"
    damaged.write_text(damaged.read_text()[:100])
    with pytest.raises(DataError, match=r"test-5w1s\.json"):
        read_evaluations(tmp_path / "run")
    text = write_report(tmp_path / "run").read_text()
    assert "## Left out\n\n- test-5w1s.json is not a valid JSON object" in text
    assert "5-way 3-shot" in text
    assert "5-way 1-shot" not in text


def test_what_changed_when_the_run_was_resumed_is_listed(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"steps": 9, "resumed": {"differences": ["train.lr: 0.1 -> 0.2"]}}')
    assert "resumed with this change | train.lr: 0.1 -> 0.2 |" in write_report(tmp_path).read_text()


def test_durations_and_machines_as_text() -> None:
    assert [duration_text(s) for s in (1.234, 83.4, 3600 * 2 + 60)] == ["1.23 s", "1 min 23 s", "2 h 1 min"]
    assert machine_text(ENVIRONMENT) == "x86_64, 2 threads, torch 2.13.0"
    assert machine_text({}) == ""
