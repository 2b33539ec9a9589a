"""Row 37: runs with compiled steps, interrupted and resumed by other processes."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

from metaforge.runs import checkpoint
from tests.reliability import children, small_runs
from tests.reliability.rows import Measured, Workspace, row

_CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143}


@row(
    37,
    "compiled runs of three learners, each interrupted several times by SIGKILL between two checkpoints, or by SIGTERM",
    goal="at least 24 interruptions; values, optimiser state and metrics equal to the uninterrupted run bit for bit;"
    " each resume is exact",
)
def compiled_runs(
    workspace: Workspace,
    *,
    times: int = 4,
    learners: Sequence[str] = ("maml", "fomaml", "cnp"),
    stop_signals: Sequence[signal.Signals] = (*_CODES,),
    steps: int = 400,
    fresh: bool = True,
) -> Measured:
    """Interrupt the run of each learner `times` times by each signal; with `fresh`, in a new interpreter each time."""
    cases = [(learner, stop_signal) for learner in learners for stop_signal in stop_signals]
    digests: dict[str, str] = {}
    failures, done, unsaved = [], 0, 0
    for index in workspace.indices(len(cases)):
        learner, stop_signal = cases[index]
        values = small_runs.settings(learner, steps=steps, log_every=1, validate_every=steps // 4)
        values |= {"engine": {"threads": 1, "compile": "on"}, "checkpoint": {"every": 7}}
        file = small_runs.write_run_file(workspace.folder / f"{learner}.toml", values)
        out, whole = workspace.folder / f"{learner}-{stop_signal.name}", workspace.folder / f"{learner}-whole"
        log = workspace.folder / "output.txt"
        if learner not in digests:
            children.run_successfully(_train(file, whole), log)
            digests[learner] = small_runs.digest(whole)
        for time in range(times):
            with children.running(_train(file, out), log, fresh=fresh) as child:
                # In the first half of the run, so that it is not over before the signal arrives.
                _pause_unsaved(child, out, (time + 1) * steps // (2 * times + 2))
                child.send(stop_signal)
                child.send(signal.SIGCONT)
                if (code := child.wait()) != _CODES[stop_signal]:
                    failures.append(f"{out.name}: exit code {code}: {child.output()[-300:]}")
            done += 1
            unsaved += _recorded(out) > _saved(out)
        children.run_successfully(_train(file, out), log)
        failures += _complaints(out, digests[learner], times)
    text = (
        f"{done} interruptions of runs of {len(learners)} learners, {unsaved} of them after steps that were not saved;"
        f" {len(failures)} runs were wrong"
    )
    return Measured(done == times * len(cases) and unsaved > 0 and not failures, text, {"wrong": failures[:20]})


def _train(file: Path, out: Path) -> list[str]:
    """Return the command that starts a run, or resumes it if its folder exists."""
    known = ["--resume", str(out)] if (out / "config.toml").is_file() else ["--config", str(file), "--out", str(out)]
    return ["train", "--no-progress", *known]


def _pause_unsaved(child: children.Child, out: Path, step: int) -> None:
    """Pause a run after a step that is not saved, at the earliest after `step`."""

    def paused() -> bool:
        if _recorded(out) < step:
            return False
        child.send(signal.SIGSTOP)
        if _recorded(out) > _saved(out):
            return True
        child.send(signal.SIGCONT)
        return False

    # Compilation takes most of the time.
    child.wait_for(paused, seconds=120.0)


def _saved(out: Path) -> int:
    return max(checkpoint.steps(out / "ckpt"), default=0)


def _recorded(out: Path) -> int:
    """Return the number of steps in the metrics of a run; it records each."""
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def _complaints(out: Path, digest: str, times: int) -> list[str]:
    """Return what is wrong with a run that was interrupted `times` times: its result, or how it was computed."""
    environment = json.loads((out / "env.json").read_text("utf-8"))
    exact = [resume["exact"] for resume in environment["resumed"]]
    found = {
        "its result differs": small_runs.digest(out) != digest,
        f"its resumes are {exact}": exact != [True] * times,
        "its steps are not compiled": not environment["compiled"],
        "temporary files are left over": bool(small_runs.leftovers(out)),
    }
    return [f"{out.name}: {complaint}" for complaint, wrong in found.items() if wrong]
