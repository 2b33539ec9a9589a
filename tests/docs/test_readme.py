"""The Python and the commands of the README run, and show what the README says."""

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
# Words of commands that need a network, data or packages that the tests do not have. Their parsing is tested anyway.
NOT_RUN = ("omniglot", "leo", "new", "my-idea")


def test_the_python_of_the_readme_runs_and_prints_results(tmp_path: Path) -> None:
    code = "\n".join(block.text for block in blocks(PAGE, "python"))
    assert code.count("metaforge.train(") == 2
    printed = run_python(shortened(code, SHORTER_PYTHON), tmp_path, "readme.py")
    assert "mean" in printed
    assert "tensor(" in printed
    assert (tmp_path / "runs" / "my-module" / "report.md").is_file()


@pytest.mark.parametrize("words", commands(PAGE), ids=" ".join)
def test_every_command_of_the_readme_has_the_option_json(words: list[str]) -> None:
    # The README says that every command has it.
    assert "--json" in [flag for parameter in parsed(words).command.params for flag in parameter.opts]


def test_the_commands_of_the_readme_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and evaluation run with fewer steps and tasks; commands that need a network are skipped."""
    monkeypatch.chdir(tmp_path)
    runner, count = CliRunner(), 0
    for words in commands(PAGE):
        if set(words) & set(NOT_RUN):
            continue
        small = ["2" if word in ("20", "200") else "3" if word == "600" else word for word in words]
        glyphs = words[0] == "train" and "--dataset" not in words
        small += ["--set", "dataset.train=20", "--set", "dataset.test=10"] if glyphs else []
        result = runner.invoke(app, small)
        assert result.exit_code == 0, f"{shlex.join(small)}\n{result.stderr}"
        count += 1
    assert count >= 8
    assert (tmp_path / "episode.png").is_file()


def test_the_readme_and_the_help_list_the_exit_codes_of_the_errors() -> None:
    from metaforge import errors

    section = README.partition("### Exit codes")[2].partition("##")[0]
    listed = {int(code) for code in re.findall(r"(?:^|· )(\d+) ", section, re.MULTILINE)}
    codes = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "exit_code")}
    assert listed == codes | {0, 129, 130, 143}
    epilog = app.info.epilog
    assert isinstance(epilog, str)
    assert {int(code) for code in re.findall(r"\d+", epilog)} == listed
