"""Every plugin of MetaForge's own keeps the conformance kit, with no failure expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaforge.registry import CORE, scan
from metaforge.testing import Check, Subject, parametrize_with_checks

REGISTRY = scan()
# Its data must be downloaded: it is checked where they are.
NEEDS_DATA = {"omniglot"}
OWN = [Subject.of(f"{e.kind}:{e.name}", REGISTRY) for e in REGISTRY.entries() if e.distribution == CORE]


@parametrize_with_checks([subject for subject in OWN if subject.name not in NEEDS_DATA])
def test_every_plugin(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.omniglot
@parametrize_with_checks([subject for subject in OWN if subject.name in NEEDS_DATA])
def test_every_data_set_with_files(subject: Subject, check: Check, omniglot_root: Path) -> None:
    check(subject.at(omniglot_root))
