"""The hook specs: their names and arguments, and what hooks know about a run."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from metaforge.authoring import hooks
from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.kinds import REGRESSION


def test_the_eight_hooks() -> None:
    assert hooks.names() == (
        "metaforge_run_start",
        "metaforge_before_step",
        "metaforge_after_step",
        "metaforge_after_eval",
        "metaforge_should_stop",
        "metaforge_checkpoint",
        "metaforge_run_end",
        "metaforge_run_facts",
    )


def test_a_new_run_starts_at_step_0_with_an_empty_environment() -> None:
    run = RunInfo(None, {"seed": 3}, "regression")
    assert (run.folder, run.settings, run.kind) == (None, {"seed": 3}, REGRESSION)
    assert (run.command, run.environment, run.start) == ("", {}, 0)


def test_a_hook_cannot_change_what_others_see() -> None:
    with pytest.raises(FrozenInstanceError):
        RunInfo(None, {}, "classification").start = 3  # type: ignore[misc]


def test_a_plugin_with_both_methods_has_a_state() -> None:
    class Half:
        def state(self) -> dict[str, int]:
            return {}

    class Both(Half):
        def restore(self, state: dict[str, int]) -> None: ...

    assert isinstance(Both(), hooks.Stateful)
    assert not isinstance(Half(), hooks.Stateful)
