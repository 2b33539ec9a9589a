"""Which plugins are installed, read from package metadata without importing any of them, and how one is loaded."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from types import MappingProxyType
from typing import Any, Literal

from metaforge.errors import PluginError, nearest

State = Literal["ready", "incompatible", "ambiguous", "hidden"]

KINDS = ("learner", "adapter", "regularizer", "backbone", "dataset", "hook")
GROUPS: Mapping[str, str] = MappingProxyType({f"metaforge.{kind}s": kind for kind in KINDS})
DEFAULTS_GROUP = "metaforge.defaults"
CORE = "metaforge"


@dataclass(frozen=True)
class Entry:
    """One installed plugin as its distribution's metadata describe it; `reason` says why it is not `ready`."""

    kind: str
    name: str
    target: str
    distribution: str
    version: str = ""
    summary: str = ""
    state: State = "ready"
    reason: str = ""

    @property
    def qualified(self) -> str:
        """The form `distribution:name`, which is unique among installed plugins of a kind."""
        return f"{self.distribution}:{self.name}"

    @property
    def label(self) -> str:
        """The plugin in words, for messages: kind, name, distribution and version."""
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}".rstrip()


class Registry:
    """The plugins that a command may use; an argument everywhere, never a global.

    `defaults` maps a kind of task, or a kind of plugin, to the target of the entry that is used when none is named.
    """

    def __init__(self, entries: Iterable[Entry], defaults: Mapping[str, str] | None = None) -> None:
        self._entries = _judged(entries)
        self._defaults = dict(defaults or {})
        self._classes: dict[tuple[str, str], type[Any]] = {}
        self._own: dict[tuple[str, str], type[Any]] = {}

    def including(self, kind: str, name: str, cls: type[Any]) -> Registry:
        """Return a registry that also holds a class of the caller's own, under a name."""
        module, qualname = str(cls.__module__), cls.__qualname__
        summary = (cls.__doc__ or "").strip().partition("\n")[0]
        entry = Entry(kind, name, f"{module}:{qualname}", "python", summary=summary)
        # The caller's own class wins over an installed plugin of that name: it was handed over on purpose.
        others = [known for known in self._entries if (known.kind, known.name) != (kind, name)]
        wider = Registry([*others, entry], self._defaults)
        wider._classes = dict(self._classes)
        wider._classes.pop((kind, entry.qualified), None)
        wider._own = {**self._own, (kind, entry.qualified): cls}
        return wider

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Return the entries of a kind, or all, sorted by kind and name."""
        return tuple(entry for entry in self._entries if kind is None or entry.kind == kind)

    def names(self, kind: str) -> list[str]:
        """Return the names that can be used as they are."""
        return sorted(entry.name for entry in self.entries(kind) if entry.state == "ready")

    def default(self, key: str) -> Entry | None:
        """Return the entry used when none is named, for a kind of task (a data set) or a kind of plugin."""
        target = self._defaults.get(key)
        return next((entry for entry in self._entries if entry.distribution == CORE and entry.target == target), None)

    def find(self, kind: str, name: str) -> Entry:
        """Return the entry that a name (or `distribution:name`) means; raise `PluginError` if it means none or many."""
        distribution, colon, bare = name.rpartition(":")
        found = [entry for entry in self.entries(kind) if entry.name == bare]
        if colon:
            found = [entry for entry in found if _canonical(entry.distribution) == _canonical(distribution)]
        if not found:
            raise self._unknown(kind, name)
        usable = [entry for entry in found if entry.state in ("ready", "ambiguous")]
        if not usable:
            raise PluginError(
                f"The {found[0].label} cannot be used: {found[0].reason}.",
                where=found[0].target,
                remedy="METAFORGE_PLUGINS lists the distributions whose plugins may be used"
                if found[0].state == "hidden"
                else f"install a matching version: pip install --upgrade {found[0].distribution}",
            )
        if len(usable) > 1:
            choices = ", ".join(repr(entry.qualified) for entry in usable)
            raise PluginError(
                f"The {kind} {name!r} is ambiguous: {len(usable)} installed distributions offer it.",
                remedy=f"use one of {choices}",
            )
        return usable[0]

    def load(self, kind: str, name: str) -> type[Any]:
        """Return the class that a name means, imported at most once and checked against the kind's protocol."""
        entry = self.find(kind, name)
        key = (kind, entry.qualified)
        if key not in self._classes:
            cls = self._own[key] if key in self._own else _imported(entry)
            from metaforge.contracts import faults

            if found := faults(kind, cls):
                raise PluginError(
                    f"The {entry.label} does not keep the contract of a {kind}: {'; '.join(found)}.",
                    where=entry.target,
                    remedy=f"report it to the author of {entry.distribution}; metaforge/protocols.py has the contract",
                )
            self._classes[key] = cls
        return self._classes[key]

    def _unknown(self, kind: str, name: str) -> PluginError:
        names = self.names(kind)
        known = ", ".join(names) if names else "none"
        elsewhere = sorted({entry.kind for entry in self._entries if entry.name == name and entry.kind != kind})
        also = f" Another kind has it: {', '.join(elsewhere)}." if elsewhere else ""
        return PluginError(
            f"No {kind} is called {name!r}.{nearest(name, names)}{also}",
            where=f"installed {kind}s: {known} (interpreter {sys.executable})",
            remedy=f"`metaforge list-plugins --kind {kind}` shows them; a package that offers it is installed with"
            f" `{sys.executable} -m pip install <package>`",
        )


