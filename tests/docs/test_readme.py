"""The README does what it says: its Python runs, and its commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blocks import ROOT, SHORTER_PYTHON, blocks, commands, parsed, run_python, shortened
from metaforge.cli.app import app

PAGE = ROOT / "README.md"
README = PAGE.read_text("utf-8")
# Commands that need a network, data or packages that the tests do not have: their parsing is tested all the same.
ELSEWHERE = ("omniglot", "leo", "new", "my-idea")


def test_the_python_of_the_readme_shows_what_it_promises(tmp_path: Path) -> None:
    code = "\n".join(block.text for block in blocks(PAGE, "python"))
    assert code.count("metaforge.train(") == 2
    printed = run_python(shortened(code, SHORTER_PYTHON), tmp_path, "readme.py")
    assert "mean" in printed
    assert "tensor(" in printed
    assert (tmp_path / "runs" / "my-module" / "report.md").is_file()


@pytest.mark.parametrize("words", commands(PAGE), ids=" ".join)
def test_a_command_of_the_readme_answers_in_json_too(words: list[str]) -> None:
    # It says `--json` on any of them.
    assert "--json" in [flag for parameter in parsed(words).command.params for flag in parameter.opts]


def test_the_commands_of_the_readme_work_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick ones as printed, training and evaluation with fewer steps and tasks; none that needs a network."""
    monkeypatch.chdir(tmp_path)
    runner, ran = CliRunner(), 0
    for words in commands(PAGE):
        if set(words) & set(ELSEWHERE):
            continue
        small = ["2" if word == "200" else "3" if word == "600" else word for word in words]
        small += ["--set", "dataset.train=20", "--set", "dataset.test=10"] if words[0] == "train" else []
        result = runner.invoke(app, small)
        assert result.exit_code == 0, f"{shlex.join(small)}\n{result.stderr}"
        ran += 1
    assert ran >= 8
    assert (tmp_path / "episode.png").is_file()


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    from metaforge import errors

    section = README.partition("### Exit codes")[2].partition("##")[0]
    told = {int(code) for code in re.findall(r"(?:^|· )(\d+) ", section, re.MULTILINE)}
    known = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "exit_code")}
    assert told == known | {0, 130, 143}
    said = app.info.epilog
    assert isinstance(said, str)
    assert {int(code) for code in re.findall(r"\d+", said)} == told
