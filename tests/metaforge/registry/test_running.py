"""Errors of plugins while a run computes: which plugin is named, and which errors pass unchanged."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from metaforge.errors import ContractError, DataError, PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.running import UsedPlugin, running_errors


class Outer:
    """Stands for a learner, which calls another plugin."""

    def run(self, function: Callable[[], Any]) -> Any:
        return function()


class Inner:
    """Stands for an adapter."""

    def fail(self) -> None:
        raise ValueError("mine\nmore")


OUTER = UsedPlugin(Entry("learner", "outer", "here:Outer", "zoo", "1.0"), Outer)
INNER = UsedPlugin(Entry("adapter", "inner", "here:Inner", "zoo", "1.0"), Inner)


def fail_with(error: BaseException) -> None:
    raise error


def named(function: Callable[[], Any], *, always: bool = True, plugins: Any = (OUTER, INNER)) -> PluginError:
    with (
        pytest.raises(PluginError) as caught,
        running_errors(plugins, OUTER, "loss", "at outer step 3", always=always),
    ):
        function()
    return caught.value


def test_the_plugin_with_the_innermost_code_is_named() -> None:
    error = named(lambda: Outer().run(Inner().fail))
    assert error.what == (
        "The adapter 'inner' of zoo 1.0 raised ValueError in the loss of the learner 'outer' of zoo 1.0 at outer step"
        " 3: mine"
    )
    assert error.where == "here:Inner"


def test_the_plugin_that_is_called_is_named_without_other_code() -> None:
    error = named(lambda: fail_with(ValueError("mine")))
    assert error.what == "The learner 'outer' of zoo 1.0 raised ValueError in its loss at outer step 3: mine"


def test_a_function_of_a_plugins_module_belongs_to_it() -> None:
    module = ModuleType("elsewhere")
    exec("def fail(): raise ValueError('mine')", vars(module))
    helper = UsedPlugin(Entry("backbone", "net", "elsewhere:Net", "zoo"), type("Net", (), {"__module__": "elsewhere"}))
    assert "backbone 'net'" in named(module.fail, plugins=(OUTER, helper)).what
    # Two plugins in one module: neither is preferred.
    assert "learner 'outer'" in named(module.fail, plugins=(OUTER, helper, helper)).what


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), AssertionError("x"), KeyError("x"), StopIteration()])
def test_every_exception_is_converted(error: BaseException) -> None:
    assert f"raised {type(error).__name__} in its loss" in named(lambda: Outer().run(lambda: fail_with(error))).what


def test_a_broken_contract_is_no_exception_of_the_plugin() -> None:
    error = named(lambda: fail_with(ContractError("it returns 3")))
    assert error.what == "The learner 'outer' of zoo 1.0 breaks its contract in its loss at outer step 3: it returns 3"


@pytest.mark.parametrize(
    "error",
    [
        DataError("no data"),
        KeyboardInterrupt(),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOSPC, "No space left on device", "x"),
    ],
)
def test_what_is_not_the_plugins_fault_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, running_errors([OUTER], OUTER, "loss"):
        Outer().run(lambda: fail_with(error))
    assert caught.value is error


def test_without_code_of_a_plugin_an_error_may_pass() -> None:
    with pytest.raises(ZeroDivisionError), running_errors([OUTER, INNER], OUTER, "set-up", always=False):
        fail_with(ZeroDivisionError())
    assert "'inner'" in named(Inner().fail, always=False).what


def test_the_owner_of_a_broken_contract_is_named_though_its_code_has_returned() -> None:
    error = named(lambda: Outer().run(lambda: fail_with(ContractError("it returns 3", owner=Inner()))))
    assert error.what == (
        "The adapter 'inner' of zoo 1.0 breaks its contract in the loss of the learner 'outer' of zoo 1.0 at outer step"
        " 3: it returns 3"
    )
    assert error.where == "here:Inner"
    # An owner that is no plugin of the run, such as a built-in kind of tasks, changes nothing.
    assert "learner 'outer'" in named(lambda: fail_with(ContractError("it returns 3", owner=object()))).what


def test_a_plugin_that_inherits_from_another_is_the_owner_itself() -> None:
    derived = UsedPlugin(Entry("adapter", "derived", "here:Derived", "zoo"), type("Derived", (Inner,), {}))
    error = named(lambda: fail_with(ContractError("x", owner=derived.cls())), plugins=(OUTER, INNER, derived))
    assert "adapter 'derived'" in error.what


def test_the_data_set_is_the_owner_of_its_kind_of_tasks() -> None:
    kind = object()
    data = UsedPlugin(Entry("dataset", "data", "here:Data", "zoo"), type("Data", (), {"kind": kind}))
    error = named(lambda: fail_with(ContractError("x", owner=kind)), plugins=(OUTER, INNER, data))
    assert "dataset 'data'" in error.what
