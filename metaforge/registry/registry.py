"""Which plugins are installed, read from package metadata without importing any of them, and how one is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from metaforge.errors import ConfigError, PluginError, nearest
from metaforge.registry.entry import CORE, KINDS, Entry
from metaforge.registry.loading import import_class, plugin_errors
from metaforge.registry.metadata import canonical


class Registry:
    """The plugins that a command may use; an argument everywhere, never a global.

    `defaults` maps a kind of task, or a kind of plugin, to the target of the entry that is used when none is named;
    `notes` are sentences for people on what could not be read.
    """

    def __init__(
        self, entries: Iterable[Entry], defaults: Mapping[str, str] | None = None, notes: Sequence[str] = ()
    ) -> None:
        self._entries = _judged(entries)
        self.notes = tuple(notes)
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
        wider = Registry([*others, entry], self._defaults, self.notes)
        wider._classes = dict(self._classes)
        wider._classes.pop((kind, entry.qualified), None)
        wider._own = {**self._own, (kind, entry.qualified): cls}
        return wider

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Return the entries of a kind, or all, sorted by kind and name."""
        return tuple(entry for entry in self._entries if kind is None or entry.kind == kind)

    def names(self, kind: str) -> list[str]:
        """Return the names that can be used as they are: qualified ones where a bare name is ambiguous."""
        ready = [entry.name for entry in self.entries(kind) if entry.state == "ready"]
        return sorted([*ready, *(entry.qualified for entry in self.entries(kind) if entry.state == "ambiguous")])

    def default(self, key: str) -> Entry | None:
        """Return the entry used when none is named, for a kind of task (a data set) or a kind of plugin."""
        target = self._defaults.get(key)
        return next((entry for entry in self._entries if entry.distribution == CORE and entry.target == target), None)

    def recorded(self, plugins: Mapping[str, Any]) -> Registry:
        """Return a registry in which a bare name means what it meant to a run, whoever else claims it by now.

        `plugins` are those of the run's `env.json`: `kind name` to distribution and version.
        """
        known = {key: str(value).partition(" ")[0] for key, value in plugins.items()}
        same = Registry((), self._defaults, self.notes)
        same._classes, same._own = self._classes, self._own
        same._entries = tuple(
            replace(entry, state="ready", reason="")
            if entry.state == "ambiguous" and known.get(f"{entry.kind} {entry.name}") == entry.distribution
            else entry
            for entry in self._entries
        )
        return same

    def meant(self, speaker: Entry, kind: str, name: str) -> str:
        """Return in full the name in an entry's own defaults: whoever else claims it, its author knew of no other."""
        rivals = [entry for entry in self.entries(kind) if entry.name == name and entry.state == "ambiguous"]
        owners = (speaker.distribution, CORE)
        return next((one.qualified for owner in owners for one in rivals if one.distribution == owner), name)

    def find(self, kind: str, name: str) -> Entry:
        """Return the entry that a name (or `distribution:name`) means; raise `PluginError` if it means none or many."""
        distribution, colon, bare = name.rpartition(":")
        found = [entry for entry in self.entries(kind) if entry.name == bare]
        if colon:
            found = [entry for entry in found if canonical(entry.distribution) == canonical(distribution)]
        if not found:
            raise self.unknown(name, kind)
        usable = [entry for entry in found if entry.state in ("ready", "ambiguous")]
        # A ready one among rivals is the one that a run recorded.
        usable = [entry for entry in usable if entry.state == "ready"] or usable
        if not usable:
            raise PluginError(
                f"The {found[0].label} cannot be used: {found[0].reason}.",
                where=found[0].target,
                remedy=_REMEDIES[found[0].state].format(found[0].distribution),
            )
        if len(usable) > 1:
            choices = ", ".join(repr(entry.qualified) for entry in usable)
            raise PluginError(
                f"The {kind} {name!r} is ambiguous: {len(usable)} installed distributions offer it.",
                remedy=f"use one of {choices}, or leave one out: METAFORGE_PLUGINS lists the distributions to be used",
            )
        return usable[0]

    def sought(self, text: str, kind: str | None = None) -> Entry:
        """Return the entry that `kind:name`, or the name of one kind's plugin, means; raise as `find` does."""
        prefix, colon, rest = text.partition(":")
        if kind is None and colon and prefix in KINDS:
            kind, text = prefix, rest
        bare = text.rpartition(":")[2]
        kinds = list(dict.fromkeys(entry.kind for entry in self._entries if entry.name == bare))
        if kind is None and len(kinds) > 1:
            raise ConfigError(
                f"{text!r} is the name of {' and '.join(kinds)} plugins.",
                remedy=f"choose one with --kind, or write {kinds[0]}:{text}",
            )
        if kind is None and not kinds:
            raise self.unknown(text)
        return self.find(kind or kinds[0], text)

    def load(self, kind: str, name: str) -> type[Any]:
        """Return the class that a name means, imported at most once and checked against the kind's protocol."""
        entry = self.find(kind, name)
        key = (kind, entry.qualified)
        if key not in self._classes:
            cls = self._own[key] if key in self._own else import_class(entry)
            from metaforge.registry.contract import faults

            with plugin_errors(entry):
                found = faults(kind, cls)
            if found:
                raise PluginError(
                    f"The {entry.label} does not keep the contract of a {kind}: {'; '.join(found)}.",
                    where=entry.target,
                    remedy=f"report it to the author of {entry.distribution}; docs/protocols.md has the contract",
                )
            self._classes[key] = cls
        return self._classes[key]

    def unknown(self, name: str, kind: str | None = None) -> PluginError:
        """Return the error for a name that no plugin of a kind, or of any, has."""
        names = [one for each in KINDS if kind in (None, each) for one in self.names(each)]
        elsewhere = sorted({entry.kind for entry in self._entries if entry.name == name and entry.kind != kind})
        also = f" Another kind has it: {', '.join(elsewhere)}." if elsewhere else ""
        listing = "metaforge list-plugins" + (f" --kind {kind}" if kind else "")
        return PluginError(
            f"No {kind or 'plugin'} is called {name!r}.{nearest(name, names)}{also}",
            where=f"installed {kind or 'plugin'}s: {', '.join(names) or 'none'} (interpreter {sys.executable})",
            remedy=f"`{listing}` shows them; a package that offers it is installed with"
            f" `{sys.executable} -m pip install <package>`",
        )


_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "hidden": "METAFORGE_PLUGINS lists the distributions whose plugins may be used; add {} to it",
        "incompatible": "install a matching version: pip install --upgrade {}",
        "broken": "report it to the author of {0}, or uninstall it: pip uninstall {0}",
    }
)


def _judged(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries in order, those that several distributions claim marked as ambiguous."""
    entries = sorted(entries, key=lambda entry: (KINDS.index(entry.kind), entry.name, entry.distribution))
    claims: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.state in ("ready", "ambiguous"):
            claims.setdefault((entry.kind, entry.name), []).append(entry.distribution)
    return tuple(_marked(entry, claims.get((entry.kind, entry.name), [])) for entry in entries)


def _marked(entry: Entry, claimants: Sequence[str]) -> Entry:
    if entry.state != "ready":
        return entry
    if claimants.count(entry.distribution) > 1:
        return replace(entry, state="broken", reason=f"{entry.distribution} has several {entry.kind}s of this name")
    rivals = [one for one in claimants if claimants.count(one) == 1]
    if len(rivals) < 2:
        return entry
    reason = f"{' and '.join(rivals)} each offer it; use {entry.qualified!r}"
    return replace(entry, state="ambiguous", reason=reason)
