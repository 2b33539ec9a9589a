"""A line lives in one room: the rules of the design that a program can check, read from the syntax tree."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from code_from_data import hits

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "metaforge").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins" / "metaforge_plugins").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
POINTS: dict[str, dict[str, str]] = PYPROJECT["project"]["entry-points"]

LIGHT = ("__init__", "__main__", "cli", "registry", "config", "errors", "authoring/__init__", "authoring/hooks")
LIGHT += ("data/__init__", "data/root", "system/line_files", "system/files")
# The one module of a light room that may import torch at once: loading a plugin imports it, listing does not.
HEAVY = ("metaforge/registry/contract.py",)
# Two names that are also torch's own: what they say of a plugin, the core has to say of its outer optimiser. Two that
# are formats of files.
ORDINARY_WORDS = {"sgd", "adam", "progress", "csv", "jsonl"}


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
    places = {path: path.relative_to(ROOT / "metaforge").with_suffix("").as_posix() for path in CORE}
    paths = [path for path, place in places.items() if place == room or place.startswith(f"{room}/")]
    assert paths
    for path in paths:
        if name_of(path) in HEAVY:
            continue
        for node in module_level(ast.parse(path.read_text("utf-8"))):
            for module in modules_imported(node):
                assert module.split(".")[0] not in ("torch", "numpy"), f"{name_of(path)} imports {module}"
                heavy = ("metaforge.authoring.protocols", "metaforge.registry.contract")
                assert not module.startswith(heavy), f"{name_of(path)} imports {module}"


# Modules that may bring in code by its name; no others may.
CODE = {
    "metaforge/__init__.py": "its own public names",
    "metaforge/authoring/__init__.py": "its own public names",
    "metaforge/data/__init__.py": "its own public names",
    "metaforge/runs/api.py": "what the caller of a function names",
    "metaforge/registry/loading.py": "entry points",
    "metaforge/system/machine.py": "the C library's memory",
    "metaforge/testing/__init__.py": "its own public names",
}
# Functions that draw from a generator of the whole process, or change one.
GLOBAL_RANDOMNESS = ("torch.random.", "np.random.", "numpy.random.", "random.", "torch.default_generator")
GLOBAL_RANDOMNESS += ("torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.seed")
GLOBAL_RANDOMNESS += ("torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.normal")
GLOBAL_RANDOMNESS += ("torch.bernoulli", "torch.multinomial", "torch.set_rng_state", "torch.get_rng_state")
# The one place where modules may draw their initial weights, and where the generator is put back afterwards.
SEEDED = {"metaforge/authoring/network.py": "seeded", "metaforge/testing/global_state.py": "generator_states"}

# Modules that may touch what lies outside the program; no others may.
FILES = {
    "metaforge/runs/checkpoint.py": "saved states",
    "metaforge/runs/checkpoint_files.py": "saved states",
    "metaforge/cli/data.py": "the folder of a preview",
    "metaforge/cli/new.py": "the project of a new plugin",
    "metaforge/cli/output.py": "the null device, when a reader has left",
    "metaforge/cli/schema.py": "the folder of a schema",
    "metaforge/data/archives.py": "archives",
    "metaforge/data/cache.py": "the cache",
    "metaforge/data/downloads.py": "downloads",
    "metaforge/data/images.py": "image files",
    "metaforge/registry/metadata.py": "the entry points of distributions",
    "metaforge/config/sources.py": "run files",
    "metaforge/system/line_files.py": "what hooks write line by line",
    "metaforge/system/lock.py": "the lock of a run",
    "metaforge/system/untrusted.py": "files of a stranger's run folder",
    "metaforge/results/records.py": "the folders of pictures and figures",
    "metaforge/runs/folder.py": "run folders",
    "metaforge/system/machine.py": "the processor's name",
    "metaforge/system/files.py": "whatever is written whole or not at all",
    "metaforge/registry/summaries.py": "the first line of a plugin's source",
    "metaforge/testing/checks/hooks.py": "the temporary folder of a toy run",
    "metaforge/testing/checks/learners.py": "the temporary folder of a checkpoint",
    "metaforge/runs/training.py": "the temporary folder of a dry run",
}
CLOCK = {
    "metaforge/cli/list_plugins.py": "times of imports",
    "metaforge/runs/hook_calls.py": "times of hooks, when they are traced",
    "metaforge/system/lock.py": "since when a run is written",
    "metaforge/runs/folder.py": "when and how long a run was",
    "metaforge/system/signals.py": "how soon a second Ctrl-C follows",
}
ENVIRONMENT = {
    "metaforge/engine/launcher.py": "what torchrun is to know",
    "metaforge/engine/processes.py": "what torchrun has set",
    "metaforge/cli/output.py": "METAFORGE_DEBUG",
    "metaforge/data/root.py": "METAFORGE_DATA",
    "metaforge/data/cache.py": "METAFORGE_CACHE",
    "metaforge/runs/hook_calls.py": "METAFORGE_TRACE_HOOKS",
    "metaforge/registry/scan.py": "METAFORGE_PLUGINS",
}
NETWORK = {"metaforge/data/downloads.py": "downloads, when the user asks for one"}
PROCESSES = {
    "metaforge/runs/folder.py": "git, for the commit of a run",
    "metaforge/testing/checks/general.py": "a fresh interpreter, to see what an import does",
}


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_nothing_that_runs_code_from_data(path: Path) -> None:
    source = path.read_text("utf-8")
    assert not hits(source, by_name=name_of(path) in CODE)
    assert name_of(path) not in CODE or hits(source), "it need not bring in code: take it off the list"


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_no_generator_of_the_whole_process_is_drawn_from_or_seeded(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    allowed: set[ast.AST] = set()
    if function := SEEDED.get(name_of(path)):
        (seeded,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
        allowed = set(ast.walk(seeded))
    imported = {
        alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "random" and "random" not in imported and not isinstance(node, ast.ImportFrom):
                continue  # a variable of that name
            banned = any(name == one or (one.endswith(".") and name.startswith(one)) for one in GLOBAL_RANDOMNESS)
            assert not banned or node in allowed, f"{name_of(path)}:{node.lineno} uses {name}"


def touched(path: Path) -> dict[str, set[str]]:
    """Return what a file touches outside the program, by kind of room."""
    found: dict[str, set[str]] = {
        "files": set(),
        "clock": set(),
        "environment": set(),
        "network": set(),
        "processes": set(),
    }
    reading = {"read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "rename", "touch", "open"}
    for node in nodes(path):
        if isinstance(node, ast.Call):
            function = node.func
            called = ast.unparse(function)
            owned = isinstance(function, ast.Attribute) and function.attr in reading
            # `Image.open` of bytes and an opener of a URL open no file.
            if called == "open" or (owned and called not in ("Image.open", "opener.open")):
                found["files"].add(called)
        for module in modules_imported(node):
            top = module.split(".")[0]
            if top in ("tempfile", "shutil"):
                found["files"].add(module)
            if top == "time":
                found["clock"].add(module)
            if top in ("socket", "http", "urllib") and not module.startswith("urllib.parse"):
                found["network"].add(module)
            if top in ("subprocess", "multiprocessing"):
                found["processes"].add(module)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("datetime.datetime", "datetime.date.today"):
            found["clock"].add(ast.unparse(node))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv"):
            found["environment"].add(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    ("what", "rooms"),
    [
        ("files", FILES),
        ("clock", CLOCK),
        ("environment", ENVIRONMENT),
        ("network", NETWORK),
        ("processes", PROCESSES),
    ],
)
def test_what_lies_outside_the_program_is_touched_in_few_rooms(what: str, rooms: dict[str, str]) -> None:
    found = {name_of(path): touched(path)[what] for path in [*CORE, *PLUGINS]}
    strangers = {name: sorted(things) for name, things in found.items() if things and name not in rooms}
    assert not strangers, f"{strangers}: do it in one of {sorted(rooms)}, or say here why not"
    idle = sorted(name for name in rooms if not found.get(name))
    assert not idle, f"{idle} may touch {what} and do not: take them off the list"


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_torch_distributed_has_one_room(path: Path) -> None:
    if name_of(path) in ("metaforge/engine/processes.py", "metaforge/engine/launcher.py"):
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
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 300
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            assert lines <= 50, f"{node.name} has {lines} lines"


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function's docstring has: one that describes every argument is no reason to cut it."""
    first = node.body[0]
    if ast.get_docstring(node) is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1
