"""Every plugin of MetaForge's own keeps the conformance kit, with no failure expected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metaforge.registry.entry import CORE
from metaforge.registry.scan import scan
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.checks.general import assert_quiet

REGISTRY = scan()
# Its data must be downloaded: it is checked where they are.
NEEDS_DATA = {"omniglot"}
ALL = [Subject.of(f"{e.kind}:{e.name}", REGISTRY) for e in REGISTRY.entries() if e.distribution == CORE]
# A class that is handed over without its entry is spared the `import` check, which starts an interpreter for each.
OWN = [replace(subject, entry=None) for subject in ALL]


@parametrize_with_checks([subject for subject in OWN if subject.name not in NEEDS_DATA])
def test_every_plugin(subject: Subject, check: Check) -> None:
    check(subject)


def test_every_import_is_quiet() -> None:
    # No plugin imports another (a contract of import-linter), so that one interpreter will do for all.
    targets = [subject.entry.target for subject in ALL if subject.entry is not None]
    assert len(targets) == len(ALL)
    assert_quiet([target.partition(":")[0] for target in targets])


@pytest.mark.omniglot
@parametrize_with_checks([subject for subject in OWN if subject.name in NEEDS_DATA])
def test_every_data_set_with_files(subject: Subject, check: Check, omniglot_root: Path) -> None:
    check(subject.at(omniglot_root))
