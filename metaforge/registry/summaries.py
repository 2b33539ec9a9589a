"""Reading the first line of a plugin's docstring from its source, without importing it."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder

# The most characters that are read of a file, and that are returned of a line.
_MAX_FILE, _MAX_LINE = 1_000_000, 200
_BEFORE_DOCSTRING = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT)
_BRACKETS = {"(": 1, "[": 1, ")": -1, "]": -1}


class Summaries:
    """Finds the summaries of classes given as `module:Class`; caches where each package is."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def of(self, target: str) -> str:
        """Return the first line of the docstring of the class, else of its module, else an empty string."""
        module, _, name = target.partition(":")
        try:
            spec = self._spec(module.strip())
            if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
                return ""
            with tokenize.open(spec.origin) as file:
                return first_line(file.read(_MAX_FILE), name.partition("[")[0].strip())
        except Exception:
            # The summary is optional, and the source may be invalid in any way: the plugin is listed without one.
            return ""

    def _spec(self, module: str) -> ModuleSpec | None:
        """Return the spec of a module; unlike `importlib.util.find_spec`, this imports no parent package."""
        if module not in self._specs:
            parent, dot, _ = module.rpartition(".")
            package = self._spec(parent) if dot else None
            found = None
            if not dot:
                found = PathFinder.find_spec(module)
            elif package is not None and package.submodule_search_locations is not None:
                found = PathFinder.find_spec(module, list(package.submodule_search_locations))
            self._specs[module] = found or _editable_spec(module)
        return self._specs[module]


def _editable_spec(module: str) -> ModuleSpec | None:
    """Return the spec of a module of a distribution that is installed in editable form and is not on `sys.path`.

    setuptools, and hatchling on request, install a finder that knows the folders of such a distribution. Those of other
    tools are not asked, since some of them build the package first.
    """
    for finder in sys.meta_path:
        if str(getattr(finder, "__module__", "")).startswith(("__editable__", "editables.")):
            found = finder.find_spec(module, None)
            if found is not None:
                return found
    return None


def first_line(source: str, name: str) -> str:
    """Return the first line of the docstring of the class `name` in a module's source, else of the module.

    The source is tokenised only as far as the docstring, because parsing every plugin into a syntax tree would make
    listing slow.
    """
    header = re.search(rf"^class\s+{re.escape(name)}\s*[(:\[]", source, re.MULTILINE) if name else None
    of_class = _docstring(_body(source[header.start() :])) if header else ""
    return of_class or _docstring(_tokens(source))


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(source).readline)


def _body(source: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens after the colon that ends the header of a class."""
    depth, in_body = 0, False
    for token in _tokens(source):
        if in_body:
            yield token
        depth += _BRACKETS.get(token.string, 0)
        in_body = in_body or (token.string == ":" and depth == 0)


def _docstring(tokens: Iterator[tokenize.TokenInfo]) -> str:
    """Return the first line of the docstring that the tokens begin with, or an empty string if there is none."""
    first = next((token for token in tokens if token.type not in _BEFORE_DOCSTRING), None)
    if first is None or first.type != tokenize.STRING:
        return ""
    text = ast.literal_eval(first.string)
    lines = text.strip().splitlines() if isinstance(text, str) else []
    return lines[0].strip()[:_MAX_LINE] if lines else ""
