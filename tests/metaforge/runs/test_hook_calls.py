"""Calls of hooks: order, validation, errors, tracing, and the states of plugins."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

import metaforge
from metaforge import hookimpl
from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.protocols import Component, Options
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.contract import contract_errors
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs.hook_calls import end_run, hook_manager, restore_states, states
from metaforge_plugins.datasets.sinusoid import Sinusoid


def run_info() -> RunInfo:
    return RunInfo(None, {}, "classification")


class Listener:
    def __init__(self, name: str, heard: list[str], answer: bool | None = None) -> None:
        self.name, self.heard, self.answer = name, heard, answer

    @hookimpl
    def metaforge_after_step(self, step: int) -> None:
        self.heard.append(f"{self.name}{step}")

    @hookimpl
    def metaforge_should_stop(self) -> bool | None:
        self.heard.append(f"{self.name}?")
        return self.answer

    @hookimpl
    def metaforge_run_facts(self) -> Mapping[str, str]:
        return {"name": self.name}


def test_plugins_are_called_in_the_order_of_the_list() -> None:
    heard: list[str] = []
    manager = hook_manager([Listener(name, heard) for name in "abc"])
    manager.hook.metaforge_after_step(run=run_info(), step=1, metrics={})
    assert heard == ["a1", "b1", "c1"]
    assert manager.hook.metaforge_run_facts(run=run_info()) == [{"name": "a"}, {"name": "b"}, {"name": "c"}]


def test_the_first_plugin_that_does_not_return_none_decides_whether_to_stop() -> None:
    heard: list[str] = []
    manager = hook_manager([Listener("a", heard), Listener("b", heard, answer=True), Listener("c", heard)])
    assert manager.hook.metaforge_should_stop(run=run_info(), step=1, metrics={}) is True
    assert heard == ["a?", "b?"]


def test_a_manager_does_not_see_the_plugins_of_another() -> None:
    first, second = hook_manager([Listener("a", [])]), hook_manager([])
    assert len(first.get_plugins()) == 1
    assert not second.get_plugins()


def step(manager: Any) -> Any:
    return manager.hook.metaforge_after_step(run=run_info(), step=1, metrics={})


def test_a_class_is_no_hook_plugin_but_its_objects_are() -> None:
    with pytest.raises(PluginError, match="Listener does not fit the hook specs: it is a class"):
        hook_manager([Listener])


def test_marked_static_and_class_methods_are_hooks_too() -> None:
    heard: list[str] = []

    class Odd:
        @staticmethod
        @hookimpl
        def metaforge_before_step(step: int) -> None:
            heard.append(f"static {step}")

        @classmethod
        @hookimpl
        def metaforge_after_step(cls, step: int) -> None:
            heard.append(f"{cls.__name__} {step}")

    manager = hook_manager([Odd()])
    manager.hook.metaforge_before_step(run=run_info(), step=1, batches=[])
    step(manager)
    assert heard == ["static 1", "Odd 1"]


class Broken:
    """Raises an error after a step and at the end of the run."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    @hookimpl
    def metaforge_after_step(self) -> None:
        raise self.error

    @hookimpl
    def metaforge_run_end(self) -> None:
        raise self.error


class Before:
    """A wrapper that raises before it yields."""

    @hookimpl(wrapper=True)
    def metaforge_after_step(self) -> Iterator[None]:
        raise ValueError("early")
        yield

    @hookimpl(wrapper=True)
    def metaforge_run_end(self) -> Iterator[None]:
        raise ValueError("early")
        yield


class After:
    """A wrapper that raises after it yields."""

    @hookimpl(wrapper=True)
    def metaforge_after_step(self) -> Iterator[None]:
        yield
        raise ValueError("late")

    metaforge_run_end = metaforge_after_step


class Never:
    """A wrapper that does not yield."""

    @hookimpl(wrapper=True)
    def metaforge_after_step(self) -> Iterator[None]:
        if self is None:
            yield

    metaforge_run_end = metaforge_after_step


class Twice:
    """A wrapper that yields twice."""

    @hookimpl(wrapper=True)
    def metaforge_after_step(self) -> Iterator[None]:
        yield
        yield

    metaforge_run_end = metaforge_after_step


