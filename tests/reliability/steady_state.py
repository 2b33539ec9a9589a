"""Rows in which nothing is broken: no code from data, checkpoints of old schemas, long runs, fast start-up."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from metaforge import hookimpl
from tests.reliability import children, small_runs
from tests.reliability.rows import Measured, Workspace, row

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus" / "checkpoints"


@row(
    19,
    "no pickle, torch.load, eval, exec, shell or extractall in the source",
    goal="0 hits in any file of the core and the plugins",
)
def static_check(workspace: Workspace) -> Measured:
    """Run the test that searches the source, and the test of the search itself; count files and lines."""
    passed, failed = _outcomes("test_rooms.py::test_nothing_that_runs_code_from_data")
    seen, missed = _outcomes("test_code_from_data.py::test_every_way_of_running_code_from_data_is_found")
    return Measured(
        not failed and not missed and passed > 50 and seen > 30,
        f"{failed} of {passed + failed} files have a hit; {seen} of {seen + missed} lines that must be hits are found",
        {"files": passed + failed, "hits": failed, "seen": seen, "missed": missed},
    )


def _outcomes(test: str) -> tuple[int, int]:
    """Return how many cases of a test in tests/architecture pass and fail."""
    arguments = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", f"tests/architecture/{test}"]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    counts = [int((re.findall(rf"(\d+) {word}", process.stdout) or [0])[0]) for word in ("passed", "failed")]
    return counts[0], counts[1]


@row(
    23, "run folders of every checkpoint schema so far", goal="each can be loaded and evaluated by every later version"
)
def corpus(workspace: Workspace) -> Measured:
    """Evaluate a copy of each committed run folder."""
    failures, names = [], sorted(path.name for path in CORPUS.iterdir())
    for name in names:
        shutil.copytree(CORPUS / name, workspace.folder / name)
        code, output = children.run_command(
            ["evaluate", str(workspace.folder / name), "--json"], workspace.folder / "output.txt"
        )
        failures += [f"{name}: exit code {code}: {output[-300:]}"] if code else []
    return Measured(
        not failures and bool(names),
        f"{len(names) - len(failures)} of {len(names)} ({', '.join(names)})",
        {"wrong": failures},
    )


class Meter:
    """A hook that stores the memory (bytes) and the number of open files of the process every `every` steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[tuple[int, int]] = []

    @hookimpl
    def metaforge_after_step(self, step: int) -> None:
        """Store both numbers."""
        if step % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
            self.seen.append((pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))))


@row(24, "a run of 10,000 steps", goal="memory grows by less than 5 % after the first tenth, open files stay constant")
def soak(workspace: Workspace, *, steps: int = 10_000) -> Measured:
    """Train MAML on sinusoids with 20 checkpoints and 100 validations, and measure ten times."""
    code, output = children.call_in_process(
        _train_metered, str(workspace.folder / "run"), steps, log=workspace.folder / "output.txt", seconds=900
    )
    if code:
        raise RuntimeError(output[-300:])
    seen = json.loads(output.splitlines()[-1])
    memory, files = [one[0] for one in seen], {one[1] for one in seen}
    growth = max(memory) / memory[0] - 1
    text = f"{steps:,} steps: memory {growth:+.1%} at most ({memory[0] >> 20} MiB), open files {sorted(files)}"
    return Measured(growth < 0.05 and len(files) == 1, text, {"memory": memory, "files": sorted(files)})


def _train_metered(out: str, steps: int) -> None:
    import metaforge

    values = small_runs.settings("maml", steps=steps, tasks=1, log_every=20, validate_every=max(1, steps // 100))
    values["checkpoint"]["every"] = max(1, steps // 20)
    meter = Meter(steps // 10)
    metaforge.train(values.pop("learner")["name"], settings=values, out=out, hooks=[meter])
    print(json.dumps(meter.seen))  # noqa: T201


@row(25, "start-up of `--help` and `list-plugins`", goal="at most 0.4 s and 0.5 s, torch is not imported")
def start_up(workspace: Workspace, *, times: int = 11) -> Measured:
    """Time fresh interpreters, and look for torch among their imported modules."""
    seconds: dict[str, list[float]] = {"--help": [], "list-plugins": []}
    for _ in workspace.indices(times):
        for argument, durations in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "metaforge", argument], check=True, capture_output=True)
            durations.append(time.perf_counter() - start)
    importing_torch = [argument for argument in seconds if _imports_torch(argument)]
    medians = {argument: statistics.median(durations) for argument, durations in seconds.items()}
    medians_text = ", ".join(f"`{argument}` {median:.2f} s" for argument, median in medians.items())
    passed = not importing_torch and medians["--help"] <= 0.4 and medians["list-plugins"] <= 0.5
    numbers: dict[str, Any] = {"seconds": seconds, "import torch": importing_torch}
    return Measured(
        passed, f"{medians_text} (median of {times}); torch {'is' if importing_torch else 'is not'} imported", numbers
    )


def _imports_torch(argument: str) -> bool:
    code = (
        "import sys; from metaforge.cli.app import main; sys.argv = ['metaforge', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code, argument], capture_output=True, check=False).returncode != 0
