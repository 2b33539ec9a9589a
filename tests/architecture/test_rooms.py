"""What each module may import and use: the rules of CONTRIBUTING.md that a program can check in the syntax tree."""

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

# Modules and folders that the command line imports before it knows what to do: importing them must not import torch.
LIGHT = ("__init__", "__main__", "cli", "registry", "config", "errors", "authoring/__init__", "authoring/hooks")
LIGHT += ("data/__init__", "data/root", "system/line_files", "system/files", "system/streams")
# The one module in a light folder that may import torch: it is imported when a plugin is loaded, not when it is listed.
HEAVY = ("metaforge/registry/contract.py",)
# What a plugin may import of the core, by these exact names: `metaforge.authoring.keys` is not public.
PUBLIC = ("metaforge", "metaforge.authoring", "metaforge.data", "metaforge.errors")
# Names of plugins that are also ordinary words or names in the code, names of torch's optimisers and layers or of file
# formats.
ORDINARY_WORDS = {
    "sgd",
    "adam",
    "constant",
    "linear",
    "step",
    "progress",
    "csv",
    "jsonl",
    "baseline",
    "lstm",
    "matching",
    "mlp",
    "identity",
    "np",
    "copy",
}


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
    lines = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in CORE
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not lines, "\n".join(lines)


def test_the_core_imports_no_plugin() -> None:
    for path in CORE:
        packages = {module.split(".")[0] for node in nodes(path) for module in modules_imported(node)}
        assert "metaforge_plugins" not in packages, name_of(path)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_do_not_import_torch_when_they_are_imported(name: str) -> None:
    places = {path: path.relative_to(ROOT / "metaforge").with_suffix("").as_posix() for path in CORE}
    paths = [path for path, place in places.items() if place == name or place.startswith(f"{name}/")]
    assert paths
    for path in paths:
        if name_of(path) in HEAVY:
            continue
        for node in module_level(ast.parse(path.read_text("utf-8"))):
            for module in modules_imported(node):
                assert module.split(".")[0] not in ("torch", "numpy"), f"{name_of(path)} imports {module}"
                heavy = ("metaforge.authoring.protocols", "metaforge.registry.contract")
                assert not module.startswith(heavy), f"{name_of(path)} imports {module}"


# The only modules that may import code by its name.
CODE = {
    "metaforge/__init__.py": "its own public names",
    "metaforge/authoring/__init__.py": "its own public names",
    "metaforge/data/__init__.py": "its own public names",
    "metaforge/runs/api.py": "a backbone that the caller names",
    "metaforge/registry/loading.py": "entry points",
    "metaforge/system/machine.py": "the memory allocator of the C library",
    "metaforge/testing/__init__.py": "its own public names",
}
# Functions that draw from a global random generator, or change its state.
GLOBAL_GENERATORS = ("torch.random.", "np.random.", "numpy.random.", "random.", "torch.default_generator")
GLOBAL_GENERATORS += ("torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.seed")
GLOBAL_GENERATORS += ("torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.normal")
GLOBAL_GENERATORS += ("torch.bernoulli", "torch.multinomial", "torch.set_rng_state", "torch.get_rng_state")
# The only functions that may use global generators. One, in which backbones draw initial weights, restores their
# states; the others read them, to find plugins and networks that draw from them, or name the functions that draw.
SEEDED = {
    "metaforge/authoring/network.py": "seeded",
    "metaforge/authoring/layers/noise.py": "_keyed_functions",
    "metaforge/authoring/pure_module.py": "_generator_state",
    "metaforge/runs/outer_optimizer.py": "_generator_states",
    "metaforge/testing/global_state.py": "generator_states",
}

