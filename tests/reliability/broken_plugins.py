"""The row about plugins of strangers that are broken."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.reliability.rows import Measured, Room, row

_TESTS = Path(__file__).parents[2] / "tests" / "thirdparty" / "test_hostile.py"


@row(
    20,
    "ten broken plugins at once: raise, exit, sleep, print, lack a module, break the contract, take a name, no class",
    goal="`--help`, `list-plugins` and other learners work and take no longer; 0 imports when listing; each is told",
)
def broken_plugins(room: Room) -> Measured:
    """Run the tests that install them."""
    command = [sys.executable, "-m", "pytest", "-rN", "-p", "no:cacheprovider", str(_TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_TESTS.parents[2])
    passed = sum(map(int, re.findall(r"(\d+) passed", done.stdout)))
    failed = sum(map(int, re.findall(r"(\d+) (?:failed|error)", done.stdout)))
    text = f"{passed} of {passed + failed} tests with all ten installed pass (tests/thirdparty/test_hostile.py)"
    return Measured(done.returncode == 0 and passed > 0, text, {"passed": passed, "failed": failed})
