"""A line lives in one room: the rules of the design that a program can check, read from the syntax tree."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "metaforge").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins" / "metaforge_plugins").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
POINTS: dict[str, dict[str, str]] = PYPROJECT["project"]["entry-points"]

LIGHT = ("__init__", "__main__", "cli", "registry", "summaries", "hooks", "config", "layers", "sections", "validation")
LIGHT += ("errors", "scaffold")
# Two names that are also torch's own: what they say of a plugin, the core has to say of its outer optimiser.
ORDINARY_WORDS = {"sgd", "adam", "progress"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8")))


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run on import: those outside functions and outside `if TYPE_CHECKING`."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
            continue
        yield node
        pending.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


def modules_imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def test_the_core_names_no_plugin() -> None:
    names = {name for group in POINTS if group != "metaforge.defaults" for name in POINTS[group]} - ORDINARY_WORDS
    pattern = re.compile(rf"\b({'|'.join(re.escape(name) for name in sorted(names))})\b", re.IGNORECASE)
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in CORE
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_core_imports_no_plugin() -> None:
    found = [name_of(path) for path in CORE for node in nodes(path) if "metaforge_plugins" in modules_imported(node)]
    assert not found


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_do_not_import_torch_when_they_are_imported(room: str) -> None:
    paths = [path for path in CORE if path.relative_to(ROOT / "metaforge").with_suffix("").parts[0] == room]
    for path in paths:
        for node in module_level(ast.parse(path.read_text("utf-8"))):
            for module in modules_imported(node):
                assert module.split(".")[0] not in ("torch", "numpy"), f"{name_of(path)} imports {module}"
                assert module not in ("metaforge.protocols", "metaforge.contracts"), f"{name_of(path)} imports {module}"


BANNED_CALLS = {"eval", "exec", "torch.load", "torch.save", "os.system", "pickle.load", "pickle.loads", "marshal.loads"}
BANNED_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
GLOBAL_RANDOMNESS = {"torch.manual_seed", "np.random.seed", "numpy.random.seed", "random.seed"}


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_nothing_that_runs_code_from_data(path: Path) -> None:
    for node in nodes(path):
        for module in modules_imported(node):
            assert module.split(".")[0] not in BANNED_MODULES, f"line {getattr(node, 'lineno', 0)} imports {module}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in BANNED_CALLS, f"line {node.lineno} calls {called}"
            assert not called.endswith(".extractall"), f"line {node.lineno} calls {called}"
            for keyword in node.keywords:
                shell = keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
                assert not shell, f"line {node.lineno} runs a shell"


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_torch_distributed_has_one_room(path: Path) -> None:
    if path.name == "distributed.py":
        return
    for node in nodes(path):
        for module in modules_imported(node):
            assert not module.startswith("torch.distributed"), f"line {getattr(node, 'lineno', 0)}"


def test_pyproject_and_the_installed_metadata_agree() -> None:
    installed = {
        group: {
            point.name: point.value for point in metadata.distribution("metaforge").entry_points.select(group=group)
        }
        for group in POINTS
    }
    assert installed == POINTS, "the entry points have changed since the last install: pip install -e ."


def test_every_entry_point_has_its_file_and_every_plugin_file_its_entry_point() -> None:
    targets = {value for group, points in POINTS.items() if group != "metaforge.defaults" for value in points.values()}
    for target in targets:
        module, _, name = target.partition(":")
        path = (ROOT / "plugins" / Path(*module.split("."))).with_suffix(".py")
        assert path.is_file(), f"{target} has no file {name_of(path)}"
        classes = [node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
        assert name in classes, f"{name_of(path)} has no class {name}"
    modules = {target.partition(":")[0] for target in targets}
    for path in PLUGINS:
        module = ".".join(path.relative_to(ROOT / "plugins").with_suffix("").parts)
        private = path.name.startswith("_")
        assert private or module in modules, f"{name_of(path)} is no plugin: register it or move it to the core"


def test_a_plugin_s_file_has_its_name() -> None:
    for group, points in POINTS.items():
        if group != "metaforge.defaults":
            for name, target in points.items():
                assert target.partition(":")[0].rpartition(".")[2] == name.replace("-", "_")


def test_defaults_are_plugins() -> None:
    targets = {value for group, points in POINTS.items() if group != "metaforge.defaults" for value in points.values()}
    assert set(POINTS["metaforge.defaults"].values()) <= targets


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400
