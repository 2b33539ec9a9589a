"""Tools for data set plugins: class pools, episode sampling, safe image decoding, verified downloads and archives."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaforge.data.augment import jitter
    from metaforge.data.cache import Arrays, load_or_build, read_arrays
    from metaforge.data.class_folders import ClassFolders, ClassFoldersOptions, Contents
    from metaforge.data.class_pool import ClassPool, Pixels, check_draw, check_shape, check_split
    from metaforge.data.completion import sample_completions
    from metaforge.data.curves import CurveDataset, CurveOptions, Range, between
    from metaforge.data.downloads import Opener, Progress, open_https
    from metaforge.data.episodes import draw_episode, sample_episodes
    from metaforge.data.image_dataset import ImageDataset, ImageOptions
    from metaforge.data.images import Resample, read_file
    from metaforge.data.random_numbers import Bits, bits, episode_keys, normals, sample_without_replacement, uniforms
    from metaforge.data.root import data_root
    from metaforge.data.trees import Tree, TreeImages, fetch_tree, open_tree

__all__ = [
    "Arrays",
    "Bits",
    "ClassFolders",
    "ClassFoldersOptions",
    "ClassPool",
    "Contents",
    "CurveDataset",
    "CurveOptions",
    "ImageDataset",
    "ImageOptions",
    "Opener",
    "Pixels",
    "Progress",
    "Range",
    "Resample",
    "Tree",
    "TreeImages",
    "between",
    "bits",
    "check_draw",
    "check_shape",
    "check_split",
    "data_root",
    "draw_episode",
    "episode_keys",
    "fetch_tree",
    "jitter",
    "load_or_build",
    "normals",
    "open_https",
    "open_tree",
    "read_arrays",
    "read_file",
    "sample_completions",
    "sample_episodes",
    "sample_without_replacement",
    "uniforms",
]

_MODULES = (
    "root",
    "random_numbers",
    "class_pool",
    "completion",
    "curves",
    "augment",
    "episodes",
    "image_dataset",
    "images",
    "cache",
    "downloads",
    "trees",
    "class_folders",
)


def __getattr__(name: str) -> Any:
    # Imported on first use, because the command line needs `data_root` but must not import torch and NumPy.
    if name in __all__:
        for module in (import_module(f"metaforge.data.{module}") for module in _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'metaforge.data' has no attribute {name!r}")
