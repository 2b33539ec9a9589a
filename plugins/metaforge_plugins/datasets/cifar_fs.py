"""CIFAR-FS: the 100 classes of CIFAR-100 with 600 images each, 64 to train, 16 to validate and 20 to test on.

Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from metaforge import data


class CIFARFSOptions(data.ClassFoldersOptions):
    """Options of CIFAR-FS."""

    size: int = Field(default=32, ge=8, le=512, description="height and width of the images in pixels")


class CIFARFS(data.ClassFolders):
    """CIFAR-FS: the 100 classes of CIFAR-100 with 600 images each, 64 to train, 16 to validate and 20 to test on.

    MetaForge does not download the images of 32 x 32 pixels: put them into the folder `cifar-fs`, as class folders in
    `train`, `val` and `test`, or as the authors arrange them: class folders in `data`, and the lists of classes
    `train.txt`, `val.txt` and `test.txt` in `splits/bertinetto`. Both may be in a folder `cifar100`.
    """

    Config = CIFARFSOptions
    reference: ClassVar[str] = "https://arxiv.org/abs/1805.08136"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classification": {"backbone": {"name": "conv4", "variant": "pool"}}
    }
    folder = "cifar-fs"
    inner = "cifar100"
    contents = data.Contents({"train": 64, "val": 16, "test": 20}, images=(600, 600), total=60_000)
    source = (
        "take the images and the lists of classes from the authors, https://github.com/bertinetto/r2d2; the images are "
        "those of CIFAR-100, https://www.cs.toronto.edu/~kriz/cifar.html"
    )