def scan() -> Registry:
    """Return the registry of what is installed, from entry points alone: no plugin is imported."""
    from metaforge.summaries import Summaries

    allowed = _allowed()
    summaries = Summaries()
    versions: dict[str, tuple[str, str]] = {}
    entries, defaults = [], {}
    points = metadata.entry_points()
    for point in [point for group in (*GROUPS, DEFAULTS_GROUP) for point in points.select(group=group)]:
        if point.dist is None:
            continue
        distribution = point.dist.name
        if point.group == DEFAULTS_GROUP:
            # Only MetaForge's own metadata may say what an unnamed choice means: installed never means active.
            if distribution == CORE:
                defaults[point.name] = point.value
            continue
        if distribution not in versions:
            versions[distribution] = (point.dist.version, _incompatibility(distribution, point.dist.requires))
        version, reason = versions[distribution]
        state: State = "incompatible" if reason else "ready"
        if allowed is not None and distribution != CORE and _canonical(distribution) not in allowed:
            state, reason = "hidden", "METAFORGE_PLUGINS does not name its distribution"
        summary = summaries.of(point.value)
        kind = GROUPS[point.group]
        entries.append(Entry(kind, point.name, point.value, distribution, version, summary, state, reason))
    return Registry(entries, defaults)


def _judged(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries in order, those that several distributions claim marked as ambiguous."""
    entries = sorted(entries, key=lambda entry: (KINDS.index(entry.kind), entry.name, entry.distribution))
    claims: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.state in ("ready", "ambiguous"):
            claims.setdefault((entry.kind, entry.name), []).append(entry.distribution)
    return tuple(_marked(entry, claims.get((entry.kind, entry.name), [])) for entry in entries)


def _marked(entry: Entry, claimants: Sequence[str]) -> Entry:
    if entry.state != "ready" or len(claimants) < 2:
        return entry
    reason = f"{' and '.join(claimants)} both offer it; use {entry.qualified!r}"
    return replace(entry, state="ambiguous", reason=reason)


def _allowed() -> frozenset[str] | None:
    """Return the distributions that METAFORGE_PLUGINS names, or None where it is not set."""
    setting = os.environ.get("METAFORGE_PLUGINS")
    if setting is None or not setting.strip():
        return None
    return frozenset(_canonical(name.strip()) for name in setting.split(",") if name.strip() != "none")


def _canonical(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def _incompatibility(distribution: str, requires: Sequence[str] | None) -> str:
    """Return why a distribution does not fit this MetaForge, by its own `Requires-Dist`, or an empty string."""
    wanted = [line for line in requires or () if _canonical(line).startswith(CORE)]
    if distribution == CORE or not wanted:
        return ""
    from packaging.requirements import InvalidRequirement, Requirement

    from metaforge import __version__

    for line in wanted:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            return f"its requirement {line!r} cannot be read"
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        about_us = _canonical(requirement.name) == CORE and applies
        if about_us and not requirement.specifier.contains(__version__, prereleases=True):
            return f"it requires metaforge{requirement.specifier}, this is metaforge {__version__}"
    return ""


def _imported(entry: Entry) -> type[Any]:
    """Return the class at an entry's target; any failure, `sys.exit` included, becomes one `PluginError`."""
    module, _, attribute = entry.target.partition(":")
    try:
        # What a plugin prints while it is imported must not end up in a command's data.
        with contextlib.redirect_stdout(sys.stderr):
            found: Any = import_module(module.strip())
            for part in attribute.split("[")[0].strip().split("."):
                found = getattr(found, part)
    except (Exception, SystemExit) as error:
        cause = _first_cause(error)
        said = f": {cause}" if str(cause) else ""
        raise PluginError(
            f"The {entry.label} cannot be loaded: {type(cause).__name__}{said}",
            where=entry.target,
            remedy=f"mend or uninstall it (pip uninstall {entry.distribution}), or choose another {entry.kind};"
            " METAFORGE_DEBUG=1 shows the trace",
        ) from error
    if not isinstance(found, type):
        raise PluginError(
            f"The {entry.label} is not a class but of type {type(found).__name__}.",
            where=entry.target,
            remedy=f"report it to the author of {entry.distribution}",
        )
    return found


def _first_cause(error: BaseException) -> BaseException:
    """Return the innermost exception of a chain: the one that began it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or error
    return error
