"""Find the installed plugins from entry points alone: no plugin is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import MappingProxyType

from metaforge.registry.entry import CORE, KINDS, Entry, State
from metaforge.registry.metadata import EntryPoint, canonical, entry_points_of
from metaforge.registry.registry import Registry

GROUPS: Mapping[str, str] = MappingProxyType({f"metaforge.{kind}s": kind for kind in KINDS})


DEFAULTS_GROUP = "metaforge.defaults"


# What a run file can write as a table, and what names a class.
_NAME = re.compile(r"(?!none$)[A-Za-z0-9][A-Za-z0-9_-]*")


_TARGET = re.compile(r"[\w.]+\s*:\s*[\w.]+\s*(\[.*\])?")


def scan() -> Registry:
    """Return the registry of what is installed, from entry points alone: no plugin is imported."""
    from metaforge.registry.summaries import Summaries

    found, notes = entry_points_of((*GROUPS, DEFAULTS_GROUP))
    allowed = _allowed()
    absent = sorted((allowed or frozenset()) - {canonical(claim.distribution) for claim in found})
    notes += [
        f"METAFORGE_PLUGINS names {name!r}, but no installed distribution of that name has plugins." for name in absent
    ]
    summaries = Summaries()
    reasons: dict[str, str] = {}
    entries, defaults = [], {}
    for claim in found:
        if claim.group == DEFAULTS_GROUP:
            # Only MetaForge's own metadata may say what an unnamed choice means: installed never means active.
            if claim.distribution == CORE:
                defaults[claim.name] = claim.target
            continue
        if claim.distribution not in reasons:
            reasons[claim.distribution] = _incompatibility(claim)
        state, reason = _state(claim, allowed, reasons[claim.distribution])
        facts = (claim.target, claim.distribution, claim.version, summaries.of(claim.target), state, reason)
        entries.append(Entry(GROUPS[claim.group], claim.name, *facts))
    return Registry(entries, defaults, notes)


def _state(claim: EntryPoint, allowed: frozenset[str] | None, incompatible: str) -> tuple[State, str]:
    """Return what an entry point alone tells of its plugin's state, and why."""
    if allowed is not None and claim.distribution != CORE and canonical(claim.distribution) not in allowed:
        return "hidden", "METAFORGE_PLUGINS does not name its distribution"
    if incompatible:
        return "incompatible", incompatible
    if not _TARGET.fullmatch(claim.target):
        return "broken", f"its entry point {claim.target!r} is not of the form module:Class"
    if not _NAME.fullmatch(claim.name):
        return "broken", "its name cannot be used: a name has letters, digits, '-' and '_', and is not 'none'"
    return "ready", ""


def _allowed() -> frozenset[str] | None:
    """Return the distributions that METAFORGE_PLUGINS names, or None where it is not set."""
    setting = os.environ.get("METAFORGE_PLUGINS")
    if setting is None or not setting.strip():
        return None
    names = [name.strip() for name in setting.split(",")]
    return frozenset(canonical(name) for name in names if name and name != "none")


def _incompatibility(claim: EntryPoint) -> str:
    """Return why a distribution does not fit this MetaForge, by its own `Requires-Dist`, or an empty string."""
    wanted = [line for line in claim.requires if canonical(line.strip()).startswith(CORE)]
    if claim.distribution == CORE or not wanted:
        return ""
    from packaging.requirements import Requirement

    from metaforge import __version__

    for line in wanted:
        try:
            requirement = Requirement(line)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        except ValueError:
            return f"its requirement {line!r} cannot be read"
        about_us = canonical(requirement.name) == CORE and applies
        if about_us and not requirement.specifier.contains(__version__, prereleases=True):
            return f"it requires metaforge{requirement.specifier}, this is metaforge {__version__}"
    return ""
