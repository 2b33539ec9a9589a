"""The registry: finds an installed plugin by its name, and loads its class on request."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from metaforge.errors import ConfigError, PluginError, nearest, printable
from metaforge.registry.entry import CORE, KINDS, PYTHON, Entry
from metaforge.registry.loading import import_class, plugin_errors
from metaforge.registry.metadata import canonical_name


class Registry:
    """The plugins that a command may use; passed as an argument, never a global.

    Args:
        entries: The installed plugins. Those whose name several distributions offer become `ambiguous`.
        defaults: The target of the plugin that is used when none is named, by kind of task (the data set) or kind of
            plugin.
        notes: Sentences for the user on the metadata that could not be read.
    """

    def __init__(
        self, entries: Iterable[Entry], defaults: Mapping[str, str] | None = None, notes: Sequence[str] = ()
    ) -> None:
        self._entries = _mark_conflicts(entries)
        self.notes = tuple(notes)
        self._defaults = dict(defaults or {})
        self._classes: dict[tuple[str, str], type[Any]] = {}
        # The classes that the caller passed to `with_plugin`; they are not imported.
        self._own_classes: dict[tuple[str, str], type[Any]] = {}
        # What a run recorded, by `kind name`: the distribution of the plugin and its version.
        self._recorded: dict[str, str] = {}

    def with_plugin(self, kind: str, name: str, cls: type[Any]) -> Registry:
        """Return a registry that also has a class of the caller's, in place of any installed plugin of that name."""
        module, qualname = str(cls.__module__), cls.__qualname__
        summary = (cls.__doc__ or "").strip().partition("\n")[0]
        entry = Entry(kind, name, f"{module}:{qualname}", PYTHON, summary=summary)
        others = [other for other in self._entries if (other.kind, other.name) != (kind, name)]
        result = Registry([*others, entry], self._defaults, self.notes)
        result._classes = dict(self._classes)
        result._classes.pop((kind, entry.qualified), None)
        result._own_classes = {**self._own_classes, (kind, entry.qualified): cls}
        return result

    def as_recorded(self, plugins: Mapping[str, Any]) -> Registry:
        """Return a registry in which a name means the distribution that a run recorded for it, and no other.

        Args:
            plugins: The `plugins` of the run's `env.json`: from `kind name` to `distribution version`.
        """
        result = Registry((), self._defaults, self.notes)
        result._classes, result._own_classes = self._classes, self._own_classes
        result._recorded = {key: provenance for key, provenance in plugins.items() if isinstance(provenance, str)}
        result._entries = tuple(result._settled(entry) for entry in self._entries)
        return result

    def _settled(self, entry: Entry) -> Entry:
        """Return an entry that is `ready` if the run recorded it, `ambiguous` if another of its name or with both."""
        if entry.state not in ("ready", "ambiguous"):
            return entry
        if f"{entry.kind} {entry.qualified}" in self._recorded:
            # Its settings have the qualified name, which a run keeps.
            return replace(entry, state="ambiguous", reason=f"the run names it {entry.qualified!r}")
        provenance = self._recorded.get(f"{entry.kind} {entry.name}")
        if provenance is None:
            return entry
        if self._is_of(entry, provenance):
            return replace(entry, state="ready", reason="")
        reason = f"the run was trained with that of {provenance}; use {entry.qualified!r}"
        return entry if entry.state == "ambiguous" else replace(entry, state="ambiguous", reason=reason)

    def _is_of(self, entry: Entry, provenance: str) -> bool:
        """Return whether an entry is of a recorded distribution, or a class that the caller passed in its place."""
        distribution = canonical_name(provenance.partition(" ")[0])
        return canonical_name(entry.distribution) == distribution or (entry.kind, entry.qualified) in self._own_classes

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """Return the entries of a kind, or all, sorted by kind, name and distribution."""
        return tuple(entry for entry in self._entries if kind is None or entry.kind == kind)

    def names(self, kind: str) -> list[str]:
        """Return the names by which the usable plugins of a kind are found: the qualified name if it is ambiguous."""
        ready = [entry.name for entry in self.entries(kind) if entry.state == "ready"]
        return sorted([*ready, *(entry.qualified for entry in self.entries(kind) if entry.state == "ambiguous")])

    def default(self, key: str) -> Entry | None:
        """Return the plugin used when none is named, for a kind of task (a data set) or a kind of plugin."""
        target = self._defaults.get(key)
        return next((entry for entry in self._entries if entry.distribution == CORE and entry.target == target), None)

    def resolve_default(self, owner: Entry, kind: str, name: str) -> str:
        """Return a name from the `defaults` of the plugin `owner`, qualified if it is ambiguous.

        It means the plugin of `owner`'s own distribution, else the built-in one: the author of `owner` could not know
        of others.
        """
        rivals = [entry for entry in self.entries(kind) if entry.name == name and entry.state == "ambiguous"]
        distributions = (owner.distribution, CORE)
        return next((rival.qualified for each in distributions for rival in rivals if rival.distribution == each), name)

    def find(self, kind: str, name: str) -> Entry:
        """Return the entry of a plugin by its kind and its name or qualified name (`distribution:name`).

        Raises `PluginError` if there is none, if it cannot be used, if the name is ambiguous, or if the run that
        recorded the name had it from a distribution that is not installed.
        """
        distribution, colon, bare = name.rpartition(":")
        matches = [entry for entry in self.entries(kind) if entry.name == bare]
        if colon:
            matches = [entry for entry in matches if canonical_name(entry.distribution) == canonical_name(distribution)]
        if (provenance := self._recorded.get(f"{kind} {name}")) is not None:
            rivals, matches = matches, [entry for entry in matches if self._is_of(entry, provenance)]
            if not matches:
                raise _not_installed_error(kind, name, provenance, rivals)
        if not matches:
            raise self.unknown_name_error(name, kind)
        usable = [entry for entry in matches if entry.state in ("ready", "ambiguous")]
        if not usable:
            first = matches[0]
            raise PluginError(
                f"The {first.label} cannot be used: {first.reason}.",
                where=first.target,
                remedy=_REMEDIES[first.state].format(first.distribution),
            )
        if len(usable) > 1:
            choices = ", ".join(repr(entry.qualified) for entry in usable)
            raise PluginError(
                f"The {kind} {name!r} is ambiguous: {len(usable)} installed distributions offer it.",
                remedy=f"use one of {choices}, or list the distributions to be used in METAFORGE_PLUGINS",
            )
        return usable[0]

    def find_any(self, text: str, kind: str | None = None) -> Entry:
        """Return the entry of a plugin whose kind need not be given, for names that a user types.

        `text` is a name, `kind:name`, or a qualified name. Raises `ConfigError` if plugins of several kinds have the
        name, and `PluginError` as `find` does.
        """
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
            raise self.unknown_name_error(text)
        return self.find(kind or kinds[0], text)

    def load(self, kind: str, name: str) -> type[Any]:
        """Return the class of a plugin, imported once and checked against the contract of its kind.

        Raises `PluginError` if it is not found, cannot be imported, or does not keep the contract.
        """
        entry = self.find(kind, name)
        key = (kind, entry.qualified)
        if key not in self._classes:
            cls = self._own_classes[key] if key in self._own_classes else import_class(entry)
            # Imported here because it imports torch, which listing must not.
            from metaforge.registry.contract import contract_errors

            with plugin_errors(entry):
                errors = contract_errors(kind, cls)
            if errors:
                raise PluginError(
                    f"The {entry.label} does not keep the contract of {_article(kind)} {kind}: {'; '.join(errors)}.",
                    where=entry.target,
                    remedy=f"report it to the author of {entry.distribution}; docs/protocols.md has the contract",
                )
            self._classes[key] = cls
        return self._classes[key]

    def unknown_name_error(self, name: str, kind: str | None = None) -> PluginError:
        """Return the error for a name that no plugin of a kind, or of any kind, has."""
        names = [known for each in KINDS if kind in (None, each) for known in self.names(each)]
        other_kinds = sorted({entry.kind for entry in self._entries if entry.name == name and entry.kind != kind})
        hint = f" Another kind has it: {', '.join(other_kinds)}." if other_kinds else ""
        command = "metaforge list-plugins" + (f" --kind {kind}" if kind else "")
        return PluginError(
            f"No {kind or 'plugin'} is called {name!r}.{nearest(name, names)}{hint}",
            where=f"installed {kind or 'plugin'}s: {', '.join(names) or 'none'} (interpreter {sys.executable})",
            remedy=f"`{command}` shows them; to install a package that offers it, run"
            f" `{sys.executable} -m pip install <package>`",
        )


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"


