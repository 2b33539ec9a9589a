"""An entry names its plugin in messages, and a kind is found by its singular or plural."""

from __future__ import annotations

import pytest

from metaforge.errors import ConfigError
from metaforge.registry.entry import KINDS, Entry, kind_called


def test_an_entry_has_a_qualified_name_and_a_label() -> None:
    entry = Entry("adapter", "mine", "zoo.mine:Mine", "zoo", "1.2")
    assert entry.qualified == "zoo:mine"
    assert entry.label == "adapter 'mine' of zoo 1.2"
    assert (entry.state, entry.reason, entry.summary) == ("ready", "", "")


def test_a_label_without_a_version_ends_with_the_distribution() -> None:
    assert Entry("adapter", "mine", "zoo:Mine", "zoo").label == "adapter 'mine' of zoo"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_found_by_its_singular_and_plural(kind: str) -> None:
    assert kind_called(kind) == kind_called(f"{kind}s") == kind


def test_an_unknown_kind_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"There is no kind 'lerners'\. Did you mean 'learner'\?") as caught:
        kind_called("lerners")
    assert caught.value.remedy == f"the kinds are {', '.join(KINDS)}"
