"""The command itself, in processes of its own and with nothing replaced: a walk, signals, and readers who leave."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

METAFORGE = [sys.executable, "-m", "metaforge"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*METAFORGE, *shlex.split(line)], cwd=folder, env=ONE_THREAD, capture_output=True, text=True, timeout=120
    )


def test_train_then_evaluate(tmp_path: Path) -> None:
    trained = command("train --learner maml --dataset sinusoid --steps 5 --out run --json", tmp_path)
    assert trained.returncode == 0, trained.stderr
    answer = json.loads(trained.stdout)
    assert (answer["folder"], answer["outcome"], answer["steps"]) == ("run", "finished", 5)
    assert "run folder: run  (device cpu" in trained.stderr
    assert "plan fold, chunk" in trained.stderr
    evaluated = command("evaluate run --tasks 20 --steps 0,1 --shots 5,10 --device cpu --json", tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    answer = json.loads(evaluated.stdout)
    assert [result["shots"] for result in answer["results"]] == [5, 10]
    assert [score["steps"] for score in answer["results"][0]["scores"]] == [0, 1]
    assert all((tmp_path / path).is_file() for path in answer["pictures"])
    assert "adaptation steps" in (tmp_path / "run" / "report.md").read_text()
    refused = command("evaluate run --steps=-1", tmp_path)
    assert refused.returncode == 2
    assert "should be 0 or more" in refused.stderr


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 143, "Terminated"), (signal.SIGINT, 130, "Int")])
def test_a_signal_ends_a_run_that_keeps_what_it_learned(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    line = "train --learner maml --dataset sinusoid --steps 1000000 --out run"
    # A run of many steps would otherwise be compiled first.
    line += " --set engine.compile=off --hook progress --set hooks.progress.interval=0"
    with subprocess.Popen(
        [*METAFORGE, *shlex.split(line)], cwd=tmp_path, env=ONE_THREAD, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for text in process.stderr:
            if text.startswith("step 3/"):
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(60) == code, rest
    assert word in rest
    assert "The last checkpoint of this run is in run" in rest
    assert "Traceback" not in rest
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["outcome"], status["exit_code"]) == ("stopped", code)
    assert status["steps"] >= 3
    assert (tmp_path / "run" / "ckpt" / "LATEST").read_text().startswith("step-")
    assert "stopped" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("line", ["list-plugins", "--help", "train --help"])
def test_a_reader_who_leaves_is_no_error(tmp_path: Path, line: str) -> None:
    # Closed before a byte is written: what `head -0` would do, only surely.
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*METAFORGE, *shlex.split(line)],
            cwd=tmp_path,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 0
