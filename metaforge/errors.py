"""Errors that speak to a person: what went wrong, where, and what to do; each class has a documented exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# How much of a value, and of a place, a message shows.
_SHOWN, _WHERE = 200, 1000


class MetaForgeError(Exception):
    """Base of every error that MetaForge raises on purpose; `exit_code` is the command's exit status."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        # Names of files, and what they hold, may be a stranger's: they shall not write to the terminal.
        self.what = "\n".join(printable(line) for line in what.split("\n"))
        self.where, self.remedy = printable(where)[:_WHERE], printable(remedy)
        what, where, remedy = self.what, self.where, self.remedy
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if remedy:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))


class ConfigError(MetaForgeError):
    """A setting, an option or an argument is wrong (exit code 2)."""

    exit_code = 2


class DataError(MetaForgeError):
    """Data are missing, damaged, or too few for the task asked for (exit code 3)."""

    exit_code = 3


class PluginError(MetaForgeError):
    """A plugin is unknown, ambiguous, incompatible or broken (exit code 4)."""

    exit_code = 4


class CheckpointError(MetaForgeError):
    """A saved state is missing, damaged or of another run (exit code 5)."""

    exit_code = 5


class DivergedError(MetaForgeError):
    """A loss, a meta-gradient or a parameter is no longer finite (exit code 6)."""

    exit_code = 6


class RunLockedError(MetaForgeError):
    """Another process writes the run (exit code 7)."""

    exit_code = 7


class StorageError(MetaForgeError):
    """A folder cannot be written, or the disk is full (exit code 8)."""

    exit_code = 8


class WorkerError(MetaForgeError):
    """Another process of the run has ended or does not answer (exit code 9)."""

    exit_code = 9


def printable(text: str) -> str:
    """Return a text of one line without control characters, which a stranger's metadata could hold."""
    return "".join(char if char.isprintable() else " " for char in text)


def shown(value: object) -> str:
    """Return a value as a message shows it: 200 characters at most."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no integer of thousands of digits.
        return "a number of too many digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
