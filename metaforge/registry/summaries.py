"""The first line of a plugin's docstring, read from its source with nothing imported."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder

# No more of a file is read than this many characters, and no more of a line is shown than that many.
_FILE, _LINE = 1_000_000, 200
_BLANK = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT)
_BRACKETS = {"(": 1, "[": 1, ")": -1, "]": -1}


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
            with tokenize.open(spec.origin) as file:
                return first_line(file.read(_FILE), name.partition("[")[0].strip())
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
    """Return the first line of the docstring of the class `name` in a module's source, or of the module.

    Only the few tokens before a docstring are looked at: a syntax tree of every plugin would take listing too long.
    """
    header = re.search(rf"^class\s+{re.escape(name)}\s*[(:\[]", source, re.MULTILINE) if name else None
    found = _docstring(_body(source[header.start() :])) if header else ""
    return found or _docstring(_tokens(source))


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(source).readline)


def _body(source: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens after the colon that ends a class's header."""
    depth, begun = 0, False
    for token in _tokens(source):
        if begun:
            yield token
        depth += _BRACKETS.get(token.string, 0)
        begun = begun or (token.string == ":" and depth == 0)


def _docstring(tokens: Iterator[tokenize.TokenInfo]) -> str:
    """Return the first line of a body's docstring, or an empty string if it has none."""
    first = next((token for token in tokens if token.type not in _BLANK), None)
    if first is None or first.type != tokenize.STRING:
        return ""
    text = ast.literal_eval(first.string)
    lines = text.strip().splitlines() if isinstance(text, str) else []
    return lines[0].strip()[:_LINE] if lines else ""
