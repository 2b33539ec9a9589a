"""Importing the class of a plugin; every exception that its code raises becomes one `PluginError` that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from metaforge.errors import MetaForgeError, PluginError, printable
from metaforge.system.streams import stdout_to_stderr

if TYPE_CHECKING:
    from metaforge.registry.entry import Entry

# The most characters that are shown of an exception.
_MAX_SUMMARY = 300


def import_class(entry: Entry) -> type[Any]:
    """Import and return the class of an entry; raise `PluginError` if that fails or the target is not a class."""
    module, _, attribute = entry.target.partition(":")
    with plugin_errors(entry):
        target: Any = import_module(module.strip())
        # A target may end in extras, `module:Class [extra]`, which are of no use here.
        for name in attribute.split("[")[0].strip().split("."):
            target = getattr(target, name)
    if not isinstance(target, type):
        raise PluginError(
            f"The {entry.label} is not a class but of type {type(target).__name__}.",
            where=entry.target,
            remedy=f"report it to the author of {entry.distribution}",
        )
    return target


@contextlib.contextmanager
def plugin_errors(
    entry: Entry, failing: str = "cannot be loaded", *, keep_metaforge_errors: bool = False
) -> Iterator[None]:
    """Raise `PluginError` in place of any exception from the block, which runs code of a plugin.

    `SystemExit` is included; `KeyboardInterrupt` passes unchanged, because it comes from the user. A process that the
    plugin ends with `os._exit` cannot be saved. What the plugin prints goes to stderr.

    Args:
        entry: The plugin.
        failing: What the plugin cannot do, for the message: "The learner 'x' of y 1.0 <failing>: ...".
        keep_metaforge_errors: Whether a `MetaForgeError` passes unchanged: its message is written for the user.
    """
    try:
        with stdout_to_stderr():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if keep_metaforge_errors and isinstance(error, MetaForgeError):
            raise
        raise PluginError(
            f"The {entry.label} {failing}: {_summary(_first_cause(error))}",
            where=entry.target,
            remedy=f"fix or uninstall it (pip uninstall {entry.distribution}), or choose another {entry.kind};"
            " METAFORGE_DEBUG=1 shows the traceback",
        ) from error


def _summary(error: BaseException) -> str:
    """Return an exception's type and the first line of its message, without control characters."""
    return f"{type(error).__name__}: {first_line(error)}"[:_MAX_SUMMARY].removesuffix(": ")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, without control characters, cut to 300 characters.

    Its notes follow, which say where in a network it was raised.
    """
    try:
        lines = [line for line in str(error).splitlines() if line.strip()]
    except Exception:
        lines = ["its message cannot be read"]
    text = printable(lines[0])[:_MAX_SUMMARY] if lines else ""
    notes = "; ".join(printable(str(note))[:_MAX_SUMMARY] for note in getattr(error, "__notes__", ()))
    return f"{text} ({notes})" if notes else text


def _first_cause(error: BaseException) -> BaseException:
    """Return the exception that a chain of `raise ... from ...` and implicit contexts started with."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or error
    return error
