"""A fixture for the tests of the configuration: a registry of toy plugins."""

from __future__ import annotations

import pytest

from config_toys import toy_registry
from metaforge.registry.registry import Registry


@pytest.fixture
def registry() -> Registry:
    """Return a registry with the toy plugins alone."""
    return toy_registry()
