"""The projects that `metaforge new` writes are installed with pip, listed, checked and trained in child processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from forked import call_each, metaforge
from prefixes import Prefix

KINDS = ("learner", "adapter", "dataset", "regularizer", "backbone", "optimizer", "schedule", "hook")
# Two short trainings that together use every new plugin.
TRAININGS = {
    "learner": "--learner my-learner --dataset my-dataset --regularizer my-regularizer --hook my-hook",
    "adapter": "--learner maml --dataset my-dataset --adapter my-adapter --backbone my-backbone"
    " --optimizer my-optimizer --schedule my-schedule",
}


def run_tool(*command: str, cwd: Path, **variables: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of a new project for each kind of plugin."""
    outside, folders = tmp_path_factory.mktemp("projects"), {}
    for kind in KINDS:
        created = metaforge(outside, "new", kind, f"my-{kind}", "--json")
        assert created.returncode == 0, created.stderr
        folders[kind] = outside / json.loads(created.stdout)["folder"]
    return folders


@pytest.fixture(scope="module")
def prefix(projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Prefix:
    """Return a prefix in which pip has installed all projects."""
    folder = tmp_path_factory.mktemp("prefix")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    # Build from copies, so that files of the build do not end up in the projects.
    copies = [shutil.copytree(path, folder / "sources" / path.name) for path in projects.values()]
    run_tool(
        sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(folder), *map(str, copies), cwd=folder
    )
    return Prefix(folder)


def test_new_plugins_are_listed_with_their_distribution_and_version(prefix: Prefix) -> None:
    rows = {row["name"]: row for row in json.loads(prefix.run("list-plugins", "--json").stdout)}
    for kind in KINDS:
        row = rows[f"my-{kind}"]
        assert (row["kind"], row["distribution"], row["version"]) == (kind, f"metaforge-my-{kind}", "0.1.0")
        assert row["state"] == "ready", row["reason"]
        assert row["summary"]
        assert (prefix.folder / f"metaforge_my_{kind}" / "py.typed").is_file()


@pytest.mark.parametrize("kind", ["learner", "adapter", "dataset"])
def test_a_new_plugin_passes_its_checks(prefix: Prefix, kind: str) -> None:
    checked = metaforge(prefix.folder, "check", f"my-{kind}")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    run, failed = (int(part.split()[0]) for part in checked.stdout.splitlines()[-1].split(", ")[:2])
    assert (run > 10, failed) == (True, 0)


def test_the_tests_of_new_projects_pass(prefix: Prefix, projects: dict[str, Path]) -> None:
    paths = [str(projects[kind] / "tests") for kind in ("regularizer", "backbone", "optimizer", "schedule", "hook")]
    # The check `import` starts a child process, and the kinds in the test above have already run it.
    ((code, _, output),) = call_each(
        prefix.folder, prefix.folder, [[*paths, "-k", "not import", "--junitxml", "n.xml"]]
    )
    assert code == 0, output
    assert int(re.findall(r'tests="(\d+)"', (prefix.folder / "n.xml").read_text("utf-8"))[0]) > 20


@pytest.mark.parametrize("kind", TRAININGS)
def test_new_plugins_are_trained(prefix: Prefix, kind: str, tmp_path: Path) -> None:
    shortly = ("--steps", "3", "--set", "train.tasks=2", "--no-progress", "--json", "--out", str(tmp_path / "run"))
    trained = metaforge(prefix.folder, "train", *TRAININGS[kind].split(), *shortly)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["steps"] == 3
    recorded = (tmp_path / "run" / "env.json").read_text("utf-8")
    for used in re.findall("my-([a-z]+)", TRAININGS[kind]):
        assert f'"{used} my-{used}": "metaforge-my-{used} 0.1.0"' in recorded
    assert (tmp_path / "run" / "best.json").is_file() == (kind == "learner")


def test_new_projects_are_short_and_pass_ruff_and_mypy(projects: dict[str, Path]) -> None:
    folder = projects["learner"].parent
    sources = [str(path) for path in folder.glob("*/*/**/*.py")]
    assert len(sources) == 2 * len(KINDS)
    run_tool(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=folder)
    run_tool(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".", cwd=folder)
    # In this repository, for its strict settings and its cache.
    run_tool(sys.executable, "-m", "mypy", *sources, cwd=Path(__file__).parents[2])
    for kind in KINDS:
        (plugin,) = (projects[kind] / "src").glob("*/__init__.py")
        lines = plugin.read_text("utf-8").splitlines()
        assert sum(bool(line.strip()) for line in lines) < 40


def test_the_commands_of_a_new_project_are_those_of_its_readme(projects: dict[str, Path]) -> None:
    for kind, folder in projects.items():
        readme = (folder / "README.md").read_text("utf-8")
        for command in ("pip install -e .", f"metaforge check my-{kind}", "metaforge train --learner "):
            assert f"\n{command}" in readme
        points = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
        cls = "".join(part.capitalize() for part in f"my-{kind}".split("-"))
        assert points == {f"metaforge.{kind}s": {f"my-{kind}": f"metaforge_my_{kind}:{cls}"}}
