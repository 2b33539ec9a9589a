"""Rows about what holds without anything being broken: no code from data, old checkpoints, long runs, quick starts."""

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
from tests.reliability.rows import Measured, Room, row

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus" / "checkpoints"


@row(
    19,
    "no pickle, torch.load, eval, exec, shell or extractall in the source",
    goal="0 hits in any file of the core and the plugins",
)
def static_check(room: Room) -> Measured:
    """Run the test that keeps it so, and the one that such lines are seen; count files and lines."""
    passed, failed = _outcomes("test_rooms.py::test_nothing_that_runs_code_from_data")
    seen, missed = _outcomes("test_code_from_data.py::test_whatever_runs_code_from_data_is_seen")
    return Measured(
        not failed and not missed and passed > 50 and seen > 30,
        f"{failed} of {passed + failed} files have a hit; {seen} of {seen + missed} lines that should be hits are seen",
        {"files": passed + failed, "hits": failed, "seen": seen, "missed": missed},
    )


def _outcomes(test: str) -> tuple[int, int]:
    """Return how many cases of a test of the architecture pass and fail."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", f"tests/architecture/{test}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [int((re.findall(rf"(\d+) {word}", done.stdout) or [0])[0]) for word in ("passed", "failed")]
    return found[0], found[1]


@row(23, "run folders of every schema that MetaForge has written", goal="each loads and can be evaluated, for ever")
def corpus(room: Room) -> Measured:
    """Evaluate a copy of each committed run folder."""
    wrong, found = [], sorted(path.name for path in CORPUS.iterdir())
    for name in found:
        shutil.copytree(CORPUS / name, room.folder / name)
        code, said = children.finish(["evaluate", str(room.folder / name), "--json"], room.folder / "said.txt")
        wrong += [f"{name}: exit code {code}: {said[-300:]}"] if code else []
    return Measured(
        not wrong and bool(found), f"{len(found) - len(wrong)} of {len(found)} ({', '.join(found)})", {"wrong": wrong}
    )


class Meter:
    """Notes memory (bytes) and open files of the process every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[tuple[int, int]] = []

    @hookimpl
    def metaforge_after_step(self, step: int) -> None:
        """Note what the system says."""
        if step % self.every == 0:
            pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
            self.seen.append((pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))))


@row(24, "a run of 10,000 steps", goal="memory grows by less than 5 % after the first tenth, open files stay constant")
def soak(room: Room, *, steps: int = 10_000) -> Measured:
    """Train MAML on sinusoids, with a checkpoint every 500 steps and a validation every 100."""
    code, said = children.call(_soaked, str(room.folder / "run"), steps, output=room.folder / "said.txt", seconds=900)
    if code:
        raise RuntimeError(said[-300:])
    seen = json.loads(said.splitlines()[-1])
    memory, files = [one[0] for one in seen], {one[1] for one in seen}
    growth = max(memory) / memory[0] - 1
    text = f"{steps:,} steps: memory {growth:+.1%} at most ({memory[0] >> 20} MiB), open files {sorted(files)}"
    return Measured(growth < 0.05 and len(files) == 1, text, {"memory": memory, "files": sorted(files)})


def _soaked(out: str, steps: int) -> None:
    import metaforge

    values = small_runs.settings("maml", steps=steps, tasks=1, log_every=20, validate_every=max(1, steps // 100))
    values["checkpoint"]["every"] = max(1, steps // 20)
    meter = Meter(steps // 10)
    metaforge.train(values.pop("learner")["name"], settings=values, out=out, hooks=[meter])
    print(json.dumps(meter.seen))  # noqa: T201


@row(25, "start-up of `--help` and `list-plugins`", goal="at most 0.4 s and 0.5 s, torch is not imported")
def start_up(room: Room, *, times: int = 11) -> Measured:
    """Time fresh interpreters, and look for torch among what they have imported."""
    seconds: dict[str, list[float]] = {"--help": [], "list-plugins": []}
    for _ in room.counted(times):
        for word, found in seconds.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "metaforge", word], check=True, capture_output=True)
            found.append(time.perf_counter() - begun)
    heavy = [word for word in seconds if _imports_torch(word)]
    medians = {word: statistics.median(found) for word, found in seconds.items()}
    told = ", ".join(f"`{word}` {median:.2f} s" for word, median in medians.items())
    right = not heavy and medians["--help"] <= 0.4 and medians["list-plugins"] <= 0.5
    numbers: dict[str, Any] = {"seconds": seconds, "import torch": heavy}
    return Measured(right, f"{told} (median of {times}); torch {'is' if heavy else 'is not'} imported", numbers)


def _imports_torch(word: str) -> bool:
    code = (
        "import sys; from metaforge.cli.app import main; sys.argv = ['metaforge', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code, word], capture_output=True, check=False).returncode != 0
