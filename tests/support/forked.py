"""Commands in forks of one process that has imported torch and MetaForge, which a new interpreter takes seconds for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.reliability import children


def metaforge(prefix: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `metaforge` in a fork that finds the distributions in a folder, with that folder as working directory."""
    log, out = prefix / "forked.log", prefix / "forked.out"
    code, errors = children.call_in_process(_main, prefix, words, out, log=log)
    return subprocess.CompletedProcess(words, code, out.read_text("utf-8"), errors)


def call_each(folder: Path, prefix: Path, commands: Sequence[Sequence[str]], **variables: str) -> list[Any]:
    """Run commands one after another in one fork, and return exit code, stdout and stderr of each.

    Each is a command of `metaforge`, or of pytest, whose output is not returned.
    """
    answers, log = folder / "answers.json", folder / "forked.log"
    code, output = children.call_in_process(_each, folder, prefix, commands, variables, answers, log=log, seconds=600)
    assert code == 0, output
    results: list[Any] = json.loads(answers.read_text("utf-8"))
    return [(code, out, f"{errors}\n{output}" if code else errors) for code, out, errors in results]


def _install(folder: Path, prefix: Path, variables: dict[str, str]) -> None:
    """Make the distributions in `prefix` importable, here and in the children of this process."""
    os.environ.update(variables, PYTHONPATH=str(prefix))
    sys.path.insert(0, str(prefix))
    os.chdir(folder)


def _main(prefix: Path, words: Sequence[str], out: Path) -> None:
    from metaforge.__main__ import main

    _install(prefix, prefix, {})
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
    sys.argv = ["metaforge", *words]
    main()


def _each(
    folder: Path, prefix: Path, commands: Sequence[Sequence[str]], variables: dict[str, str], answers: Path
) -> None:
    from metaforge.cli.app import app
    from metaforge.testing.checks import general

    _install(folder, prefix, variables)
    general.assert_import_without_side_effects = _once(general.assert_import_without_side_effects)
    results: list[Any] = []
    for words in commands:
        if words[0] == "metaforge":
            result = CliRunner().invoke(app, words[1:])
            results.append((result.exit_code, result.stdout, result.stderr))
        else:
            results.append((int(pytest.main([*words, "-q", "-p", "no:cacheprovider", "-p", "no:xdist"])), "", ""))
    answers.write_text(json.dumps(results), "utf-8")


def _once(function: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """Return a function that is called once for equal arguments: each call of this one starts an interpreter."""
    seen = set[tuple[str, ...]]()

    def called(modules: Sequence[str]) -> None:
        if tuple(modules) not in seen:
            function(modules)
            seen.add(tuple(modules))

    return called
