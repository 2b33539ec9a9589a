"""`docs/hooks.md` lists every hook with its arguments and every built-in hook plugin with its options, and no others.

`test_blocks.py` runs its code blocks.
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
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/hooks.md has no section {heading!r}"
    return match[1]


def signature(cls: type, name: str) -> str:
    _, *parameters = inspect.signature(getattr(cls, name)).parameters
    return f"{name}({', '.join(parameters)})"


def test_every_hook_is_listed_with_its_arguments() -> None:
    listed = re.findall(r"^### `([^`]+)`\n\n\w", section("The eight hooks"), re.MULTILINE)
    assert sorted(listed) == sorted(signature(Specs, name) for name in hooks.names())
    assert set(re.findall(r"\bmetaforge_\w+", PAGE)) == set(hooks.names())


def test_every_field_of_run_info_is_listed() -> None:
    fields = inspect.get_annotations(RunInfo)
    assert set(re.findall(r"`run\.(\w+)`", PAGE)) == set(fields)


def test_the_methods_of_a_stateful_hook_are_listed() -> None:
    text = section("What a hook remembers over a resume")
    methods = [name for name in vars(Stateful) if inspect.isfunction(vars(Stateful)[name]) and name[0] != "_"]
    assert set(re.findall(r"^- `([^`]+)`", text, re.MULTILINE)) == {signature(Stateful, name) for name in methods}


def test_the_environment_variable_for_tracing_is_named() -> None:
    source = (ROOT / "metaforge" / "runs" / "hook_calls.py").read_text("utf-8")
    (variable,) = set(re.findall(r'environ\.get\("(\w+)"\)', source))
    assert variable in section("Seeing the calls")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_hook_is_listed_with_its_options(name: str) -> None:
    entry = re.search(rf"^- \[`{name}`\].*?(?=^- |^```|\Z)", section("The built-in hooks"), re.MULTILINE | re.DOTALL)
    assert entry, f"docs/hooks.md does not list {name}"
    options = set(re.findall(r"`(\w+)`:", entry[0]))
    assert options == set(scan().load("hook", name).Config.model_fields)


def test_no_other_hook_is_listed_as_built_in() -> None:
    listed = re.findall(r"^- \[`([\w-]+)`\]", section("The built-in hooks"), re.MULTILINE)
    assert sorted(listed) == sorted(BUILT_IN)
    assert len(BUILT_IN) >= 5


def test_the_example_is_a_hook_that_is_used_in_a_run() -> None:
    (example,) = blocks(PATH, "python")
    assert "@hookimpl" in example.text
    assert 'metaforge.train("protonet", dataset="glyphs", steps=' in example.text
