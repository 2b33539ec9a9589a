"""One installed plugin, as the metadata of its distribution describe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metaforge.errors import ConfigError, nearest

State = Literal["ready", "incompatible", "ambiguous", "hidden", "broken"]


KINDS = ("learner", "adapter", "regularizer", "backbone", "dataset", "hook")


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


def kind_called(name: str) -> str:
    """Return a kind by its name, in the singular or the plural; raise `ConfigError` if there is none."""
    kind = name.removesuffix("s")
    if kind in KINDS:
        return kind
    raise ConfigError(f"There is no kind {name!r}.{nearest(kind, KINDS)}", remedy=f"the kinds are {', '.join(KINDS)}")
