"""What installed distributions say of their plugins, read from their metadata; one that cannot be read is left out."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib import metadata
from typing import NamedTuple

from metaforge.errors import printable

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class EntryPoint(NamedTuple):
    """One entry point, and what its distribution says of itself."""

    group: str
    name: str
    target: str
    distribution: str
    version: str
    requires: tuple[str, ...]


def entry_points_of(groups: Collection[str]) -> tuple[list[EntryPoint], list[str]]:
    """Return the entry points of some groups, and a sentence on each distribution that cannot be read.

    `importlib.metadata.entry_points` would do, but for one thing: a single file that is not as it should be, of
    whatever distribution, makes it raise.
    """
    found: dict[str, list[EntryPoint]] = {}
    notes: dict[str, None] = {}
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
            if not any(group in text for group in groups):
                continue
            name, offered = _offered(distribution, groups)
        except Exception as error:
            # Anything may be wrong with a stranger's files; the others' plugins are listed all the same.
            where = f"{_name_of(distribution)} in {distribution.locate_file('')}"
            why = f"{type(error).__name__}: {printable(str(error))}"
            notes[f"The metadata of {where} cannot be read ({why}): its plugins are left out. Reinstall it."] = None
            continue
        # The first on the path is the one that is imported: the rest (an old copy, say) are hidden behind it.
        found.setdefault(canonical(name), offered)
    return [claim for offered in found.values() for claim in offered], list(notes)


def canonical(distribution: str) -> str:
    """Return a distribution's name in the one spelling in which names are compared."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _offered(distribution: metadata.Distribution, groups: Collection[str]) -> tuple[str, list[EntryPoint]]:
    points = [point for point in distribution.entry_points if point.group in groups]
    # Parsed once: each property of a distribution would read the file anew.
    said = distribution.metadata
    name, version = said.get_all("Name", [""])[0], said.get_all("Version", [""])[0]
    if not _NAME.fullmatch(name):
        raise ValueError(f"its name is {name!r}")
    requires = said.get_all("Requires-Dist")
    requires = distribution.requires if requires is None else requires
    facts = (name, printable(version), tuple(requires or ()))
    return name, [EntryPoint(point.group, printable(point.name), printable(point.value), *facts) for point in points]


def _name_of(distribution: metadata.Distribution) -> str:
    try:
        return repr(distribution.metadata.get_all("Name", [""])[0])
    except Exception:
        return "a distribution without a name"
