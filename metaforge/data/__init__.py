"""Tools for data set plugins: class pools, episode sampling, safe image decoding, verified downloads and archives."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaforge.data.cache import Arrays, cached
    from metaforge.data.downloads import Opener, Progress, open_https
    from metaforge.data.episodes import (
        Bits,
        ClassPool,
        Pixels,
        bits,
        check_split,
        distinct,
        episode_keys,
        feasible,
        sample_episodes,
        uniforms,
    )
    from metaforge.data.images import Resample, read_file
    from metaforge.data.root import data_root
    from metaforge.data.trees import Tree, TreeImages, fetch_tree, open_tree

__all__ = [
    "Arrays",
    "Bits",
    "ClassPool",
    "Opener",
    "Pixels",
    "Progress",
    "Resample",
    "Tree",
    "TreeImages",
    "bits",
    "cached",
    "check_split",
    "data_root",
    "distinct",
    "episode_keys",
    "feasible",
    "fetch_tree",
    "open_https",
    "open_tree",
    "read_file",
    "sample_episodes",
    "uniforms",
]

_MODULES = ("root", "episodes", "images", "cache", "downloads", "trees")


def __getattr__(name: str) -> Any:
    # Imported on first use, because the command line needs `data_root` but must not import torch and NumPy.
    if name in __all__:
        for module in (import_module(f"metaforge.data.{module}") for module in _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'metaforge.data' has no attribute {name!r}")
