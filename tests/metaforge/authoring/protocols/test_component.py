"""What every plugin has: strict options and three class attributes, of which two have default values."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from metaforge.authoring.protocols import Component, Hook, Options


class DecayOptions(Options):
    """Options with one bounded number."""

    rate: float = 0.1


@pytest.mark.parametrize("options", [{"raet": 0.1}, {"rate": float("nan")}, {"rate": float("inf")}, {"rate": "fast"}])
def test_options_reject_unknown_names_and_invalid_values(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DecayOptions(**options)  # type: ignore[arg-type]


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DecayOptions().rate = 0.2  # type: ignore[misc]


def test_a_plugin_inherits_an_empty_reference_and_empty_defaults() -> None:
    class Idle(Component):
        """Does nothing."""

        Config = DecayOptions

    assert Idle.reference == ""
    assert Idle.defaults == {}


def test_a_hook_plugin_is_a_component() -> None:
    assert Component in Hook.__mro__
