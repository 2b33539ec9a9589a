"""MetaForge: few-shot learning and meta-learning in PyTorch, where every algorithm is a plugin."""

from __future__ import annotations

from importlib import import_module

# Not imported from `typing`, so that the command starts fast and handles Ctrl-C from the start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaforge.authoring.functional import one_task
    from metaforge.authoring.hooks import hookimpl
    from metaforge.runs.api import load, train

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl", "load", "one_task", "train"]

_PUBLIC = {
    "hookimpl": "metaforge.authoring.hooks",
    "load": "metaforge.runs.api",
    "one_task": "metaforge.authoring.functional",
    "train": "metaforge.runs.api",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, because `metaforge --help` must not import torch.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'metaforge' has no attribute {name!r}")
