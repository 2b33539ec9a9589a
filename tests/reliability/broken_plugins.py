"""The row about broken third-party plugins."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.reliability.rows import Measured, Workspace, row

_ROOT, _TESTS = Path(__file__).parents[2], "tests/thirdparty/test_hostile.py"


@row(
    20,
    "ten broken plugins installed together: they raise, exit, sleep, print, lack a module, violate the contract, claim"
    " a taken name, or are no class",
    goal="`--help`, `list-plugins` and other learners work and take no longer; 0 imports when listing; each"
    " fault is reported",
)
def broken_plugins(workspace: Workspace) -> Measured:
    """Run the tests that install these plugins, and count the outcomes."""
    return tested(f"with all ten installed pass ({_TESTS})", _TESTS)


_RUNS, _RESULTS = "tests/metaforge/runs", "tests/metaforge/results"


@row(
    34,
    "a learner, an adapter or a data set that fails while a run computes: it exits, recurses, asserts, returns another"
    " type, a detached loss or a meta tensor, or changes its inputs, under every plan, compiled, and in evaluations",
    goal="exit code 4 in the command and in status.json; the message names the plugin, and the outer step or the"
    " episodes",
)
def failing_plugins(workspace: Workspace) -> Measured:
    """Run the tests of these failures, and count the outcomes."""
    return tested("pass", f"{_RUNS}/test_worker.py", f"{_RESULTS}/test_evaluate.py", "-k", "named or fault or change")


@row(
    35,
    "stderr on a full disk, closed, or closed by a hook; stdout closed or full; SIGHUP to one process, to a launcher of"
    " two processes, and under nohup",
    goal="the run is finished or saved, nothing but JSON is on stdout, status.json and the exit code (0, or 129) agree",
)
def streams_and_hangups(workspace: Workspace) -> Measured:
    """Run the tests that start such commands, and count the outcomes."""
    paths = ("tests/metaforge/system/test_streams.py", "tests/metaforge/engine/test_launcher.py")
    return tested("pass", *paths, "-k", "run or hook or answer or signal or hangup")


@row(
    36,
    "a hook with a state that could not be loaded again, and one that damages metrics.jsonl, `pictures` or report.md",
    goal="refused when it is saved, with everything else saved; status.json has the exit code of the command",
)
def harmful_hooks(workspace: Workspace) -> Measured:
    """Run the tests of such hooks, and count the outcomes."""
    return tested("pass", f"{_RUNS}/test_state.py", f"{_RUNS}/test_ending.py")


def tested(what: str, *arguments: str) -> Measured:
    """Run some tests in a new process, and return how many of them pass."""
    command = [sys.executable, "-m", "pytest", "-rN", "-p", "no:cacheprovider", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    passed = sum(map(int, re.findall(r"(\d+) passed", process.stdout)))
    failed = sum(map(int, re.findall(r"(\d+) (?:failed|error)", process.stdout)))
    text = f"{passed} of {passed + failed} tests {what}"
    return Measured(process.returncode == 0 and passed > 0, text, {"passed": passed, "failed": failed})
