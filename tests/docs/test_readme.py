"""The README does what it says: its Python runs, and its commands are commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from metaforge.cli.app import app

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return the words after `metaforge` of every such line of a shell block, comments left out."""
    lines = "\n".join(blocks("sh")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("metaforge ")]


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    assert code.count("metaforge.train(") == 2
    # Fewer steps, tasks and characters: what is to be seen is that every line works.
    code = re.sub(r"steps=\d+", "steps=2", code).replace("tasks=100", "tasks=4")
    code = code.replace('dataset="glyphs"', 'dataset={"name": "glyphs", "train": 60, "test": 10}')
    (tmp_path / "readme.py").write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "readme.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mean" in done.stdout
    assert "tensor(" in done.stdout
    assert (tmp_path / "runs" / "my-module" / "report.md").is_file()


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_of_the_readme_is_understood(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    names = []
    while hasattr(group, "commands"):
        names.append(words[0])
        assert words[0] in group.commands
        group, words = group.commands[words[0]], words[1:]
    # Parsing fails on an option or an argument that does not exist; nothing is run.
    group.make_context(" ".join(names), list(words))
    # It says `--json` on any of them.
    assert "--json" in [flag for parameter in group.params for flag in parameter.opts]


def test_the_commands_of_the_readme_work_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick ones as printed, training and evaluation with fewer steps and tasks; none that needs a network."""
    monkeypatch.chdir(tmp_path)
    runner, ran = CliRunner(), 0
    for words in commands():
        if "omniglot" in words or "leo" in words:
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
