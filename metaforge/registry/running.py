"""Errors of plugins while a run computes: each becomes one `PluginError` that names the plugin and the outer step."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol

from metaforge.errors import ContractError, MetaForgeError, PluginError, as_metaforge_error
from metaforge.registry.entry import PYTHON, Entry
from metaforge.registry.loading import first_line


class Used(Protocol):
    """A plugin that a run uses."""

    @property
    def entry(self) -> Entry: ...
    @property
    def cls(self) -> type[Any]: ...


class UsedPlugin(NamedTuple):
    """A plugin that a command uses without a configuration."""

    entry: Entry
    cls: type[Any]


@contextlib.contextmanager
def running_errors(
    plugins: Sequence[Used], owner: Used, doing: str, when: str = "", *, always: bool = True
) -> Iterator[None]:
    """Raise `PluginError` in place of an exception from the block, which runs code of the plugins of a run.

    The error names the plugin whose code is innermost in the traceback, so an error in an adapter is not attributed to
    the learner that calls it. `SystemExit` and `GeneratorExit` are included: they must not end the command with
    success. Unchanged are errors of MetaForge and of the file system, which name their cause, and running out of
    memory; `KeyboardInterrupt` comes from the user.

    Args:
        plugins: The plugins of the run.
        owner: The plugin that the block calls.
        doing: The method or the activity of the owner, for the message.
        when: The outer step or the episodes, for the message.
        always: Whether the owner is named if the traceback shows no code of a plugin, for example because it returned
            an invalid value. If false, such an exception passes unchanged.
    """
    try:
        yield
    except (MetaForgeError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        found = _owner(error, plugins) or _network_at_fault(error, plugins) or _at_fault(error, plugins)
        is_file_error = isinstance(error, OSError) and as_metaforge_error(error) is not None
        if is_file_error or _is_out_of_memory(error) or not (found or always):
            raise
        plugin = found or owner
        where = f"its {doing}" if plugin is owner else f"the {doing} of the {owner.entry.label}"
        place = f"in {where} {when}".rstrip()
        if isinstance(error, ContractError):
            what = f"The {plugin.entry.label} breaks its contract {place}: {first_line(error)}"
        else:
            what = f"The {plugin.entry.label} raised {type(error).__name__} {place}: {first_line(error)}"
        entry = plugin.entry
        remedy = f"fix it, or choose another {entry.kind}; METAFORGE_DEBUG=1 shows the traceback, and `metaforge check "
        if entry.kind == "backbone" and entry.distribution == PYTHON:
            # A torch module that the caller handed over: no plugin has its name.
            where, remedy = "backbone", f"{remedy}--backbone MODULE:CLASS` compares it with plain PyTorch"
        else:
            where, remedy = entry.target, f"{remedy}{entry.kind}:{entry.name}` finds such errors"
        raise PluginError(what.removesuffix(": "), where=where, remedy=remedy) from error


def _network_at_fault(error: BaseException, plugins: Sequence[Used]) -> Used | None:
    """Return the backbone of a run if a note of the error says that a layer of the network raised it."""
    if not getattr(error, "__notes__", ()):
        return None
    return next((plugin for plugin in plugins if plugin.entry.kind == "backbone"), None)


def _owner(error: BaseException, plugins: Sequence[Used]) -> Used | None:
    """Return the plugin that an error names as its owner, or the data set whose kind of tasks it names; else None."""
    owner = error.owner if isinstance(error, ContractError) else None
    if owner is None:
        return None
    # The class itself first: one plugin may inherit from another one.
    exact = [plugin for plugin in plugins if type(owner) is plugin.cls]
    others = [plugin for plugin in plugins if isinstance(owner, plugin.cls) or getattr(plugin.cls, "kind", "") is owner]
    return next(iter([*exact, *others]), None)


def _at_fault(error: BaseException, plugins: Sequence[Used]) -> Used | None:
    """Return the plugin with the innermost code in the traceback of an error; None if there is none."""
    trace, frames = error.__traceback__, []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return next((plugin for frame in reversed(frames) if (plugin := _plugin_of(frame, plugins)) is not None), None)


def _plugin_of(frame: FrameType, plugins: Sequence[Used]) -> Used | None:
    """Return the plugin whose method a frame executes, or whose module if no other plugin of the run shares it."""
    owner = frame.f_locals.get("self")
    for plugin in plugins:
        if isinstance(owner, plugin.cls):
            return plugin
    module = str(frame.f_globals.get("__name__"))
    same_module = [plugin for plugin in plugins if plugin.cls.__module__ == module]
    return same_module[0] if len(same_module) == 1 and not module.startswith("metaforge.") else None


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch could not allocate memory; on the CPU it raises a plain `RuntimeError`."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error.args[:1])
