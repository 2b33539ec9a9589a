"""CUB-200-2011: 200 species of birds with 11,788 photographs, 100 to train, 50 to validate and 50 to test on.

Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 dataset", technical report, 2011, with the
numbers of classes of Chen, Liu, Kira, Wang and Huang, "A closer look at few-shot classification", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from metaforge import data


class CUB(data.ClassFolders):
    """CUB-200-2011: 200 species of birds with 11,788 photographs, 100 to train, 50 to validate and 50 to test on.

    The splits of Chen et al. have 100, 50 and 50 classes; other papers use 140, 30 and 30, and their results are not
    comparable. MetaForge does not download the images: put the folder `CUB_200_2011` of the official archive into the
    folder `cub`, and beside it the lists of images `base.json`, `val.json` and `novel.json`, or the lists of classes
    `train.txt`, `val.txt` and `test.txt`. Class folders in `train`, `val` and `test` are read too. Bounding boxes are
    not used, and photographs are resized without keeping their proportions.
    """

    Config = data.ClassFoldersOptions
    reference: ClassVar[str] = "Wah et al. 2011, CNS-TR-2011-001; splits: Chen et al. 2019, arXiv 1904.04232"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classification": {"backbone": {"name": "conv4", "variant": "pool"}}
    }
    folder = "cub"
    inner = "CUB_200_2011"
    contents = data.Contents({"train": 100, "val": 50, "test": 50}, images=(30, 60), total=11_788)
    source = (
        "take the images from https://www.vision.caltech.edu/datasets/cub_200_2011/, and make the lists of the splits "
        "as in https://github.com/wyharveychen/CloserLookFewShot, folder filelists/CUB"
    )
