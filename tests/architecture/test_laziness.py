"""Listing and help are quick because they import neither torch nor any plugin: checked in a fresh interpreter."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "pydantic", "matplotlib", "PIL", "metaforge_plugins")


RUN = """
import sys
sys.argv = ["metaforge", *{arguments!r}]
from metaforge.cli.app import main
try:
    main()
except SystemExit as stop:
    assert (stop.code or 0) == {code}, stop.code
"""


def imported(code: str) -> set[str]:
    """Return which heavy packages a fresh interpreter has imported after running the code."""
    probe = f"\nimport sys\nprint('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + probe], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    assert imported(RUN.format(arguments=arguments, code=0)) == set()


@pytest.mark.parametrize("arguments", [["list-plugins"], ["list-plugins", "--json"]])
def test_the_listing_imports_nothing_heavy_but_what_typer_needs(arguments: list[str]) -> None:
    # Typer itself imports pydantic to convert the options of any command.
    assert imported(RUN.format(arguments=arguments, code=0)) <= {"pydantic"}


@pytest.mark.parametrize("flags", ["", "as_json=True"])
def test_the_listing_itself_imports_nothing_heavy(flags: str) -> None:
    code = f"from metaforge.cli.list_plugins import list_plugins\nlist_plugins({flags})"
    assert imported(code) == set()


def test_a_new_project_imports_nothing_heavy(tmp_path: Path) -> None:
    arguments = ["new", "learner", "quick-idea", "--dir", str(tmp_path)]
    assert imported(RUN.format(arguments=arguments, code=0)) <= {"pydantic"}
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["describe", "nothing"], ["check", "nothing"], ["train", "--learner", "nothing"]]
)
def test_a_name_that_is_not_found_costs_nothing(arguments: list[str]) -> None:
    assert imported(RUN.format(arguments=arguments, code=4)) <= {"pydantic"}


@pytest.mark.parametrize(
    "module",
    [
        "metaforge",
        "metaforge.registry.registry",
        "metaforge.authoring.hooks",
        "metaforge.data.root",
        "metaforge.errors",
    ],
)
def test_light_modules(module: str) -> None:
    assert imported(f"import {module}") == set()


@pytest.mark.parametrize(
    "module", ["metaforge.config.resolve", "metaforge.config.sources", "metaforge.config.settings"]
)
def test_configuration_needs_pydantic_but_not_torch(module: str) -> None:
    assert imported(f"import {module}") <= {"pydantic"}


@pytest.mark.parametrize("arguments", [["--help"], ["list-plugins"]])
def test_help_and_listing_answer_in_half_a_second(arguments: list[str]) -> None:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "metaforge", *arguments], capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    # Processor time, and the best of several: what else the machine does must not fail the test.
    assert min(once() for _ in range(5)) < 0.5