class Ending:
    def __init__(self, ends: list[str]) -> None:
        self.ends = ends

    @hookimpl
    def metaforge_run_end(self, outcome: str) -> None:
        self.ends.append(outcome)


BREAKING = [Broken(ValueError("x")), Broken(SystemExit(3)), Before(), After(), Never(), Twice()]


@pytest.mark.parametrize("plugin", BREAKING, ids=lambda plugin: type(plugin).__name__)
def test_the_error_of_a_hook_names_the_plugin_and_the_hook(plugin: object) -> None:
    said = rf"The hook metaforge_after_step of {type(plugin).__name__} raised (ValueError|SystemExit|TypeError): "
    with pytest.raises(PluginError, match=said) as caught:
        step(hook_manager([Listener("a", []), plugin]))
    assert isinstance(caught.value.__cause__, (ValueError, SystemExit, TypeError))
    assert caught.value.where == f"{type(plugin).__module__}:{type(plugin).__name__}"


@pytest.mark.parametrize("plugin", BREAKING, ids=lambda plugin: type(plugin).__name__)
def test_the_end_hooks_of_all_other_plugins_are_called(plugin: object) -> None:
    ends: list[str] = []
    manager = hook_manager([Ending(ends), plugin, Ending(ends)])
    with pytest.raises(PluginError, match=f"metaforge_run_end of {type(plugin).__name__}"):
        end_run(manager, run_info(), "finished", None)
    assert ends == ["finished", "finished"]


def test_each_of_two_end_hooks_of_one_plugin_is_called_once() -> None:
    ends: list[str] = []

    class Both(Ending):
        @hookimpl(specname="metaforge_run_end")
        def also(self) -> None:
            self.ends.append("also")

    end_run(hook_manager([Both(ends)]), run_info(), "finished", None)
    assert sorted(ends) == ["also", "finished"]


