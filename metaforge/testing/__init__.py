"""The conformance kit: checks that every plugin of a kind must pass, for use in the plugin's own tests.

    from metaforge.testing import Check, Subject, parametrize_with_checks

    @parametrize_with_checks(["learner:my-idea"])
    def test_my_idea(subject: Subject, check: Check) -> None:
        check(subject)

`metaforge check my-idea` and `check_plugin("my-idea")` run the same checks. Which checks apply to a plugin follows from
its kind, its `kind` of task and its `tags`, never from its name. By default a plugin is checked with its default
options on small vectors or images; pass `Subject.of("my-idea", options={...})` for other options, or a `Subject` for
other inputs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaforge.testing.check import Check
    from metaforge.testing.run_checks import check_plugin, checks_for, parametrize_with_checks, skipped_for
    from metaforge.testing.subject import Subject

__all__ = ["Check", "Subject", "check_plugin", "checks_for", "parametrize_with_checks", "skipped_for"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the `import` check starts an interpreter that imports `metaforge.testing.global_state`, and
    # should not import the whole kit.
    if name not in __all__:
        raise AttributeError(f"module 'metaforge.testing' has no attribute {name!r}")
    module = {"Check": "check", "Subject": "subject"}.get(name, "run_checks")
    return getattr(import_module(f"metaforge.testing.{module}"), name)
