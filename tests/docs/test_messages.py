"""Every command and every flag that a message, a remedy or a docstring of the source names exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from blocks import ROOT
from metaforge.cli.app import app
from metaforge.registry.entry import KINDS

SOURCES = sorted(path for folder in ("metaforge", "plugins") for path in (ROOT / folder).rglob("*.py"))
# Flags of other programs: git, pip and `python -m benchmarks`; and those of every command.
FOREIGN = {"--porcelain", "--upgrade", "--published", "--help", "--version"}


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the text of a string literal; a value in an f-string is a word, or each kind of plugin within a flag."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
        text = "".join(map(str, parts))
        for kind in KINDS if "--\0" in text else ("",):
            yield text.replace("--\0", f"--{kind}").replace("\0", "X")


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every string literal."""
    for node in ast.walk(tree):
        for text in texts(node):
            yield node.lineno, text  # type: ignore[attr-defined]


def remedies(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every string literal that is, or is assigned to, a remedy."""
    for node in ast.walk(tree):
        targets = [*getattr(node, "targets", []), getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and "remed" in target.id.lower() for target in targets)
        value = getattr(node, "value", None)
        if value is not None and (named or (isinstance(node, ast.keyword) and node.arg == "remedy")):
            yield from literals(value)


def found_in(pattern: str, pick: Any) -> list[tuple[str, str]]:
    """Return each match of a pattern in the source, with its place."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", match)
        for path in SOURCES
        for line, text in pick(ast.parse(path.read_text("utf-8")))
        for match in re.findall(pattern, text)
    ]


def commands_of(group: Any, names: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return every command below a group, by the words that call it."""
    if not hasattr(group, "commands"):
        return {names: group}
    return {
        words: command
        for name, inner in group.commands.items()
        for words, command in commands_of(inner, (*names, name)).items()
    }


COMMANDS = commands_of(typer.main.get_command(app))
GROUPS = {words[:1] for words in COMMANDS if len(words) > 1}
FLAGS = {flag for command in COMMANDS.values() for parameter in command.params for flag in parameter.opts}


def check(line: str) -> None:
    """Fail unless a line that may lack arguments is a command; an unknown option raises."""
    words = shlex.split(line)[1:]
    if not words or words == ["--help"] or tuple(words) in GROUPS:
        return
    names = next((names for names in COMMANDS if tuple(words[: len(names)]) == names), None)
    assert names is not None, f"there is no command {line!r}"
    arguments = words[len(names) :]
    if arguments and arguments[-1].startswith("--"):
        flags = [p for p in COMMANDS[names].params if arguments[-1] in p.opts and getattr(p, "is_flag", False)]
        arguments += [] if flags else ["1"]
    # The parser alone: it refuses unknown options, and leaves it to the command that an argument is missing.
    command = COMMANDS[names]
    command.make_parser(command.context_class(command)).parse_args(arguments)


@pytest.mark.parametrize(("place", "line"), found_in(r"`(metaforge\b(?![.:/_])[^`]*)`", literals))
def test_every_command_in_backticks_exists(place: str, line: str) -> None:
    check(line)


@pytest.mark.parametrize(("place", "flag"), found_in(r"(?<![\w-])(--[a-z][a-z-]*)", literals))
def test_every_flag_in_a_remedy_or_another_text_exists(place: str, flag: str) -> None:
    assert flag in FLAGS | FOREIGN


def test_the_remedies_are_found() -> None:
    expected = {f"--{kind}" for kind in KINDS} | {"--resume", "--set", "--out", "--dir", "--accept-plugins", "--kind"}
    assert {flag for _, flag in found_in(r"(--[a-z][a-z-]*)", remedies)} >= expected


@pytest.mark.parametrize("line", ["metaforge fly", "metaforge train --hok jsonl", "metaforge data fly"])
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|no command"):
        check(line)
