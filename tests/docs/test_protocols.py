"""`docs/protocols.md` has every method of the protocols, with its exact parameters, and no other."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from blocks import ROOT
from metaforge.authoring import protocols
from metaforge.registry import contract

PAGE = (ROOT / "docs" / "protocols.md").read_text("utf-8")
KINDS = (
    protocols.Learner,
    protocols.Adapter,
    protocols.Regularizer,
    protocols.Backbone,
    protocols.Dataset,
    contract.Hook,
)
TUPLES = [
    found
    for found in vars(protocols).values()
    if isinstance(found, type) and issubclass(found, tuple) and found.__module__ == protocols.__name__
]


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/protocols.md has no section {heading!r}"
    return found[1]


def members(protocol: type[Any]) -> dict[str, Any]:
    """Return what a protocol and its bases in the same file define, the nearest definition of each."""
    found: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if base.__module__ in (protocols.__name__, contract.__name__):
            found |= dict.fromkeys(inspect.get_annotations(base)) | vars(base)
    return found


def signature(name: str, method: Any) -> str:
    """Return a method's name and parameters as the page writes them: defaults, but neither self nor types."""
    _, *parameters = inspect.signature(method).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return f"{name}{inspect.Signature(bare)}"


@pytest.mark.parametrize("protocol", KINDS, ids=lambda protocol: protocol.__name__)
def test_every_method_is_there_with_its_parameters(protocol: type[Any]) -> None:
    defined = members(protocol)
    methods = {n: m for n, m in defined.items() if inspect.isfunction(m) and (n == "__init__" or n[0] != "_")}
    wanted = {signature(name, method) for name, method in methods.items()}
    assert wanted, f"{protocol.__name__} has no methods: this test looks at the wrong class"
    told = set(re.findall(r"^- \*\*`([^`]+\))`\*\*: ", section(protocol.__name__), re.MULTILINE))
    assert told == wanted


@pytest.mark.parametrize("protocol", KINDS, ids=lambda protocol: protocol.__name__)
def test_every_attribute_is_there(protocol: type[Any]) -> None:
    common = set(inspect.get_annotations(protocols.Component))
    names = {n for n, m in members(protocol).items() if n[0] != "_" and not inspect.isfunction(m)}
    for name in names - common:
        assert f"**`{name}`**" in section(protocol.__name__), f"{protocol.__name__}.{name}"
    for name in common:
        assert f"**`{name}`**" in section("Component"), name


@pytest.mark.parametrize("cls", TUPLES, ids=lambda cls: cls.__name__)
def test_every_named_tuple_is_there_with_its_fields(cls: Any) -> None:
    assert f"- **`{cls.__name__}({', '.join(cls._fields)})`**: " in section("What crosses a transform")


def test_tags_are_there_with_their_fields() -> None:
    fields = ", ".join(inspect.signature(protocols.Tags).parameters)
    assert f"`Tags({fields})`" in section("Learner")


def test_every_protocol_has_its_section() -> None:
    found = {cls for cls in vars(protocols).values() if getattr(cls, "_is_protocol", False)}
    known = {*KINDS, protocols.Component, protocols.GradientTransform, contract.Hook}
    assert {cls for cls in found if cls.__module__ == protocols.__name__} <= known
