"""Search a module's syntax tree for calls and imports that could run code from data, under any alias."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping

# Modules from which nothing may be used, with their submodules.
MODULES = (
    *(
        "pickle",
        "_pickle",
        "cPickle",
        "pickletools",
        "cloudpickle",
        "dill",
        "marshal",
        "shelve",
        "joblib",
        "jsonpickle",
    ),
    *("copyreg", "yaml", "ruamel", "runpy", "code", "codeop", "imp", "zipimport", "pty", "cffi", "sqlite3"),
    *("torch.hub", "torch.package", "torch.serialization", "torch.utils.cpp_extension", "torch.utils.model_zoo"),
    *("multiprocessing.connection", "multiprocessing.managers", "xmlrpc"),
)
# Full names of functions, and prefixes of such names.
NAMES = (
    *("builtins", "builtins.eval", "builtins.exec", "builtins.breakpoint"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.export.load", "torch.ops.load_library"),
    *("torch.classes.load_library", "numpy.lib.format.read_array", "numpy.fromregex"),
    *("os.system", "os.popen", "os.startfile"),
    *("importlib.util.spec_from_file_location", "importlib.util.module_from_spec"),
    *("importlib.machinery.SourceFileLoader", "importlib.machinery.SourcelessFileLoader"),
    *("importlib.machinery.ExtensionFileLoader", "importlib.reload"),
)
_FAMILIES = ("os.exec", "os.spawn", "os.posix_spawn")
# Attributes of any object: the syntax tree does not know the type of the object.
ATTRIBUTES = {
    *("extractall", "extract", "unpack_archive", "getoutput", "getstatusoutput", "exec_module", "load_module"),
    *("unsafe_load", "full_load", "read_pickle", "to_pickle", "load_state_dict_from_url", "load_library"),
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
    *("send_object_list", "recv_object_list", "allow_pickle"),
}
# Functions that import code by its name: allowed only where the name cannot come from data.
BY_NAME = ("importlib.import_module", "importlib.__import__", "builtins.__import__", "builtins.compile", "ctypes")
_BUILTINS = {"__builtins__": "builtins"} | {name: f"builtins.{name}" for name in dir(builtins)}
# Functions that write text, and have the same name as a method of a pickler.
_TEXT = ("json.dump", "json.dumps", "tomli_w.dump", "tomli_w.dumps", "ast.dump")


def hits(source: str, *, by_name: bool = False) -> list[str]:
    """Return each hit as `line N uses NAME`; with `by_name` the module may import code by its name."""
    tree = ast.parse(source)
    known = _known(tree)
    allowed_loads = _allowed_loads(tree, known)
    uses = []
    for node in ast.walk(tree):
        for name in _used(node, known):
            if node not in allowed_loads and _banned(name, by_name=by_name):
                uses.append(f"line {getattr(node, 'lineno', 0)} uses {name}")
        if isinstance(node, ast.Call):
            uses += [f"line {node.lineno} {fault}" for fault in _called(node, known)]
    return list(dict.fromkeys(uses))


def _known(tree: ast.AST) -> dict[str, str]:
    """Return the full name behind each name that an import binds, and behind each alias of such a name."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # Without `as`, an import binds only the top-level package.
            bound = [alias.asname or alias.name.split(".")[0] for alias in node.names]
            known |= {name: alias.name if alias.asname else name for name, alias in zip(bound, node.names, strict=True)}
        elif isinstance(node, ast.ImportFrom):
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Attribute)):
            meant = _full_name(node.value, known)
            known |= {target.id: meant for target in node.targets if isinstance(target, ast.Name) and meant}
    return known


def _full_name(node: ast.AST, known: Mapping[str, str]) -> str | None:
    """Return the full name of a name or an attribute, or None if it belongs to an unknown value."""
    if isinstance(node, ast.Name):
        return known.get(node.id) or _BUILTINS.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _full_name(node.value, known)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def _used(node: ast.AST, known: Mapping[str, str]) -> list[str]:
    """Return the full names that a node uses; `?.attribute` for an attribute of an unknown value."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Name):
        return [_full_name(node, known) or ""] if isinstance(node.ctx, ast.Load) else []
    if isinstance(node, ast.Attribute):
        return [_full_name(node, known) or f"?.{node.attr}"]
    if isinstance(node, ast.Call) and _full_name(node.func, known) == "builtins.getattr" and len(node.args) > 1:
        owner, name = node.args[:2]
        if isinstance(name, ast.Constant):
            return [f"{_full_name(owner, known) or '?'}.{name.value}"]
    return []


def _banned(name: str, *, by_name: bool) -> bool:
    last = name.rpartition(".")[2]
    below = any(name == module or name.startswith(f"{module}.") for module in MODULES)
    named = name in (*NAMES, "numpy.load") or name.startswith(_FAMILIES) or last == "*"
    brought = not by_name and any(name == entry or name.startswith(f"{entry}.") for entry in BY_NAME)
    pickled = last in ("dump", "dumps") and name not in _TEXT and "." in name
    return below or named or brought or pickled or ("." in name and last in ATTRIBUTES)


def _allowed_loads(tree: ast.AST, known: Mapping[str, str]) -> set[ast.AST]:
    """Return the function nodes of calls of `numpy.load` with the literal `allow_pickle=False`."""
    return {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _full_name(node.func, known) == "numpy.load"
        if any(keyword.arg == "allow_pickle" and ast.unparse(keyword.value) == "False" for keyword in node.keywords)
    }


def _called(node: ast.Call, known: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with the arguments of a call: a shell, pickle, or arguments that the source does not show."""
    called = _full_name(node.func, known) or ""
    for keyword in node.keywords:
        if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
            yield "runs a shell"
        if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
            yield "allows pickle"
        if keyword.arg is None and called.split(".")[0] in ("subprocess", "os"):
            yield f"calls {called} with arguments that the source does not show"
