"""The entry of one installed plugin: what its distribution's metadata say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metaforge.errors import ConfigError, nearest

State = Literal["ready", "incompatible", "ambiguous", "hidden", "broken"]
KINDS = ("learner", "adapter", "regularizer", "backbone", "dataset", "optimizer", "schedule", "hook", "preset")
# The distribution that holds MetaForge itself and its built-in plugins.
CORE = "metaforge"
# In place of a distribution: a class that Python code passes, which is not installed.
PYTHON = "python"


@dataclass(frozen=True)
class Entry:
    """One installed plugin, described from metadata alone: its class is not imported.

    Attributes:
        kind: One of `KINDS`.
        name: The name in run files and on the command line.
        target: Where the class is, as `module:Class`.
        distribution: The installed package that offers it.
        version: The version of the distribution.
        summary: The first line of the class's docstring.
        state: `ready`; `incompatible`: its distribution requires another version of MetaForge; `ambiguous`: several
            distributions offer this name; `hidden`: METAFORGE_PLUGINS excludes its distribution; or `broken`: its
            metadata are invalid.
        reason: Why the state is not `ready`; an empty string if it is.
    """

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
        """The qualified name, `distribution:name`, which is unique among installed plugins of a kind."""
        return f"{self.distribution}:{self.name}"

    @property
    def label(self) -> str:
        """The kind, name, distribution and version, as error messages write them."""
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}".rstrip()


def kind_called(name: str) -> str:
    """Return the kind that a name in the singular or the plural means; raise `ConfigError` if there is none."""
    kind = name.removesuffix("s")
    if kind in KINDS:
        return kind
    raise ConfigError(f"There is no kind {name!r}.{nearest(kind, KINDS)}", remedy=f"the kinds are {', '.join(KINDS)}")