# The only modules that may use files, the clock, the environment, the network and other processes.
FILES = {
    "metaforge/runs/checkpoint.py": "saved states",
    "metaforge/runs/checkpoint_files.py": "saved states",
    "metaforge/cli/data.py": "the folder of a preview",
    "metaforge/cli/new.py": "the project of a new plugin",
    "metaforge/cli/output.py": "the null device, when the reader of a pipe has exited",
    "metaforge/cli/schema.py": "the folder of a schema",
    "metaforge/data/archives.py": "archives",
    "metaforge/data/cache.py": "the cache",
    "metaforge/data/downloads.py": "downloads",
    "metaforge/data/images.py": "image files",
    "metaforge/registry/metadata.py": "the entry points of distributions",
    "metaforge/config/sources.py": "run files",
    "metaforge/system/line_files.py": "files that hooks write line by line",
    "metaforge/system/lock.py": "the lock of a run",
    "metaforge/system/streams.py": "the null device, in place of a closed stream",
    "metaforge/system/untrusted.py": "files of untrusted run folders",
    "metaforge/results/records.py": "the folders of pictures and records",
    "metaforge/runs/folder.py": "run folders",
    "metaforge/system/machine.py": "the processor's name",
    "metaforge/system/files.py": "atomic writes",
    "metaforge/registry/summaries.py": "the first line of a plugin's source",
    "metaforge/testing/checks/hooks.py": "the temporary folder of a toy run",
    "metaforge/testing/checks/learners.py": "the temporary folder of a checkpoint",
    "metaforge/runs/training.py": "the temporary folder of a dry run",
}
CLOCK = {
    "metaforge/cli/list_plugins.py": "the time that an import takes",
    "metaforge/runs/hook_calls.py": "the time that a traced hook takes",
    "metaforge/system/lock.py": "when a run was locked",
    "metaforge/runs/folder.py": "start and duration of a run",
    "metaforge/system/signals.py": "the time between two Ctrl-C",
}
ENVIRONMENT = {
    "metaforge/engine/launcher.py": "the settings of torchrun",
    "metaforge/engine/processes.py": "the variables that torchrun sets",
    "metaforge/cli/output.py": "METAFORGE_DEBUG",
    "metaforge/data/root.py": "METAFORGE_DATA",
    "metaforge/data/cache.py": "METAFORGE_CACHE",
    "metaforge/runs/hook_calls.py": "METAFORGE_TRACE_HOOKS",
    "metaforge/registry/scan.py": "METAFORGE_PLUGINS",
}
NETWORK = {"metaforge/data/downloads.py": "downloads that the user starts"}
PROCESSES = {
    "metaforge/runs/folder.py": "git, for the commit that a run records",
    "metaforge/testing/checks/general.py": "a fresh interpreter in which a plugin is imported",
}


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_nothing_that_runs_code_from_data(path: Path) -> None:
    source = path.read_text("utf-8")
    assert not hits(source, by_name=name_of(path) in CODE)
    assert name_of(path) not in CODE or hits(source), "it does not import code by name: remove it from CODE"


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_no_global_generator_is_used(path: Path) -> None:
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
                continue  # a local variable named `random`
            banned = any(
                name == entry or (entry.endswith(".") and name.startswith(entry)) for entry in GLOBAL_GENERATORS
            )
            assert not banned or node in allowed, f"{name_of(path)}:{node.lineno} uses {name}"


def outside_uses(path: Path) -> dict[str, set[str]]:
    """Return what a file uses outside the program, by kind."""
    found: dict[str, set[str]] = {
        "files": set(),
        "clock": set(),
        "environment": set(),
        "network": set(),
        "processes": set(),
    }
    file_methods = {
        "read_text",
        "read_bytes",
        "write_text",
        "write_bytes",
        "mkdir",
        "unlink",
        "rename",
        "touch",
        "open",
    }
    for node in nodes(path):
        if isinstance(node, ast.Call):
            function = node.func
            called = ast.unparse(function)
            owned = isinstance(function, ast.Attribute) and function.attr in file_methods
            # `Image.open` gets bytes, and an opener gets a URL: both open no file.
            if called == "open" or (owned and called not in ("Image.open", "opener.open")):
                found["files"].add(called)
        for module in modules_imported(node):
            package = module.split(".")[0]
            if package in ("tempfile", "shutil"):
                found["files"].add(module)
            if package == "time":
                found["clock"].add(module)
            if package in ("socket", "http", "urllib") and not module.startswith("urllib.parse"):
                found["network"].add(module)
            if package in ("subprocess", "multiprocessing"):
                found["processes"].add(module)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("datetime.datetime", "datetime.date.today"):
            found["clock"].add(ast.unparse(node))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv"):
            found["environment"].add(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("files", FILES),
        ("clock", CLOCK),
        ("environment", ENVIRONMENT),
        ("network", NETWORK),
        ("processes", PROCESSES),
    ],
)
def test_only_the_listed_modules_use_what_is_outside_the_program(kind: str, modules: dict[str, str]) -> None:
    found = {name_of(path): outside_uses(path)[kind] for path in [*CORE, *PLUGINS]}
    others = {name: sorted(uses) for name, uses in found.items() if uses and name not in modules}
    assert not others, f"{others}: do this in one of {sorted(modules)}, or add the module with a reason"
    unused = sorted(name for name in modules if not found.get(name))
    assert not unused, f"{unused} do not use {kind}: remove them from the list"


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=name_of)
def test_only_two_modules_use_torch_distributed(path: Path) -> None:
    if name_of(path) in ("metaforge/engine/processes.py", "metaforge/engine/launcher.py"):
        return
    for node in nodes(path):
        for module in modules_imported(node):
            assert not module.startswith("torch.distributed"), f"line {getattr(node, 'lineno', 0)}"


def test_plugins_import_only_the_public_packages() -> None:
    for path in PLUGINS:
        for node in nodes(path):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            private = [name for name in imported if name.split(".")[0] == "metaforge" and name not in PUBLIC]
            assert not private, f"{name_of(path)} imports {private[0]}: import the name from one of {PUBLIC}"


def test_the_core_has_at_most_eleven_folders_and_each_says_what_it_is() -> None:
    folders = sorted(path for path in (ROOT / "metaforge").iterdir() if path.is_dir() and path.name != "__pycache__")
    assert len(folders) <= 11, [folder.name for folder in folders]
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
        assert docstring.partition("\n")[0].endswith("."), f"{folder.name}/__init__.py: say in one line what it is"


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
        assert private or module in modules, f"{name_of(path)} is no plugin: add an entry point, or move it to the core"


def test_the_file_of_a_plugin_has_its_name() -> None:
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
