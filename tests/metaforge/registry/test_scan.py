"""Scanning: entry points become entries, no plugin is imported, and invalid ones get a state and a reason."""

from __future__ import annotations

import sys

import pytest

from distributions import ADAPTER, Install
from metaforge.errors import PluginError
from metaforge.registry.entry import Entry
from metaforge.registry.scan import scan


def test_entry_points_become_entries_and_nothing_is_imported(install: Install) -> None:
    install("mf-one", "[metaforge.adapters]\nmine = mf_one:Mine\n[other]\nx = y:z\n", ADAPTER)
    entry = scan().find("adapter", "mine")
    assert entry == Entry("adapter", "mine", "mf_one:Mine", "mf-one", "1.2", "Mine, all mine.")
    assert "mf_one" not in sys.modules


@pytest.mark.parametrize(
    ("point", "state"),
    [
        ("mine = mf_point", "broken"),
        ("mine = mf_point:", "broken"),
        ("mine = not a module:Mine", "broken"),
        ("mine = mf_point:Mine [extra, other]", "ready"),
        ("mine = mf_point : Mine", "ready"),
        ("Mine_2 = mf_point:Mine", "ready"),
        ("my own = mf_point:Mine", "broken"),
        ("a.b = mf_point:Mine", "broken"),
        ("a:b = mf_point:Mine", "broken"),
        ("none = mf_point:Mine", "broken"),
        ("m\x1b[31mine = mf_point:Mine", "broken"),
    ],
)
def test_an_invalid_entry_point_is_broken(install: Install, point: str, state: str) -> None:
    install("mf-point", f"[metaforge.adapters]\n{point}", ADAPTER)
    registry = scan()
    (entry,) = [entry for entry in registry.entries("adapter") if entry.distribution == "mf-point"]
    assert entry.state == state
    assert entry.name.isprintable()
    assert bool(entry.reason) == (state == "broken")
    if state == "ready":
        assert registry.load("adapter", entry.name).__name__ == "Mine"
    elif ":" not in entry.name:
        with pytest.raises(PluginError, match="cannot be used: its ") as caught:
            registry.load("adapter", entry.name)
        assert "pip uninstall mf-point" in caught.value.remedy


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        ("metaforge>=99", "incompatible"),
        ("metaforge<0.1", "incompatible"),
        ("metaforge>=0.1,<1", "ready"),
        ("metaforge", "ready"),
        ("metaforge >= 99 ; extra == 'test'", "ready"),
        ("metaforge-extras>=99", "ready"),
        ("metaforge ~~ 3", "incompatible"),
        ("metaforge>=0.1; planet == 'Mars'", "incompatible"),
    ],
)
def test_a_distribution_for_another_version_of_metaforge_is_incompatible(
    install: Install, requires: str, state: str
) -> None:
    install("mf-old", "[metaforge.adapters]\nmine = mf_old:Mine", ADAPTER, requires=requires)
    registry = scan()
    (entry,) = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert entry.state == state
    if state == "incompatible":
        with pytest.raises(PluginError, match="cannot be used") as caught:
            registry.load("adapter", "mine")
        assert "mf-old 1.2" in caught.value.what


def test_an_incompatible_plugin_does_not_make_a_name_ambiguous(install: Install) -> None:
    install("mf-good", "[metaforge.adapters]\nmine = mf_good:Mine", ADAPTER)
    install("mf-bad", "[metaforge.adapters]\nmine = mf_bad:Mine", ADAPTER, requires="metaforge>=99")
    assert scan().find("adapter", "mine").distribution == "mf-good"


@pytest.mark.parametrize(
    ("allowed", "state"), [("none", "hidden"), ("mf_open, x", "ready"), ("x", "hidden"), ("", "ready")]
)
def test_the_environment_can_hide_third_party_plugins(
    install: Install, monkeypatch: pytest.MonkeyPatch, allowed: str, state: str
) -> None:
    install("mf-open", "[metaforge.adapters]\nmine = mf_open:Mine", ADAPTER)
    monkeypatch.setenv("METAFORGE_PLUGINS", allowed)
    registry = scan()
    (entry,) = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert entry.state == state
    assert all(entry.state == "ready" for entry in registry.entries() if entry.distribution == "metaforge")
    if state == "hidden":
        with pytest.raises(PluginError, match="METAFORGE_PLUGINS"):
            registry.find("adapter", "mine")
    assert [name in note for note in registry.notes for name in ["'x'"]] == [True] * allowed.count("x")


def test_only_the_metadata_of_metaforge_set_defaults(install: Install) -> None:
    install("mf-sly", "[metaforge.defaults]\nclassification = mf_sly:Mine\nhook = mf_sly:Mine")
    registry = scan()
    for key in ("classification", "regression", "hook"):
        entry = registry.default(key)
        assert entry is not None
        assert entry.distribution == "metaforge"


def test_the_version_of_metaforge_comes_from_its_metadata(install: Install) -> None:
    # This distribution is the first of its name on the path, so it stands for MetaForge itself.
    install("metaforge", "[metaforge.adapters]\nown = mf_core:Mine", ADAPTER, module="mf_core")
    install("mf-next", "[metaforge.adapters]\nnext = mf_next:Mine", ADAPTER, requires="metaforge>=1.2")
    install("mf-last", "[metaforge.adapters]\nlast = mf_last:Mine", ADAPTER, requires="metaforge<1")
    found = {entry.name: (entry.state, entry.reason) for entry in scan().entries("adapter")}
    assert found["next"] == found["own"] == ("ready", "")
    assert found["last"] == ("incompatible", "it requires metaforge<1, this is metaforge 1.2")
