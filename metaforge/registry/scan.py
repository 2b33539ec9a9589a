"""Build the registry from the entry points of installed distributions, without importing any plugin."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import MappingProxyType

from metaforge.registry.entry import CORE, KINDS, Entry, State
from metaforge.registry.metadata import EntryPoint, canonical_name, entry_points_of
from metaforge.registry.registry import Registry
from metaforge.registry.summaries import Summaries

GROUPS: Mapping[str, str] = MappingProxyType({f"metaforge.{kind}s": kind for kind in KINDS})
DEFAULTS_GROUP = "metaforge.defaults"

# A valid plugin name can be written as a TOML key without quotes; `none` in a run file stands for no plugin.
_NAME = re.compile(r"(?!none$)[A-Za-z0-9][A-Za-z0-9_-]*")
_TARGET = re.compile(r"[\w.]+\s*:\s*[\w.]+\s*(\[.*\])?")


def scan() -> Registry:
    """Return the registry of the installed plugins; no plugin is imported."""
    points, notes = entry_points_of((*GROUPS, DEFAULTS_GROUP))
    allowed = _allowed_distributions()
    absent = sorted((allowed or frozenset()) - {canonical_name(point.distribution) for point in points})
    notes += [
        f"METAFORGE_PLUGINS names {name!r}, but no installed distribution of that name has plugins." for name in absent
    ]
    # Empty only where MetaForge's own metadata are damaged; then no plugin is checked against its version.
    own_version = next((point.version for point in points if point.distribution == CORE), "")
    summaries = Summaries()
    incompatibilities: dict[str, str] = {}
    entries, defaults = [], {}
    for point in points:
        if point.group == DEFAULTS_GROUP:
            # Only MetaForge's own metadata set defaults: installing a plugin must not change what a run does.
            if point.distribution == CORE:
                defaults[point.name] = point.target
            continue
        if point.distribution not in incompatibilities:
            incompatibilities[point.distribution] = _incompatibility(point, own_version)
        state, reason = _state(point, allowed, incompatibilities[point.distribution])
        facts = (point.target, point.distribution, point.version, summaries.of(point.target), state, reason)
        entries.append(Entry(GROUPS[point.group], point.name, *facts))
    return Registry(entries, defaults, notes)


def _allowed_distributions() -> frozenset[str] | None:
    """Return the distributions that METAFORGE_PLUGINS lists, or None if it is not set."""
    setting = os.environ.get("METAFORGE_PLUGINS")
    if setting is None or not setting.strip():
        return None
    names = [name.strip() for name in setting.split(",")]
    return frozenset(canonical_name(name) for name in names if name and name != "none")


def _state(point: EntryPoint, allowed: frozenset[str] | None, incompatibility: str) -> tuple[State, str]:
    """Return the state of one plugin, and the reason if it is not `ready`; the registry finds the ambiguous ones."""
    if allowed is not None and point.distribution != CORE and canonical_name(point.distribution) not in allowed:
        return "hidden", "METAFORGE_PLUGINS does not list its distribution"
    if incompatibility:
        return "incompatible", incompatibility
    if not _TARGET.fullmatch(point.target):
        return "broken", f"its entry point {point.target!r} is not of the form module:Class"
    if not _NAME.fullmatch(point.name):
        return "broken", "its name is invalid: a name has letters, digits, '-' and '_', and is not 'none'"
    return "ready", ""


def _incompatibility(point: EntryPoint, own_version: str) -> str:
    """Return why a distribution's `Requires-Dist` excludes this version of MetaForge, or an empty string."""
    # Most distributions have no such line, so that `packaging` need not be imported.
    lines = [line for line in point.requires if canonical_name(line.strip()).startswith(CORE)]
    if point.distribution == CORE or not lines:
        return ""
    from packaging.requirements import Requirement

    for line in lines:
        try:
            requirement = Requirement(line)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except ValueError:
            return f"its requirement {line!r} cannot be read"
        if not applies or canonical_name(requirement.name) != CORE:
            continue
        if own_version and not requirement.specifier.contains(own_version, prereleases=True):
            return f"it requires metaforge{requirement.specifier}, this is metaforge {own_version}"
    return ""
