"""Tests of all checks: each fails for a plugin with a deliberate fault, and correct plugins pass.

The faulty plugins are in `tests/support/faulty_learners.py`, `faulty_components.py` and `faulty_kinds.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import faulty_components
import faulty_kinds
import faulty_learners
from metaforge.registry.entry import Entry
from metaforge.registry.scan import scan
from metaforge.testing import Check, Subject, checks_for, parametrize_with_checks
from metaforge.testing.run_checks import all_checks

REGISTRY = scan()


def subject(kind: str, cls: type[Any], entry: Entry | None = None) -> Subject:
    return Subject(kind, cls.__name__, cls, entry=entry, registry=REGISTRY)


# The module of this entry point has side effects and must not be imported here, so the class is another one.
LOUD = subject("learner", faulty_learners.Right, Entry("learner", "loud", "loud_plugin:Loud", "tests"))
FAULTS = [
    ("import", LOUD),
    *((name, subject("learner", cls)) for name, cls in faulty_learners.FAULTS),
    *((name, subject(kind, cls)) for name, kind, cls in (*faulty_components.FAULTS, *faulty_kinds.FAULTS)),
]
RIGHT_LEARNERS = [getattr(faulty_learners, name) for name in ("Right", "Centres", "Untrained", "Level", "Recursive")]
RIGHT = [
    *(subject("learner", cls) for cls in RIGHT_LEARNERS),
    *(subject(kind, cls) for kind, cls in (*faulty_components.RIGHT, *faulty_kinds.RIGHT)),
]


@pytest.mark.parametrize(("name", "faulty"), FAULTS, ids=[f"{name}-{one.name}" for name, one in FAULTS])
def test_a_check_catches_a_faulty_plugin(
    name: str,
    faulty: Subject,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    # The interpreter that the `import` check starts must find the faulty module.
    monkeypatch.setenv("PYTHONPATH", str(Path(faulty_learners.__file__).parent))
    (check,) = [check for check in checks_for(faulty) if check.name == name]
    record_property("fault", [name, faulty.label, "missed"])
    with pytest.raises(AssertionError) as caught:
        check(faulty)
    assert len(str(caught.value)) > 20, "the message of a failing check says what is wrong and what to do"
    if faulty is LOUD:
        for part in ("prints", "torch's global generator", "torch's default dtype"):
            assert part in str(caught.value)
    record_property("fault", [name, faulty.label, "caught"])


@pytest.mark.parametrize(("code", "message"), [("raise SystemExit(7)", "ended the interpreter"), ("", "")])
def test_an_import_that_ends_the_interpreter_fails_and_one_without_side_effects_passes(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brief_plugin.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    brief = subject("learner", faulty_learners.Right, Entry("learner", "brief", "brief_plugin:Brief", "tests"))
    (check,) = [check for check in checks_for(brief) if check.name == "import"]
    if not message:
        check(brief)
        return
    with pytest.raises(AssertionError, match=message):
        check(brief)


def test_every_check_has_a_faulty_plugin() -> None:
    names = [check.name for check in all_checks()]
    assert len(names) == len(set(names)), "two checks have one name"
    assert set(names) == {name for name, _ in FAULTS}


@parametrize_with_checks(RIGHT)
def test_correct_plugins_pass(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.name)
def test_every_check_has_one_sentence_and_a_kind(check: Check) -> None:
    assert check.text.endswith(".")
    assert "\n" not in check.text
    assert check.kinds
