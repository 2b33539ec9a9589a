"""The first line of a plugin's docstring, read from its source with nothing imported."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


class Summaries:
    """Reads summaries of targets `module:Class`; remembers the packages that it has found."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def of(self, target: str) -> str:
        """Return the first line of the class's docstring, or of its module's, or an empty string."""
        module, _, name = target.partition(":")
        try:
            spec = self._spec(module.strip())
            if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
                return ""
            return first_line(Path(spec.origin).read_text(encoding="utf-8"), name.strip())
        except Exception:
            # A summary is a courtesy: a plugin whose source cannot be read is listed all the same.
            return ""

    def _spec(self, module: str) -> ModuleSpec | None:
        """Return where a module's source is; unlike `find_spec` of importlib.util, this imports no parent package."""
        if module not in self._specs:
            parent, dot, _ = module.rpartition(".")
            path: Sequence[str] | None = None
            if dot:
                package = self._spec(parent)
                if package is None or package.submodule_search_locations is None:
                    return None
                path = list(package.submodule_search_locations)
            self._specs[module] = PathFinder.find_spec(module, path)
        return self._specs[module]


def first_line(source: str, name: str) -> str:
    """Return the first line of the docstring of the class `name` in a module's source, or of the module."""
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    nodes: list[ast.ClassDef | ast.Module] = [*classes, tree]
    found = [ast.get_docstring(node) for node in nodes]
    return next((text.partition("\n")[0].strip() for text in found if text), "")
