"""The code blocks of the documentation, and how a block of each language is tested."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from metaforge.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("python", "sh", "toml", "json")

# Fewer steps, tasks and characters: the tests check that every line runs, not how well the learner learns.
SHORTER_PYTHON: Mapping[str, str] = {
    r"\bsteps=\d+": "steps=2",
    r"\btasks=\d+": "tasks=4",
    r'dataset="glyphs"': 'dataset={"name": "glyphs", "train": 60, "test": 10}',
}
SHORTER_WORDS: Mapping[str, str] = {
    r"--steps \d+": "--steps 5",
    r"--budget \w+": "--steps 5",
    r"--tasks \d+": "--tasks 3",
    r"pip install -e ": "pip install --no-deps --no-build-isolation --no-index --upgrade --target {prefix} ./",
}


@dataclass(frozen=True)
class Block:
    """One code block of a page.

    `file` is the file name in the line before the block, if there is one; `adds` is whether that line says "Add to".
    """

    page: Path
    line: int
    language: str
    text: str
    file: str = ""
    adds: bool = False

    @property
    def place(self) -> str:
        """The page and line of the block, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str = "") -> list[Block]:
    """Return the blocks of a page in order: those of one language, or all."""
    text = page.read_text("utf-8")
    result = []
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)^```$", text, re.MULTILINE):
        before = text[: match.start()].rstrip().rpartition("\n")[2]
        file = re.search(r"(Add to )?`([^`]+)`:$", before)
        block = Block(page, text[: match.start()].count("\n") + 1, match[1].strip(), match[2])
        if file:
            block = Block(page, block.line, block.language, block.text, file[2], file[1] is not None)
        result.append(block)
    fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    assert fences == 2 * len(result), f"{page.name} has a block that is indented or never closed"
    return [block for block in result if language in ("", block.language)]


def shortened(text: str, table: Mapping[str, str], **names: str) -> str:
    """Return a text after regular expressions are replaced; `names` fills the placeholders of the replacements."""
    for pattern, replacement in table.items():
        text = re.sub(pattern, replacement.format(**names) if names else replacement, text)
    return text


def lines(block: Block) -> list[str]:
    """Return the commands of a shell block, without comments."""
    return [line for line in block.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def commands(page: Path) -> list[list[str]]:
    """Return the words after `metaforge` of every `metaforge` command of a page."""
    shell = [line for block in blocks(page, "sh") for line in lines(block)]
    return [shlex.split(line, comments=True)[1:] for line in shell if line.startswith("metaforge ")]


def parsed(words: list[str]) -> typer.Context:
    """Parse a command without running it, and return its context; an unknown option or argument raises."""
    group: Any = typer.main.get_command(app)
    names = []
    while hasattr(group, "commands"):
        names.append(words[0])
        assert words[0] in group.commands, f"there is no command {words[0]!r}"
        group, words = group.commands[words[0]], words[1:]
    context: typer.Context = group.make_context(" ".join(names), list(words))
    return context


def check_command(line: str, *, resolve: bool) -> None:
    """Fail unless a line of a shell block is a valid command.

    With `resolve`, the configuration of a run is resolved too, for which its plugins must be installed.
    """
    words = shlex.split(line, comments=True)
    if words[0] == "metaforge":
        context = parsed(words[1:])
        if resolve and words[1] in ("train", "config"):
            check_run(context)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"the Makefile has no target {words[1:]}"
    elif words[:2] == ["pip", "install"]:
        allowed = {"-e", "-c", ".", "constraints.txt", ".[dev]"}
        assert all(word in allowed or word.startswith("metaforge") for word in words[2:]), line
    elif words[0] == "python":
        assert words[1] == "-m", line
        path = ROOT / Path(*words[2].split("."))
        exists = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        assert exists or words[2] in ("pytest", "pip"), line
    else:
        raise AssertionError(f"{words[0]!r} is not a command that the tests can check: {line}")


def check_run(context: typer.Context) -> None:
    """Fail unless the parameters of `train` or `config` resolve to a configuration."""
    from metaforge.cli.options import RunFlags

    flags = RunFlags(**{name: context.params[name] for name in RunFlags._fields})
    flags.resolve(complete=context.params.get("resume") is None)


def check_toml(block: Block, *, resolve: bool) -> None:
    """Fail unless a block is a pyproject with known entry point groups, or a run file with known settings."""
    from metaforge.config.resolve import resolve as resolved
    from metaforge.config.sources import Layer
    from metaforge.registry.scan import GROUPS, scan

    values = tomllib.loads(block.text)
    if Path(block.file).name == "pyproject.toml":
        assert set(values["project"]["entry-points"]) <= set(GROUPS), block.place
    elif resolve:
        # The suggested settings of an adapter may be options of whichever learner uses it.
        learner = values.get("learner", {})
        complete = isinstance(learner, str) or "name" in learner
        resolved([Layer(block.place, values)], scan(), complete=complete)


def run_python(code: str, folder: Path, name: str) -> str:
    """Run code in a new interpreter in a folder, and return its output."""
    (folder / name).write_text(code, "utf-8")
    command = [sys.executable, "-W", "error::UserWarning", name]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout
