"""All built-in plugins pass the conformance kit, with no expected failures."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.zoo import import_torchvision
from metaforge.registry.entry import CORE
from metaforge.registry.scan import scan
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.checks.general import assert_import_without_side_effects

REGISTRY = scan()
# Data sets whose files must be downloaded; they are checked only where the files are available.
NEEDS_DATA = {"omniglot"}
# Data sets whose files the user provides: their own tests in `tests/plugins/datasets` check them on small trees.
OWN_FILES = {"mini-imagenet", "tiered-imagenet", "cifar-fs", "fc100", "cub", "stored-features"}
# Its networks are too deep to learn from images of 16 pixels in a few steps. Its own tests run the other checks, and a
# step of training by every plan.
TOO_DEEP = {"torchvision"}
# Most checks build the plugin anew, and these would draw 1100 characters or take 16 inner steps each time. The check of
# the exact gradient chooses the steps itself, and `tests/plugins/datasets/test_glyphs.py` tests as many characters. The
# backbones have their usual structure with few filters.
FASTER: dict[str, dict[str, object]] = {
    "glyphs": {"train": 60, "val": 30, "test": 30},
    "imaml": {"steps": 4},
    "lstm": {"hidden": 6},
    "resnet": {"depth": 10, "width": 2},
    "resnet12": {"widths": [3, 4, 5, 6]},
    "timm": {"model": "test_resnet"},
    "transformer": {"width": 8, "heads": 2},
    "wide-resnet": {"depth": 10, "width": 1},
}
ALL = [Subject.of(f"{e.kind}:{e.name}", REGISTRY) for e in REGISTRY.entries() if e.distribution == CORE]
# Without an entry point the `import` check is skipped, which starts an interpreter per plugin.
WITHOUT_ENTRY = [replace(subject, entry=None).with_options(FASTER.get(subject.name, {})) for subject in ALL]


@pytest.fixture(scope="module", autouse=True)
def importable_torchvision() -> None:
    """Import torchvision, whose import warns where its compiled operators do not fit the build of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()


@parametrize_with_checks(
    [subject for subject in WITHOUT_ENTRY if subject.name not in NEEDS_DATA | OWN_FILES | TOO_DEEP]
)
def test_every_plugin(subject: Subject, check: Check) -> None:
    check(subject)


def test_every_import_is_without_side_effects() -> None:
    # One interpreter for all: no plugin imports another (a contract of import-linter), so none hides another's imports.
    targets = [subject.entry.target for subject in ALL if subject.entry is not None]
    assert len(targets) == len(ALL)
    assert_import_without_side_effects([target.partition(":")[0] for target in targets])


@pytest.mark.omniglot
@parametrize_with_checks([subject for subject in WITHOUT_ENTRY if subject.name in NEEDS_DATA])
def test_every_data_set_with_files(subject: Subject, check: Check, omniglot_root: Path) -> None:
    check(subject.with_root(omniglot_root))
