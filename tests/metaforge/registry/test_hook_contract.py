"""Hook methods are compared with the hook specs: misspelt, unmarked and uncallable ones are errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from metaforge import hookimpl
from metaforge.authoring.hooks import RunInfo
from metaforge.errors import PluginError
from metaforge.registry.hook_contract import hook_errors, hook_methods, hook_name, with_hooks
from metaforge.runs.hook_calls import hook_manager


def plugin_with(method: Callable[..., Any], **options: Any) -> Any:
    """Return an instance of a class with one method, marked as a hook."""
    return type("Wrong", (), {method.__name__: hookimpl(**options)(method)})()


class Valid:
    """A plugin with a valid hook."""

    @hookimpl
    def metaforge_after_step(self, step: int) -> None: ...


def metaforge_after_stpe(self: Any, step: int) -> None: ...


def metaforge_after_step(self: Any, step: int) -> None: ...


def epochs(self: Any, epoch: int) -> None: ...


def positional(self: Any, *arguments: Any) -> None: ...


def collecting(self: Any, **arguments: Any) -> None: ...


def by_keyword(self: Any, *, step: int) -> None: ...


def defaulted(self: Any, metrics: Any = None) -> None: ...


def yielding(self: Any) -> Iterator[None]:
    yield


async def later(self: Any) -> None: ...


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            metaforge_after_stpe,
            {},
            r"no hook 'metaforge_after_stpe' \(Did you mean 'metaforge_after_step'\?\)",
        ),
        (epochs, {}, "no hook 'epochs'"),
        (epochs, {"specname": "metaforge_after_step"}, "epochs needs 'epoch', which is none of run, step, metrics"),
        (positional, {"specname": "metaforge_after_step"}, "positional collects arguments"),
        (collecting, {"specname": "metaforge_after_step"}, "collecting collects arguments"),
        (by_keyword, {"specname": "metaforge_after_step"}, "takes 'step' by keyword only"),
        (defaulted, {"specname": "metaforge_after_step"}, "has a default for 'metrics'"),
        (yielding, {"specname": "metaforge_after_step"}, "yielding is a generator or a coroutine"),
        (later, {"specname": "metaforge_after_step"}, "later is a generator or a coroutine"),
        (yielding, {"specname": "metaforge_after_step", "hookwrapper": True}, "old-style wrapper"),
        (metaforge_after_step, {"wrapper": True}, "marked as a wrapper and does not yield"),
    ],
)
def test_a_method_that_cannot_be_called_as_the_hook_is_refused(method: Any, options: Any, message: str) -> None:
    plugin = plugin_with(method, **options)
    with pytest.raises(PluginError, match=f"The hook plugin Wrong does not fit the hook specs: .*{message}") as caught:
        hook_manager([Valid(), plugin])
    assert "metaforge_run_start" in caught.value.remedy
    assert hook_errors(type(plugin)) == hook_errors(plugin) != []


def test_a_method_with_some_of_the_arguments_is_accepted() -> None:
    assert hook_errors(Valid()) == []
    assert hook_errors(plugin_with(yielding, specname="metaforge_after_step", wrapper=True)) == []


def test_a_method_without_a_mark_is_refused() -> None:
    class Forgetful:
        def metaforge_after_step(self, step: int) -> None: ...

    with pytest.raises(PluginError, match="'metaforge_after_step' is not marked with @metaforge"):
        hook_manager([Forgetful()])


def test_an_optional_hook_of_another_version_is_accepted() -> None:
    hook_manager([plugin_with(metaforge_after_stpe, optionalhook=True)])


def test_the_methods_are_found_with_their_options() -> None:
    class Several:
        value = 3

        @hookimpl
        def metaforge_before_step(self, step: int) -> None: ...

        @staticmethod
        @hookimpl(specname="metaforge_after_step", trylast=True)
        def after(step: int) -> None: ...

        def metaforge_run_end(self) -> None: ...

        def other(self) -> None: ...

    found = dict(hook_methods(Several()))
    assert sorted(found) == ["after", "metaforge_before_step", "metaforge_run_end"]
    assert found["after"]["trylast"]
    assert found["metaforge_run_end"] == {}
    assert dict(hook_methods(Several)) == found
    assert {hook_name(name, options) for name, options in found.items()} == {
        "metaforge_after_step",
        "metaforge_before_step",
        "metaforge_run_end",
    }


class Plain:
    """A component without hooks, with a property that raises if it is evaluated."""

    @property
    def costly(self) -> Any:
        raise AssertionError("the property was evaluated")

    cached = functools.cached_property(lambda self: self.costly)

    def predict(self) -> None: ...


def test_components_with_hooks_are_found() -> None:
    class Watching(Plain):
        @hookimpl
        def metaforge_after_step(self, step: int) -> None: ...

    class Misspelt(Plain):
        def metaforge_after_stpe(self, step: int) -> None: ...

    watching, misspelt = Watching(), Misspelt()
    # The misspelt one is found too, so that it is refused instead of doing nothing.
    assert with_hooks([Plain(), watching, Plain(), misspelt]) == [watching, misspelt]
    manager = hook_manager(with_hooks([Plain(), watching]))
    manager.hook.metaforge_after_step(run=RunInfo(None, {}, "classification"), step=1, metrics={})
    with pytest.raises(PluginError, match="Did you mean 'metaforge_after_step'"):
        hook_manager(with_hooks([misspelt]))
