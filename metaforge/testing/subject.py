"""The plugin that is checked: its class, its options, and the toy problem that it is checked on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metaforge.authoring import protocols
from metaforge.authoring.kinds import task_kind
from metaforge.authoring.protocols import Dataset, TaskShape
from metaforge.config.validation import validate
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
    ("optimizer", protocols.Optimizer),
    ("schedule", protocols.Schedule),
    ("hook", protocols.Hook),
    ("preset", protocols.Preset),
)


@dataclass(frozen=True)
class Subject:
    """A plugin to check. `Subject.of` makes one from a name or a class.

    Args:
        kind: Kind of the plugin, such as `learner`.
        name: Name of the plugin.
        cls: Class of the plugin.
        options: Options that differ from the defaults.
        x_shape: Shape of an input of the toy tasks. By default learners and backbones get the first of a few shapes
            (a vector, images of growing size, a sequence) that they accept, and other plugins a vector.
        shape: Ways, shots and queries of the episodes that are sampled from a data set.
        root: Folder that holds data sets.
        entry: Entry point of the plugin, or None for a class that is not installed.
        registry: The plugins that the `defaults` of the class may name.

    Example:
        >>> from metaforge.testing import Subject
        >>> from metaforge.testing.toy import ToyLearner
        >>> Subject("learner", "toy", ToyLearner, options={"steps": 2}, x_shape=(3, 8, 8)).config.steps
        2
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
    def of(
        cls,
        plugin: Subject | str | type[Any],
        registry: Registry | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> Subject:
        """Return the subject for a plugin.

        Args:
            plugin: A name (`my-idea`), a qualified name (`learner:my-idea`), a class, or a subject.
            registry: Where to look up names; by default the installed plugins.
            options: Options that differ from the defaults (or from those of the subject).

        Raises:
            ConfigError: An option is invalid.
            PluginError: No plugin has this name, it cannot be loaded, or the kind of the class is unknown.

        Example:
            >>> from metaforge.testing import Subject
            >>> from metaforge.testing.toy import ToyNet
            >>> Subject.of(ToyNet).label
            "backbone 'ToyNet'"
        """
        if options:
            subject = cls.of(plugin, registry).with_options(options)
            # Invalid options are the caller's error, and not a failure of the plugin.
            _ = subject.config
            return subject
        if isinstance(plugin, Subject):
            return plugin
        registry = registry or scan()
        if isinstance(plugin, type):
            kind = _kind_of(plugin)
            return cls(kind, plugin.__name__, plugin, registry=registry.with_plugin(kind, plugin.__name__, plugin))
        entry = registry.find_any(plugin)
        loaded = registry.load(entry.kind, entry.qualified)
        return cls(entry.kind, entry.name, loaded, entry=entry, registry=registry)

    @property
    def label(self) -> str:
        """Kind and name of the plugin, for messages."""
        return f"{self.kind} {self.name!r}"

    @property
    def config(self) -> Any:
        """The validated options; raises `ConfigError` if one is invalid."""
        return validate(self.cls.Config, self.options, self.kind, {})

    def with_options(self, options: Mapping[str, Any]) -> Subject:
        """Return the same subject with some options changed."""
        options = {**self.options, **options}
        cls = self.cls.variant(options) if self.kind == "dataset" else self.cls
        return replace(self, cls=cls, options=options)

    def with_root(self, root: Path) -> Subject:
        """Return the same subject with another folder of data sets."""
        return replace(self, root=root)

    def build(self) -> Any:
        """Return a new instance of a plugin whose constructor takes its options only."""
        return self.cls(self.config)

    def build_dataset(self) -> Dataset:
        """Return a new instance of a data set."""
        dataset: Dataset = self.cls(self.config, root=self.root or data_root())
        return dataset

    def episode_shape(self) -> TaskShape:
        """Return ways, shots and queries of the episodes that are sampled from a data set."""
        if self.shape is not None:
            return self.shape
        return TaskShape(3, 2, 3) if task_kind(self.cls.kind).classes else TaskShape(1, 4, 5)

    def require_data(self) -> None:
        """Raise the data set's own error, usually `DataError`, if its files are missing.

        Missing files are not a failure of the plugin, so they must not appear as failed checks. Other exceptions are:
        they are ignored here and reported by the checks.
        """
        if self.kind != "dataset":
            return
        try:
            self.build_dataset().spec("train", self.episode_shape())
        except (MetaForgeError, KeyboardInterrupt):
            raise
        except BaseException:
            return


def _kind_of(cls: type[Any]) -> str:
    for kind, base in _BASES:
        if base in cls.__mro__:
            return kind
    if any(name.startswith("metaforge_") for name in dir(cls)):
        return "hook"
    raise PluginError(
        f"The base classes of {cls.__name__} do not show its kind.",
        where=f"{cls.__module__}:{cls.__qualname__}",
        remedy=f"pass Subject(kind, name, cls) with one of the kinds {', '.join(KINDS)}",
    )
