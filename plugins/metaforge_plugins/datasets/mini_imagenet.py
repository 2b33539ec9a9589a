"""Mini-ImageNet: 100 classes of ImageNet with 600 images each, 64 to train, 16 to validate and 20 to test on.

Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching networks for one shot learning", NeurIPS 2016; with
the splits of Ravi and Larochelle, "Optimization as a model for few-shot learning", ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge import data


class MiniImageNet(data.ClassFolders):
    """Mini-ImageNet: 100 classes of ImageNet with 600 images each, 64 to train, 16 to validate and 20 to test on.

    The splits are those of Ravi and Larochelle. MetaForge does not download the images: put them into the folder
    `mini-imagenet`, as class folders in `train`, `val` and `test`, or as one folder `images` with the authors' lists
    `train.csv`, `val.csv` and `test.csv`. Images of another size are resized without keeping their proportions.
    Pickles such as `mini-imagenet-cache-train.pkl` are not read. In memory the images to train on take 0.8 GB.
    """

    Config = data.ClassFoldersOptions
    reference: ClassVar[str] = "https://openreview.net/forum?id=rJY0-Kcll"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classification": {"backbone": {"name": "conv4", "variant": "pool"}}
    }
    folder = "mini-imagenet"
    contents = data.Contents({"train": 64, "val": 16, "test": 20}, images=(600, 600), total=60_000)
    source = (
        "take the images from ImageNet, https://www.image-net.org, whose terms you must accept, and the lists of "
        "images from https://github.com/twitter-research/meta-learning-lstm, folder data/miniImagenet"
    )
