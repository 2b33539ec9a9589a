"""Reading the entry points of installed distributions; one whose metadata are damaged does not affect the others."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib import metadata
from typing import NamedTuple

from metaforge.errors import printable

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class EntryPoint(NamedTuple):
    """One entry point, with the name, version and requirements (`Requires-Dist`) of its distribution."""

    group: str
    name: str
    target: str
    distribution: str
    version: str
    requires: tuple[str, ...]


def entry_points_of(groups: Collection[str]) -> tuple[list[EntryPoint], list[str]]:
    """Return the entry points of some groups, and one sentence for each distribution that cannot be read.

    This is `importlib.metadata.entry_points` with one difference: that function raises if the metadata of any
    installed distribution are damaged; this one leaves that distribution out.
    """
    by_distribution: dict[str, list[EntryPoint]] = {}
    # A dict, because one distribution may be on the path twice.
    notes: dict[str, None] = {}
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if not any(group in text for group in groups):
                continue
            name, points = _read(distribution, groups)
        except Exception as error:
            # The metadata are untrusted, so any exception is possible.
            where = f"{_name_of(distribution)} in {distribution.locate_file('')}"
            why = f"{type(error).__name__}: {printable(str(error))}"
            notes[f"The metadata of {where} cannot be read ({why}): its plugins are left out. Reinstall it."] = None
            continue
        # Of two copies of a distribution, Python imports the one that comes first on the path.
        by_distribution.setdefault(canonical_name(name), points)
    return [point for points in by_distribution.values() for point in points], list(notes)


def canonical_name(distribution: str) -> str:
    """Return the normalised name of a distribution: lower case, `-` for each run of `-`, `_` and `.` (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _read(distribution: metadata.Distribution, groups: Collection[str]) -> tuple[str, list[EntryPoint]]:
    """Return the name of a distribution and its entry points of some groups; raise `ValueError` for an invalid name."""
    points = [point for point in distribution.entry_points if point.group in groups]
    # Bound to a name because each access to the property parses the file again.
    fields = distribution.metadata
    name, version = fields.get_all("Name", [""])[0], fields.get_all("Version", [""])[0]
    if not _NAME.fullmatch(name):
        raise ValueError(f"its name is {name!r}")
    requires = fields.get_all("Requires-Dist")
    requires = distribution.requires if requires is None else requires
    facts = (name, printable(version), tuple(requires or ()))
    return name, [EntryPoint(point.group, printable(point.name), printable(point.value), *facts) for point in points]


def _name_of(distribution: metadata.Distribution) -> str:
    try:
        return repr(distribution.metadata.get_all("Name", [""])[0])
    except Exception:
        return "a distribution without a name"
