"""`docs/hooks.md` has every hook with its exact arguments, every built-in hook with its options, and no others.

Its code blocks are run by `test_blocks.py`, as those of every page.
"""

from __future__ import annotations

import inspect
import re

import pytest

from blocks import ROOT, blocks
from metaforge.authoring import hooks
from metaforge.authoring.hooks import RunInfo, Specs, Stateful
from metaforge.registry.scan import scan

PATH = ROOT / "docs" / "hooks.md"
PAGE = PATH.read_text("utf-8")
BUILT_IN = [entry.name for entry in scan().entries("hook") if entry.distribution == "metaforge"]


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/hooks.md has no section {heading!r}"
    return found[1]


def signature(cls: type, name: str) -> str:
    _, *parameters = inspect.signature(getattr(cls, name)).parameters
    return f"{name}({', '.join(parameters)})"


def test_every_hook_is_there_with_its_arguments_and_no_other() -> None:
    told = re.findall(r"^### `([^`]+)`\n\n\w", section("The eight hooks"), re.MULTILINE)
    assert sorted(told) == sorted(signature(Specs, name) for name in hooks.names())
    assert set(re.findall(r"\bmetaforge_\w+", PAGE)) == set(hooks.names())


def test_what_a_run_tells_a_hook_is_there() -> None:
    fields = inspect.get_annotations(RunInfo)
    assert set(re.findall(r"`run\.(\w+)`", PAGE)) == set(fields)


def test_what_a_hook_may_remember_is_there() -> None:
    text = section("State across a resume")
    methods = [name for name in vars(Stateful) if inspect.isfunction(vars(Stateful)[name]) and name[0] != "_"]
    assert set(re.findall(r"^- `([^`]+)`", text, re.MULTILINE)) == {signature(Stateful, name) for name in methods}


def test_the_way_to_trace_is_there() -> None:
    source = (ROOT / "metaforge" / "runs" / "hook_calls.py").read_text("utf-8")
    (variable,) = set(re.findall(r'environ\.get\("(\w+)"\)', source))
    assert variable in section("Tracing the calls")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_is_there_with_its_options(name: str) -> None:
    found = re.search(rf"^- \[`{name}`\].*?(?=^- |^```|\Z)", section("The built-in hooks"), re.MULTILINE | re.DOTALL)
    assert found, f"docs/hooks.md does not speak of {name}"
    options = set(re.findall(r"`(\w+)`:", found[0]))
    assert options == set(scan().load("hook", name).Config.model_fields)


def test_no_built_in_is_there_that_is_none() -> None:
    told = re.findall(r"^- \[`([\w-]+)`\]", section("The built-in hooks"), re.MULTILINE)
    assert sorted(told) == sorted(BUILT_IN)
    assert len(BUILT_IN) >= 5


def test_the_example_is_a_hook_and_runs_with_the_other_blocks() -> None:
    (example,) = blocks(PATH, "python")
    assert "@hookimpl" in example.text
    assert 'metaforge.train("protonet", dataset="glyphs", steps=' in example.text