def test_errors_of_metaforge_and_ctrl_c_are_not_wrapped() -> None:
    for error in (ConfigError("no such thing"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            step(hook_manager([Broken(error)]))
        assert caught.value is error


def test_a_wrapper_gets_the_results_and_the_errors_of_the_hooks_that_it_wraps() -> None:
    seen: list[Any] = []

    class Around:
        @hookimpl(wrapper=True)
        def metaforge_run_facts(self) -> Any:
            answers = yield
            seen.append(answers)
            return [*answers, {"wrapped": "yes"}]

        @hookimpl(wrapper=True)
        def metaforge_after_step(self) -> Any:
            try:
                return (yield)
            except PluginError as error:
                seen.append(error)
                raise

    manager = hook_manager([Around(), Listener("a", []), Broken(ValueError("inside"))])
    assert manager.hook.metaforge_run_facts(run=run_info()) == [{"name": "a"}, {"wrapped": "yes"}]
    with pytest.raises(PluginError, match="metaforge_after_step of Broken raised ValueError: inside") as caught:
        step(manager)
    assert seen == [[{"name": "a"}], caught.value]


def test_the_error_about_facts_that_are_no_mapping_names_the_plugin() -> None:
    class Talker:
        @hookimpl
        def metaforge_run_facts(self) -> Any:
            return "nothing"

    with pytest.raises(PluginError, match="metaforge_run_facts of Talker raised TypeError: it returned 'nothing'"):
        hook_manager([Talker()]).hook.metaforge_run_facts(run=run_info())


class Plain:
    """A component without hooks, with properties that the search for hooks must not evaluate."""

    @property
    def expensive(self) -> Any:
        raise AssertionError("evaluated")

    cached = functools.cached_property(lambda self: self.expensive)

    def predict(self) -> None: ...


def test_calls_are_traced_if_the_environment_variable_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Around(Plain):
        @hookimpl(wrapper=True)
        def metaforge_after_step(self) -> Any:
            return (yield)

    plugins = [Around(), Listener("a", [], answer=True), Listener("b", []), Ending([])]
    step(hook_manager(plugins))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("METAFORGE_TRACE_HOOKS", "1")
    manager = hook_manager(plugins)
    step(manager)
    manager.hook.metaforge_should_stop(run=run_info(), step=7, metrics={})
    manager.hook.metaforge_run_start(run=run_info())
    end_run(manager, run_info(), "finished", None)
    captured = capsys.readouterr()
    lines = re.sub(r"\d+\.\d\d ms", "T", captured.err).splitlines()
    assert lines == [
        "metaforge_after_step at step 1: Listener (2) T, Listener (3) T, Around (1) T",
        # The first result decides, so the other plugins are not called.
        "metaforge_should_stop at step 7: Listener (2) T",
        "metaforge_run_start: no plugin",
        "metaforge_run_end: Ending (4) T",
    ]
    assert captured.out == ""


class Counter(Component):
    """Counts steps, also over a resume."""

    class Config(Options): ...

    reference = ""
    defaults: Mapping[Any, Any] = {}

    def __init__(self, config: Any) -> None:
        self.count: Any = 0

    @hookimpl
    def metaforge_after_step(self) -> None:
        self.count += 1

    def state(self) -> Mapping[str, Any]:
        return {"count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


def test_the_states_of_plugins_are_restored_by_name() -> None:
    first, second = Counter(None), Counter(None)
    first.count = 5
    saved = states({"counter": first, "other": Listener("a", [])})
    assert saved == {"counter": {"count": 5}}
    restore_states({"new": Counter(None), "other": Listener("a", []), "counter": second}, saved)
    assert second.count == 5


def test_an_error_in_state_or_restore_names_its_plugin() -> None:
    class Broken(Counter):
        def state(self) -> Mapping[str, Any]:
            raise ValueError("no state")

    with pytest.raises(PluginError, match="The hook state of Broken raised ValueError: no state"):
        states({"counter": Broken(None)})
    with pytest.raises(PluginError, match="The hook restore of Counter raised KeyError"):
        restore_states({"counter": Counter(None)}, {"counter": {}})


def test_a_state_is_a_copy_that_later_steps_do_not_change() -> None:
    class Growing(Counter):
        def state(self) -> Mapping[str, Any]:
            return {"steps": self.steps}

    plugin = Growing(None)
    plugin.steps = [1]
    before = states({"growing": plugin})
    plugin.steps.append(2)
    assert before == {"growing": {"steps": [1]}}


def test_a_class_of_hooks_is_checked_when_it_is_loaded() -> None:
    assert contract_errors("hook", Counter) == []

    class Half(Counter):
        restore = None  # type: ignore[assignment]

    class Wrong(Counter):
        def restore(self) -> None: ...  # type: ignore[override]

    class Misspelt(Counter):
        @hookimpl
        def metaforge_after_stpe(self) -> None: ...

    assert contract_errors("hook", Half) == ["it has 'state' without 'restore'"]
    assert contract_errors("hook", Wrong) == ["restore(self) should begin (self, state)"]
    with pytest.raises(PluginError, match="no hook 'metaforge_after_stpe'"):
        Registry([]).with_plugin("hook", "x", Misspelt).load("hook", "x")


HEARD: list[str] = []


class Hearing(Sinusoid):
    """A data set that carries a hook."""

    @hookimpl
    def metaforge_run_start(self) -> None:
        HEARD.append("data set")


class Named(Component):
    """A hook plugin that a configuration names."""

    class Config(Options):
        word: str = Field(default="", description="What it says.")

    reference = ""
    defaults: Mapping[Any, Any] = {}

    def __init__(self, config: Any) -> None:
        self.word = config.word

    @hookimpl
    def metaforge_run_start(self) -> None:
        HEARD.append(self.word)


def test_a_run_calls_objects_then_components_then_plugins_as_they_are_configured(tmp_path: Path) -> None:
    HEARD.clear()
    registry = scan().with_plugin("dataset", "hearing", Hearing)
    for name in ("zeta", "alpha"):
        registry = registry.with_plugin("hook", name, type(name, (Named,), {}))
    given = Named(Named.Config(word="object"))
    settings = {"hooks": {"zeta": {"word": "zeta"}, "alpha": {"word": "alpha"}}}
    out = tmp_path / "run"
    metaforge.train("cnp", "hearing", steps=1, tasks=1, settings=settings, hooks=[given], registry=registry, out=out)
    assert HEARD == ["object", "data set", "zeta", "alpha"]
