"""Reading metadata: a damaged distribution is left out with a note, and the others are listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributions import ADAPTER, Install, installer
from metaforge.registry.metadata import EntryPoint, canonical_name, entry_points_of
from metaforge.registry.scan import scan


@pytest.mark.parametrize(
    ("metadata", "facts"),
    [
        ("Name: mf-meta\n", ("mf-meta", "")),
        ("Name: mf-meta\nVersion: 1\x1b[2J\x07\n", ("mf-meta", "1 [2J ")),
        ("Name: mf-meta\nVersion: 1\nVersion: 2\nName: other\n", ("mf-meta", "1")),
        ("Version: 1\n", None),
        ("Name: mf-\x1b[31mmeta\nVersion: 1\n", None),
        ("", None),
    ],
)
def test_damaged_metadata_leave_the_other_plugins_listed(
    install: Install, tmp_path: Path, metadata: str, facts: tuple[str, str] | None
) -> None:
    install("mf-meta", "[metaforge.adapters]\nmine = mf_meta:Mine", ADAPTER)
    (tmp_path / "mf_meta-1.2.dist-info" / "METADATA").write_text(metadata, "utf-8")
    registry = scan()
    assert registry.default("hook") is not None
    found = [entry for entry in registry.entries("adapter") if entry.name == "mine"]
    assert [(entry.distribution, entry.version) for entry in found] == ([facts] if facts else [])
    assert len(registry.notes) == (0 if facts else 1)
    assert all(note.isprintable() and str(tmp_path) in note for note in registry.notes)


def test_entry_points_of_the_groups_are_returned_with_facts_on_their_distribution(install: Install) -> None:
    points = "[metaforge.adapters]\nmine = mf_facts:Mine\n[metaforge.hooks]\nother = mf_facts:Other\n"
    install("mf-facts", points + "[console_scripts]\nx = y:z", requires="metaforge>=0.1")
    found, notes = entry_points_of(("metaforge.adapters",))
    own = [point for point in found if point.distribution == "mf-facts"]
    assert own == [EntryPoint("metaforge.adapters", "mine", "mf_facts:Mine", "mf-facts", "1.2", ("metaforge>=0.1",))]
    assert {point.group for point in found} == {"metaforge.adapters"}
    assert notes == []


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("mf-copy", "[metaforge.adapters]\nmine = mf_copy:Mine")
    first = tmp_path / "first"
    first.mkdir()
    monkeypatch.syspath_prepend(str(first))
    installer(first)("mf_copy", "[metaforge.adapters]\nyours = mf_copy:Mine")
    names = [point.name for point in entry_points_of(("metaforge.adapters",))[0] if point.target == "mf_copy:Mine"]
    assert names == ["yours"]


@pytest.mark.parametrize("spelling", ["My.Package", "my_package", "MY--package", "my-_.package"])
def test_spellings_of_one_distribution_have_one_canonical_name(spelling: str) -> None:
    assert canonical_name(spelling) == "my-package"
