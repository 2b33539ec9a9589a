"""The report of a run contains everything that its folder does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaforge.authoring.scale import ACCURACY
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
            assert estimate_text(estimate, ACCURACY) in text
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


def test_texts_of_the_folder_have_no_effect_on_the_page(tmp_path: Path) -> None:
    """The name of the folder, the command, metrics, status, environment and records are those of somebody else."""
    evil = "\x1b[31m\x07 # x\n\n# evil\n<script>alert(1)</script>"
    folder = tmp_path / "run\n# evil \x1b <script>"
    run_folder(folder)
    (folder / "config.toml").unlink()
    (folder / "command.txt").write_text(f"metaforge train\n```\n{evil}\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, evil: 1.0}) + "\n")
    (folder / "status.json").write_text(
        json.dumps({"outcome": "finished", "error": evil, "resumed": {"differences": [evil]}})
    )
    (folder / "env.json").write_text(json.dumps({evil: evil, "plugins": {evil: evil}}))
    (folder / "pictures" / "a](b) <script>\x1b.png").write_bytes(b"png")
    record = json.loads((folder / "evaluation" / "test-5w1s.json").read_text())
    changed = record | {"learner": evil, "dataset": evil, "note": evil, "warn": "- " + evil, "norm": evil}
    (folder / "evaluation" / "test-5w1s.json").write_text(json.dumps(changed))
    (folder / "evaluation" / "other.json").write_text(json.dumps(record | {"shots": evil}))
    text = write_report(folder).read_text()
    assert text.replace("\n", "").isprintable()
    outside, fence, inside, *rest = text.partition("````sh\n")
    command, end, after = inside.partition("\n````\n")
    assert (fence, end, rest) == ("````sh\n", "\n````\n", [])
    assert "<script>" in command
    for part in (outside, after):
        assert "<script" not in part
        headings = [line for line in part.splitlines() if line.startswith("#")]
        assert all(line.startswith("## ") or line == "# run # evil &lt;script>" for line in headings), headings
        assert not [line for line in headings if line.startswith("## ") and "evil" in line]
