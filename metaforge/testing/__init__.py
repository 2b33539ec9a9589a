"""The conformance kit: small named checks that a plugin of any kind must pass, in three lines of a plugin's own tests.

    from metaforge.testing import Check, Subject, parametrize_with_checks

    @parametrize_with_checks(["learner:my-idea"])
    def test_my_idea(subject: Subject, check: Check) -> None:
        check(subject)

The same checks run with `metaforge check my-idea`. A check reads no plugin's name: which ones apply follows from the
kind of plugin and from what its class says of itself (`tags`, `kind`). Whoever needs other inputs than the kit's small
vectors or images, or options other than the defaults, hands over a `Subject`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaforge.testing.check import Check
    from metaforge.testing.run_checks import checks_for, parametrize_with_checks, skipped_for
    from metaforge.testing.subject import Subject

__all__ = ["Check", "Subject", "checks_for", "parametrize_with_checks", "skipped_for"]


def __getattr__(name: str) -> Any:
    # Imported on first use: a fresh interpreter that looks at one plugin's import must not pay for the whole kit.
    if name not in __all__:
        raise AttributeError(f"module 'metaforge.testing' has no attribute {name!r}")
    module = {"Check": "check", "Subject": "subject"}.get(name, "run_checks")
    return getattr(import_module(f"metaforge.testing.{module}"), name)
