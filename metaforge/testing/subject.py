"""What is checked: a plugin's class, its options, and on what kind of toy problem it is to show itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metaforge.authoring import protocols
from metaforge.authoring.protocols import Dataset, TaskShape
from metaforge.data.root import data_root
from metaforge.errors import MetaForgeError, PluginError
from metaforge.registry.entry import KINDS, Entry
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan

_BASES = (
    ("learner", protocols.Learner),
    ("adapter", protocols.Adapter),
    ("regularizer", protocols.Regularizer),
    ("backbone", protocols.Backbone),
    ("dataset", protocols.Dataset),
)


@dataclass(frozen=True)
class Subject:
    """A plugin to check, with `options` other than its defaults where they are needed.

    `x_shape` is the shape of a toy task's inputs (by default a vector, or the first image size that the plugin takes),
    `shape` that of the episodes asked of a data set, `root` the folder that holds data sets. `registry` has what the
    plugin's own `defaults` may name; `entry` is None for a class that is not installed.
    """

    kind: str
    name: str
    cls: type[Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    x_shape: tuple[int, ...] | None = None
    shape: TaskShape | None = None
    root: Path | None = None
    entry: Entry | None = None
    registry: Registry = field(default_factory=scan, repr=False, compare=False)

    @classmethod
    def of(cls, what: Subject | str | type[Any], registry: Registry | None = None) -> Subject:
        """Return the subject that a name, `kind:name`, a class or a subject means; `PluginError` if none."""
        if isinstance(what, Subject):
            return what
        registry = registry or scan()
        if isinstance(what, type):
            kind = _kind_of(what)
            return cls(kind, what.__name__, what, registry=registry.with_plugin(kind, what.__name__, what))
        entry = registry.find_any(what)
        found = registry.load(entry.kind, entry.qualified)
        return cls(entry.kind, entry.name, found, entry=entry, registry=registry)

    @property
    def label(self) -> str:
        """The plugin in words, for messages."""
        return f"{self.kind} {self.name!r}"

    @property
    def config(self) -> Any:
        """The validated options."""
        return self.cls.Config.model_validate(dict(self.options))

    def at(self, root: Path) -> Subject:
        """Return the same subject with its data in another folder."""
        return replace(self, root=root)

    def built(self) -> Any:
        """Return a new instance of a plugin that is built of its options alone."""
        return self.cls(self.config)

    def dataset(self) -> Dataset:
        """Return a new instance of a data set."""
        found: Dataset = self.cls(self.config, root=self.root or data_root())
        return found

    def episodes(self) -> TaskShape:
        """Return the shape of the episodes that a data set is asked for."""
        if self.shape is not None:
            return self.shape
        return TaskShape(3, 2, 3) if self.cls.kind == "classification" else TaskShape(1, 4, 5)

    def ready(self) -> None:
        """Raise the data set's own `DataError` where its data are missing: that is no fault of the plugin."""
        if self.kind != "dataset":
            return
        try:
            self.dataset().spec("train", self.episodes())
        except MetaForgeError:
            raise
        except Exception:
            # A fault of the plugin, which its checks will tell.
            return


def _kind_of(cls: type[Any]) -> str:
    for kind, base in _BASES:
        if base in cls.__mro__:
            return kind
    if any(name.startswith("metaforge_") for name in dir(cls)):
        return "hook"
    raise PluginError(
        f"Of what kind {cls.__name__} is cannot be seen from its base classes.",
        where=f"{cls.__module__}:{cls.__qualname__}",
        remedy=f"hand over Subject(kind, name, cls) with one of the kinds {', '.join(KINDS)}",
    )
