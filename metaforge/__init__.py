"""MetaForge: few-shot learning and meta-learning in PyTorch, where every algorithm is a plugin."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from metaforge.api import load, train
    from metaforge.functional import one_task

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl", "load", "one_task", "train"]

hookimpl = pluggy.HookimplMarker("metaforge")

_PUBLIC = {"train": "metaforge.api", "load": "metaforge.api", "one_task": "metaforge.functional"}


def __getattr__(name: str) -> Any:
    # Imported on first use: `metaforge --help` must not pay for torch.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'metaforge' has no attribute {name!r}")
