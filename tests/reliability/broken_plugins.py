"""The row about broken third-party plugins."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.reliability.rows import Measured, Workspace, row

_TESTS = Path(__file__).parents[2] / "tests" / "thirdparty" / "test_hostile.py"


@row(
    20,
    "ten broken plugins installed together: they raise, exit, sleep, print, lack a module, violate the contract, claim"
    " a taken name, or are no class",
    goal="`--help`, `list-plugins` and other learners work and take no longer; 0 imports when listing; each"
    " fault is reported",
)
def broken_plugins(workspace: Workspace) -> Measured:
    """Run the tests that install these plugins, and count the outcomes."""
    command = [sys.executable, "-m", "pytest", "-rN", "-p", "no:cacheprovider", str(_TESTS)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_TESTS.parents[2])
    passed = sum(map(int, re.findall(r"(\d+) passed", process.stdout)))
    failed = sum(map(int, re.findall(r"(\d+) (?:failed|error)", process.stdout)))
    text = f"{passed} of {passed + failed} tests with all ten installed pass (tests/thirdparty/test_hostile.py)"
    return Measured(process.returncode == 0 and passed > 0, text, {"passed": passed, "failed": failed})
