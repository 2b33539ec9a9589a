"""The code blocks of the documentation: what they are, and how each is tried; one that cannot be tried is a mistake."""

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

# Fewer steps, tasks, classes and characters: what is to be seen is that every line works, not how well it learns.
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
    """One block of a page; `file` is the name that the line before it gives it, `adds` whether it is added to it."""

    page: Path
    line: int
    language: str
    text: str
    file: str = ""
    adds: bool = False

    @property
    def place(self) -> str:
        """Where the block is, for messages and names of tests."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, language: str = "") -> list[Block]:
    """Return the blocks of a page in order, of one language or of all."""
    text = page.read_text("utf-8")
    found = []
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)^```$", text, re.MULTILINE):
        before = text[: match.start()].rstrip().rpartition("\n")[2]
        file = re.search(r"(Add to )?`([^`]+)`:$", before)
        block = Block(page, text[: match.start()].count("\n") + 1, match[1].strip(), match[2])
        if file:
            block = Block(page, block.line, block.language, block.text, file[2], file[1] is not None)
        found.append(block)
    fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
    assert fences == 2 * len(found), f"{page.name} has a block that is indented or never closed"
    return [block for block in found if language in ("", block.language)]


def shortened(text: str, table: Mapping[str, str], **names: str) -> str:
    """Return a text with the substitutions of a table."""
    for pattern, replacement in table.items():
        text = re.sub(pattern, replacement.format(**names) if names else replacement, text)
    return text


def lines(block: Block) -> list[str]:
    """Return the commands of a shell block, without comments."""
    return [line for line in block.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def commands(page: Path) -> list[list[str]]:
    """Return the words after `metaforge` of every such command of a page."""
    found = [line for block in blocks(page, "sh") for line in lines(block)]
    return [shlex.split(line, comments=True)[1:] for line in found if line.startswith("metaforge ")]


def parsed(words: list[str]) -> typer.Context:
    """Return the context of a command: an option or argument that does not exist fails here; nothing is run."""
    group: Any = typer.main.get_command(app)
    names = []
    while hasattr(group, "commands"):
        names.append(words[0])
        assert words[0] in group.commands, f"there is no command {words[0]!r}"
        group, words = group.commands[words[0]], words[1:]
    context: typer.Context = group.make_context(" ".join(names), list(words))
    return context


def check_command(line: str, *, resolve: bool) -> None:
    """Fail unless a line of a shell block means something; a run is resolved too, where its plugins are installed."""
    words = shlex.split(line, comments=True)
    if words[0] == "metaforge":
        context = parsed(words[1:])
        if resolve and words[1] in ("train", "config"):
            check_run(context)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"the Makefile has no target {words[1:]}"
    elif words[:2] == ["pip", "install"]:
        known = {"-e", "-c", ".", "constraints.txt", ".[dev]"}
        assert all(word in known or word.startswith("metaforge") for word in words[2:]), line
    elif words[0] == "python":
        assert words[1] == "-m", line
        place = ROOT / Path(*words[2].split("."))
        known = place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
        assert known or words[2] in ("pytest", "pip"), line
    else:
        raise AssertionError(f"{words[0]!r} is no command that the tests know how to try: {line}")


def check_run(context: typer.Context) -> None:
    """Fail unless the parameters of `train` or `config` make a configuration."""
    from metaforge.cli.options import RunFlags

    flags = RunFlags(**{name: context.params[name] for name in RunFlags._fields})
    flags.resolve(complete=context.params.get("resume") is None)


def check_toml(block: Block, *, resolve: bool) -> None:
    """Fail unless a block is TOML: entry points that name known kinds, or a run file whose every setting is known."""
    from metaforge.config.resolve import resolve as resolved
    from metaforge.config.sources import Layer
    from metaforge.registry.scan import GROUPS, scan

    values = tomllib.loads(block.text)
    if Path(block.file).name == "pyproject.toml":
        assert set(values["project"]["entry-points"]) <= set(GROUPS), block.place
    elif resolve:
        resolved([Layer(block.place, values)], scan(), complete="learner" in values)


def run_python(code: str, folder: Path, name: str) -> str:
    """Run code in an interpreter of its own, in a folder; return what it prints."""
    (folder / name).write_text(code, "utf-8")
    command = [sys.executable, "-W", "error::UserWarning", name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
