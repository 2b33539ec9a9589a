"""Importing a stranger's class: whatever goes wrong in it, `sys.exit` included, becomes one error that names it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from metaforge.errors import MetaForgeError, PluginError, printable

if TYPE_CHECKING:
    from metaforge.registry.entry import Entry

_LONGEST = 300


def import_class(entry: Entry) -> type[Any]:
    """Return the class at an entry's target; raise `PluginError` if there is none."""
    module, _, attribute = entry.target.partition(":")
    with plugin_errors(entry):
        found: Any = import_module(module.strip())
        for part in attribute.split("[")[0].strip().split("."):
            found = getattr(found, part)
    if not isinstance(found, type):
        raise PluginError(
            f"The {entry.label} is not a class but of type {type(found).__name__}.",
            where=entry.target,
            remedy=f"report it to the author of {entry.distribution}",
        )
    return found


@contextlib.contextmanager
def plugin_errors(entry: Entry, failing: str = "cannot be loaded", *, spare: bool = False) -> Iterator[None]:
    """Turn whatever a plugin's code raises into a `PluginError`, and keep what it prints away from stdout.

    `failing` says what a plugin cannot do that raises here. With `spare`, errors that it words for people pass as they
    are. A KeyboardInterrupt is taken for the user's. A process that is ended by `os._exit` is beyond help.
    """
    try:
        with _stdout_spared():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if spare and isinstance(error, MetaForgeError):
            raise
        raise PluginError(
            f"The {entry.label} {failing}: {_told(_first_cause(error))}",
            where=entry.target,
            remedy=f"mend or uninstall it (pip uninstall {entry.distribution}), or choose another {entry.kind};"
            " METAFORGE_DEBUG=1 shows the trace",
        ) from error


@contextlib.contextmanager
def _stdout_spared() -> Iterator[None]:
    """Send to stderr what is printed, by C code and child processes too: stdout is for the answer of a command."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        # Either descriptor may be closed; then there is nothing to spare, or nowhere to send it.
        with contextlib.suppress(OSError):
            kept = os.dup(1)
            stack.callback(os.close, kept)
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
        yield


def _told(error: BaseException) -> str:
    """Return an exception's type and the first line of its message, which is a stranger's text."""
    try:
        lines = [line for line in str(error).splitlines() if line.strip()]
    except Exception:
        lines = ["its message cannot be read"]
    return printable(": ".join([type(error).__name__, *lines[:1]]))[:_LONGEST]


def _first_cause(error: BaseException) -> BaseException:
    """Return the innermost exception of a chain: the one that began it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or error
    return error
