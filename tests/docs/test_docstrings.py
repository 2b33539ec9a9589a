"""Every public name is documented: a first sentence, its arguments, its result and an example that runs."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
from typing import Any

import pytest
from pydantic import BaseModel

import metaforge
from blocks import ROOT
from metaforge import authoring

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PACKAGES = (metaforge, authoring)
NAMES = sorted({name for package in PACKAGES for name in package.__all__} - {"__version__"})
OBJECTS = {name: getattr(next(p for p in PACKAGES if name in p.__all__), name) for name in NAMES}


def is_ours(value: Any) -> bool:
    """Return whether a value is a class or function of MetaForge, and not a type alias or a constant."""
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("metaforge.")


DOCUMENTED = {name: value for name, value in OBJECTS.items() if is_ours(value)}
# Type aliases and constants, which have no `__doc__`.
ASSIGNED = sorted(OBJECTS.keys() - DOCUMENTED.keys())
MODULES = sorted({value.__module__ for value in DOCUMENTED.values()} | {"metaforge.authoring.protocols"})


def doctests() -> dict[str, doctest.DocTest]:
    """Return the doctests of all modules with public names, each in an empty namespace as if pasted into Python."""
    finder = doctest.DocTestFinder()
    found = [test for module in MODULES for test in finder.find(importlib.import_module(module), globs={})]
    for test in found:
        test.globs = {"__name__": "__main__"}
    return {test.name: test for test in found if test.examples}


DOCTESTS = doctests()


def section(doc: str, heading: str) -> str:
    """Return the indented text below a heading such as `Args:`, or an empty string."""
    match = re.search(rf"^{heading}:\n((?:(?: {{4}}.*)?\n)+)", f"{doc}\n", re.MULTILINE)
    return inspect.cleandoc(match[1]) if match else ""


def described(doc: str) -> set[str]:
    """Return the names that the docstring describes under `Args:` or `Attributes:`."""
    text = f"{section(doc, 'Args')}\n{section(doc, 'Attributes')}"
    return set(re.findall(r"^\*{0,2}(\w+): \S", text, re.MULTILINE))


def parameters(value: Any) -> set[str]:
    """Return the parameters of a function, or the fields or `__init__` parameters of a class."""
    if inspect.isfunction(value):
        return set(inspect.signature(value).parameters)
    if dataclasses.is_dataclass(value):
        return {field.name for field in dataclasses.fields(value)}
    if hasattr(value, "_fields"):
        return set(value._fields)
    if issubclass(value, BaseModel):
        return set()  # Each option has a description of its own.
    init = next((vars(cls)["__init__"] for cls in value.__mro__ if "__init__" in vars(cls)), None)
    if inspect.isfunction(init) and init.__module__.startswith("metaforge."):
        return set(inspect.signature(init).parameters) - {"self"}
    return set()


def docstring(name: str) -> str:
    doc = vars(DOCUMENTED[name]).get("__doc__") if inspect.isclass(DOCUMENTED[name]) else DOCUMENTED[name].__doc__
    assert doc, f"{name} has no docstring"
    return inspect.cleandoc(doc)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_name_has_a_first_sentence(name: str) -> None:
    first, _, _ = docstring(name).partition("\n\n")
    assert first.endswith("."), f"the first paragraph of {name} is no sentence"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_name_describes_its_parameters(name: str) -> None:
    missing = parameters(DOCUMENTED[name]) - described(docstring(name))
    assert not missing, f"{name} does not describe {sorted(missing)} under Args or Attributes"


@pytest.mark.parametrize("name", [name for name, value in DOCUMENTED.items() if inspect.isfunction(value)])
def test_a_public_function_describes_its_result(name: str) -> None:
    if inspect.signature(DOCUMENTED[name]).return_annotation not in ("None", "Iterator[None]"):
        assert section(docstring(name), "Returns") or section(docstring(name), "Yields"), name


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_name_has_an_example(name: str) -> None:
    assert f"{DOCUMENTED[name].__module__}.{name}" in DOCTESTS, f"{name} has no `>>>` in its docstring"


@pytest.mark.parametrize("name", ASSIGNED)
def test_an_alias_or_constant_is_described_below_its_assignment(name: str) -> None:
    texts = []
    for path in (ROOT / "metaforge" / "authoring").rglob("*.py"):
        statements = ast.parse(path.read_text("utf-8")).body
        for statement, following in zip(statements, [*statements[1:], None], strict=True):
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
            if name in map(ast.unparse, targets):
                text = following.value if isinstance(following, ast.Expr) else None
                texts.append(isinstance(text, ast.Constant) and isinstance(text.value, str))
    assert texts == [True], f"{name} must be assigned once, with a string below that describes it"


@pytest.mark.parametrize("test", DOCTESTS.values(), ids=DOCTESTS.keys())
def test_a_doctest_passes(test: doctest.DocTest) -> None:
    output: list[str] = []
    results = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=output.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(output)
