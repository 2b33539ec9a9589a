"""The errors that MetaForge raises on purpose, each with a message of three parts and a documented exit code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

INTERRUPTED = 130
"""The exit code of a command that is ended by Ctrl-C."""

# The most characters that a message shows of a value, and of a place.
_MAX_VALUE, _MAX_PLACE = 200, 1000


class MetaForgeError(Exception):
    """Base of every error that MetaForge raises on purpose.

    Its message says what is wrong, where, and what to do about it. The command prints the message and ends with
    `exit_code`. Control characters in the three texts are replaced by spaces.

    Args:
        what: One or more sentences on what is wrong.
        where: The file, the setting or the plugin that is meant; left out of the message where empty.
        remedy: What the user can do about it; left out of the message where empty.

    Example:
        >>> from metaforge.errors import ConfigError
        >>> print(ConfigError("train.lr is -1.", where="run.toml", remedy="set it above 0"))
        train.lr is -1.
          where: run.toml
          remedy: set it above 0
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        # File names and file contents may be untrusted: without control characters they cannot steer the terminal.
        self.what = "\n".join(printable(line) for line in what.split("\n"))
        self.where, self.remedy = printable(where)[:_MAX_PLACE], printable(remedy)
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        super().__init__("\n".join(lines))


class ConfigError(MetaForgeError):
    """A setting, an option or an argument is invalid (exit code 2)."""

    exit_code = 2


class DataError(MetaForgeError):
    """A data set is missing, is damaged or has too few examples for the requested task (exit code 3)."""

    exit_code = 3


class PluginError(MetaForgeError):
    """A plugin is unknown, ambiguous, incompatible or broken (exit code 4)."""

    exit_code = 4


class CheckpointError(MetaForgeError):
    """A checkpoint is missing, is damaged or belongs to another run (exit code 5)."""

    exit_code = 5


class DivergedError(MetaForgeError):
    """Training has diverged: a loss, a meta-gradient or a parameter is non-finite or too large (exit code 6)."""

    exit_code = 6


class RunLockedError(MetaForgeError):
    """Another process is writing the run folder (exit code 7)."""

    exit_code = 7


class StorageError(MetaForgeError):
    """A folder cannot be written, or the disk is full (exit code 8)."""

    exit_code = 8


class WorkerError(MetaForgeError):
    """Another process of the run has ended or does not answer (exit code 9)."""

    exit_code = 9


class ContractError(ValueError):
    """The code of a plugin returned or did what its protocol forbids.

    The function that detects it does not know the name of the plugin; its caller raises a `PluginError` with the name.

    Args:
        what: What is wrong.
        owner: The instance of the plugin, or the kind of tasks, whose code it was, where that code has returned before
            the fault is detected. By default it is the plugin with the innermost code in the traceback.
    """

    def __init__(self, what: str, *, owner: object = None) -> None:
        super().__init__(what)
        self.owner = owner


_STORAGE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST})


def as_metaforge_error(error: BaseException) -> MetaForgeError | None:
    """Return the error that the command reports in place of an exception; None for an unexpected exception.

    A file that cannot be read or written is a `StorageError`. Only the code of a plugin can raise `SystemExit` or
    `GeneratorExit`, so these are a `PluginError`.
    """
    if isinstance(error, MetaForgeError):
        return error
    if isinstance(error, OSError) and error.errno in _STORAGE and error.filename is not None:
        return StorageError(
            f"{error.filename} cannot be written or read: {error.strerror}.",
            remedy="free space, correct the permissions, or choose another folder",
        )
    if isinstance(error, (SystemExit, GeneratorExit)):
        return PluginError(
            f"The code of a plugin raised {type(error).__name__}: {printable(str(error))}",
            remedy="set METAFORGE_DEBUG=1 to see the traceback, and report it to the author of the plugin",
        )
    return None


def exit_code(error: BaseException) -> int:
    """Return the code with which a command exits that ends with this exception."""
    if isinstance(error, KeyboardInterrupt):
        return int(getattr(error, "exit_code", INTERRUPTED))
    known = as_metaforge_error(error)
    return 1 if known is None else known.exit_code


def printable(text: str) -> str:
    """Return one line of text with a space in place of each control character.

    Metadata, file names and file contents are untrusted: a control character in them could steer the terminal.
    """
    return "".join(char if char.isprintable() else " " for char in text)


def shown(value: object) -> str:
    """Return the `repr` of a value as error messages show it, cut to 200 characters."""
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to convert an integer of thousands of digits to text.
        return "a number of too many digits"
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name most similar to `name`, or an empty string if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
