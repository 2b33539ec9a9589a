"""`metaforge config`: the resolved configuration is a run file, with the origin of every value."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from fake_commands import run_command

pytestmark = pytest.mark.usefixtures("calls")


def test_config_prints_a_run_file_with_origins() -> None:
    result = run_command("config -l guess -d dots --seed 9")
    assert result.exit_code == 0, result.stderr
    values = tomllib.loads(result.stdout)
    assert values["seed"] == 9
    assert values["learner"] == {"name": "guess", "courage": 0.5}
    assert values["adapters"] == {}
    assert "# --seed" in result.stdout
    Path("run.toml").write_text(result.stdout, "utf-8")
    again = run_command("config -c run.toml --json")
    assert tomllib.loads(result.stdout)["dataset"] == json.loads(again.stdout)["values"]["dataset"]


def test_config_as_json_and_without_a_learner() -> None:
    answer = json.loads(run_command("config -d dots --json").stdout)
    assert answer["origins"]["dataset.name"] == "--dataset"
    assert "learner" not in answer["values"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("config -l gues", 4, "Did you mean 'guess'?"),
    ],
)
def test_invalid_input_ends_with_a_message_and_an_exit_code(arguments: str, code: int, sentence: str) -> None:
    result = run_command(arguments)
    assert result.exit_code == code, result.stderr
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
