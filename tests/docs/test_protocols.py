"""`docs/protocols.md` lists every method of the protocols, with its exact parameters, and no other."""

from __future__ import annotations

import importlib.util
import inspect
import re
from typing import Any

import pytest

from blocks import ROOT, blocks
from metaforge.authoring import protocols
from metaforge.registry.contract import contract_errors

PATH = ROOT / "docs" / "protocols.md"
PAGE = PATH.read_text("utf-8")
KINDS = (
    protocols.Learner,
    protocols.Adapter,
    protocols.Regularizer,
    protocols.Backbone,
    protocols.Dataset,
    protocols.Optimizer,
    protocols.Schedule,
    protocols.Hook,
)
PUBLIC = [getattr(protocols, name) for name in protocols.__all__]
CLASSES = [value for value in PUBLIC if isinstance(value, type) and value.__module__.startswith(protocols.__name__)]
TUPLES = [cls for cls in CLASSES if issubclass(cls, tuple)]


def section(heading: str) -> str:
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/protocols.md has no section {heading!r}"
    return match[1]


def members(protocol: type[Any]) -> dict[str, Any]:
    """Return what a protocol and its base protocols define, the nearest definition of each name."""
    defined: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if base.__module__.startswith(protocols.__name__):
            defined |= dict.fromkeys(inspect.get_annotations(base)) | vars(base)
    return {name: member.__func__ if isinstance(member, classmethod) else member for name, member in defined.items()}


def signature(name: str, method: Any) -> str:
    """Return a method's name and parameters as the page writes them: with defaults, without `self` and types."""
    _, *parameters = inspect.signature(method).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return f"{name}{inspect.Signature(bare)}"


@pytest.mark.parametrize("protocol", KINDS, ids=lambda protocol: protocol.__name__)
def test_every_method_is_listed_with_its_parameters(protocol: type[Any]) -> None:
    methods = {
        name: member
        for name, member in members(protocol).items()
        if inspect.isfunction(member) and (name == "__init__" or name[0] != "_")
    }
    expected = {signature(name, method) for name, method in methods.items()}
    assert expected, f"{protocol.__name__} has no methods: this test looks at the wrong class"
    listed = set(re.findall(r"^- \*\*`([^`]+\))`\*\*: ", section(protocol.__name__), re.MULTILINE))
    assert listed == expected


@pytest.mark.parametrize("protocol", KINDS, ids=lambda protocol: protocol.__name__)
def test_every_attribute_is_listed(protocol: type[Any]) -> None:
    common = set(inspect.get_annotations(protocols.Component))
    names = {n for n, member in members(protocol).items() if n[0] != "_" and not inspect.isfunction(member)}
    for name in names - common:
        assert f"**`{name}`**" in section(protocol.__name__), f"{protocol.__name__}.{name}"
    for name in common:
        assert f"**`{name}`**" in section("Component"), name


@pytest.mark.parametrize("cls", TUPLES, ids=lambda cls: cls.__name__)
def test_every_named_tuple_is_listed_with_its_fields(cls: Any) -> None:
    assert f"- **`{cls.__name__}({', '.join(cls._fields)})`**: " in section("What crosses a transform")


def test_the_tags_are_listed() -> None:
    text = section("Learner").partition("`Tags` are static facts")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert re.findall(r"^- \*\*`(\w+)`\*\*: ", text, re.MULTILINE) == [*inspect.signature(protocols.Tags).parameters]


def test_every_protocol_has_a_section() -> None:
    found = {cls for cls in CLASSES if getattr(cls, "_is_protocol", False)}
    assert found == {
        *KINDS,
        protocols.Preset,
        protocols.Component,
        protocols.GradientTransform,
        protocols.ContextBackbone,
        protocols.PretrainedBackbone,
    }
    assert "`ContextBackbone`" in section("Backbone")
    assert "`PretrainedBackbone`" in section("Backbone")
    assert "**`settings`**" in section("Preset")
    assert len(TUPLES) == 7


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[type[Any]]:
    """Return the classes that the page defines."""
    path = tmp_path_factory.mktemp("page") / "protocols_page.py"
    path.write_text("\n".join(block.text for block in blocks(PATH, "python")), "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == path.stem]


@pytest.mark.parametrize("protocol", KINDS, ids=lambda protocol: protocol.__name__)
def test_every_kind_has_an_example_that_fits_its_protocol(protocol: type[Any], examples: list[type[Any]]) -> None:
    (example,) = [cls for cls in examples if protocol in cls.__mro__]
    assert f"class {example.__name__}({protocol.__name__}):" in section(protocol.__name__)
    assert contract_errors(protocol.__name__.lower(), example) == []
