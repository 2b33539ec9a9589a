"""The record of a stream: regret against the last values, its section in the report, and its plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import metaforge
from metaforge.authoring.protocols import TaskShape
from metaforge.authoring.scale import ACCURACY
from metaforge.errors import DataError
from metaforge.results.report_page import write_report
from metaforge.results.stream import FILE, StreamRecord, read_stream, stream_plot, stream_section
from pictures import BLUE, colours

RECORD = StreamRecord(
    rounds=[0, 1, 2, 3],
    loss=[3.0, None, 2.0, 1.0],
    score=[0.2, 0.4, 0.6, 0.8],
    examples=[None, 5.0, 3.0, 1.0],
    hindsight=[1.0, 1.0, 1.0, 0.0],
    proficiency=0.5,
    shots=5,
)


def test_the_regret_is_the_mean_excess_so_far() -> None:
    # A round whose loss is not finite counts for nothing.
    assert np.allclose(RECORD.regret(), [2.0, 2.0, 1.5, 4 / 3])


def test_the_section_has_a_row_for_each_quarter() -> None:
    title, text, table = stream_section(RECORD)
    assert title == "## Rounds"
    assert "hindsight" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[2] == ["0 to 0", "3", "0.2", "1", "2", "–", "0%"]
    assert rows[5] == ["3 to 3", "1", "0.8", "0", "1.33", "1", "100%"]
    short = stream_section(RECORD.model_copy(update={"proficiency": None}))[2]
    assert "examples" not in short


@pytest.mark.parametrize("proficiency", [None, 0.5])
def test_the_plot(tmp_path: Path, proficiency: float | None) -> None:
    stream_plot(RECORD.model_copy(update={"proficiency": proficiency}), tmp_path / "a.png", title="t", scale=ACCURACY)
    assert BLUE in colours(tmp_path / "a.png")


def test_a_run_on_a_stream_records_its_rounds_with_the_loss_in_hindsight(tmp_path: Path) -> None:
    settings = {"train": {"round": 2, "tasks": 2, "proficiency": 1.0}, "engine": {"threads": 1, "compile": "off"}}
    run = metaforge.train("ftml", "sinusoid", steps=5, settings=settings, out=tmp_path / "run")
    record = read_stream(tmp_path / "run")
    assert record is not None
    assert (record.rounds, record.shots, record.proficiency) == ([0, 1, 2], 10, 1.0)
    learner = run.learner()
    for number, loss in enumerate(record.hindsight):
        sampled = run.dataset.sample("train", TaskShape(1, 10, 10), number, 1, seed=0)
        with torch.no_grad():
            fast = learner.adapt(run.values, type(sampled.support)(*(x[0] for x in sampled.support)))
            prediction = learner.predict(run.values, fast, sampled.query.x[0])
        assert loss == pytest.approx(float((prediction - sampled.query.y[0]).square().mean()), rel=1e-5)
    assert (tmp_path / "run" / "pictures" / "rounds.png").is_file()
    assert "## Rounds" in (tmp_path / "run" / "report.md").read_text()


def test_an_invalid_record_is_named_and_left_out(tmp_path: Path) -> None:
    assert read_stream(tmp_path) is None
    content = RECORD.model_dump() | {"loss": [1.0]}
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(DataError, match="different lengths"):
        read_stream(tmp_path)
    text = write_report(tmp_path).read_text()
    assert "## Rounds" not in text
    assert "is not the record of a stream" in text