def install_remedy(provenance: str) -> str:
    """Return what to do to get the plugin of a recorded distribution and version."""
    return f"install what it was trained with (pip install {shlex.quote('=='.join(printable(provenance).split()))})"


def _not_installed_error(kind: str, name: str, provenance: str, rivals: Sequence[Entry]) -> PluginError:
    """Return the error for a plugin of a run whose distribution is not installed; `rivals` have its name."""
    if provenance == PYTHON:
        passed = "backbone=..." if kind == "backbone" else f"registry=scan().with_plugin({kind!r}, {name!r}, ...)"
        return PluginError(
            f"The {kind} {name!r}, with which the run was trained, was passed in Python code.",
            remedy=f"use the run in Python, and pass it again: metaforge.load(folder, {passed})",
        )
    remedy = install_remedy(provenance)
    if rivals:
        remedy += f", or write {rivals[0].qualified!r} for it in the run's config.toml to use the other one"
    offered = ", ".join(rival.label for rival in rivals)
    return PluginError(
        f"The {kind} {name!r} of {provenance}, with which the run was trained, is not installed.",
        where=f"of this name there is the {offered}" if rivals else "",
        remedy=remedy,
    )


# By state: what to do about a plugin that cannot be used; {} is its distribution.
_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "hidden": "METAFORGE_PLUGINS lists the distributions whose plugins may be used; add {} to it",
        "incompatible": "install a matching version: pip install --upgrade {}",
        "broken": "report it to the author of {0}, or uninstall it: pip uninstall {0}",
    }
)


def _mark_conflicts(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries sorted; those whose name is not unique within their kind become `ambiguous` or `broken`."""
    entries = sorted(entries, key=lambda entry: (KINDS.index(entry.kind), entry.name, entry.distribution))
    distributions: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.state in ("ready", "ambiguous"):
            distributions.setdefault((entry.kind, entry.name), []).append(entry.distribution)
    return tuple(_mark_conflict(entry, distributions.get((entry.kind, entry.name), [])) for entry in entries)


def _mark_conflict(entry: Entry, distributions: Sequence[str]) -> Entry:
    """Return an entry, marked if others have its name; `distributions` has one item for each usable entry of it."""
    if entry.state != "ready":
        return entry
    if distributions.count(entry.distribution) > 1:
        return replace(entry, state="broken", reason=f"{entry.distribution} has several {entry.kind}s of this name")
    # A distribution that offers the name twice is broken and does not count.
    rivals = [name for name in distributions if distributions.count(name) == 1]
    if len(rivals) < 2:
        return entry
    reason = f"{' and '.join(rivals)} each offer it; use {entry.qualified!r}"
    return replace(entry, state="ambiguous", reason=reason)
