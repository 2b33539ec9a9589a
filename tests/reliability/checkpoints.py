"""Rows about checkpoints: a save that fails at any operation, damaged checkpoints, and the cost of saving."""

from __future__ import annotations

import json
import random
import shutil
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metaforge.config.settings import CheckpointConfig
from metaforge.errors import CheckpointError, StorageError
from metaforge.runs import checkpoint
from metaforge.runs.state import Saver, State
from metaforge.system.files import remove_leftovers
from tests.reliability import children, small_runs
from tests.reliability.faults import KINDS, Faults
from tests.reliability.rows import Measured, Workspace, row


def state(step: int, *, size: int = 64) -> State:
    """Return a state whose numbers are functions of its step."""
    values = {
        f"model.{name}": torch.arange(size, dtype=torch.float32) * step + place for place, name in enumerate("ab")
    }
    training = {f"exp_avg.{name}": value / 7 for name, value in values.items()}
    return State(
        step=step, seconds=step / 3, values=values, training=training, norms=(step / 11,), best=0.5, best_step=1
    )


def is_whole(folder: Path, step: int) -> bool:
    """Return whether the checkpoint of a step equals `state(step)` bit for bit."""
    try:
        saved, expected = checkpoint.load(folder / "ckpt" / f"step-{step:07d}"), state(step)
    except CheckpointError:
        return False
    same = [
        ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        for ours, theirs in ((saved.values, expected.values), (saved.training, expected.training))
    ]
    return all(same) and saved.facts["norms"] == list(expected.norms)


def saver(folder: Path, *, keep: int = 1) -> Saver:
    """Return a saver that saves at every step, and keeps the best checkpoint and the `keep` newest ones."""
    return Saver(folder, CheckpointConfig(every=1, keep=keep), {"config": {}, "environment": {}})


@row(
    1,
    "a save that fails at each of its file operations: by SIGKILL, by an exception, by a full disk",
    goal="at least 12 operations × 3 kinds; each leaves the earlier or the new checkpoint, equal bit for bit",
)
def kill_points(workspace: Workspace, *, every: int = 1) -> Measured:
    """Make a save of step 4 fail, in a folder with checkpoints of steps 1 to 3 and in an empty one.

    Step 4 is saved as the best; a save that succeeds removes steps 1 and 2. Only every `every`-th case is tried.
    """
    before, nothing = workspace.subfolder("before"), workspace.subfolder("nothing")
    for step in (1, 2, 3):
        saver(before, keep=3).save(state(step), best=step == 1)
    points = {start: _points(start, workspace) for start in (before, nothing)}
    cases = [(start, point, kind) for start in points for point in range(len(points[start])) for kind in KINDS][::every]
    outcomes = [
        _failed_save(*cases[index], points[cases[index][0]], workspace) for index in workspace.indices(len(cases))
    ]
    failures = [outcome for outcome in outcomes if outcome]
    counts = f"{len(points[before])} operations of a later save, {len(points[nothing])} of the first"
    text = f"{len(outcomes) - len(failures)} of {len(cases)} cases ({counts}) left the earlier or the new checkpoint"
    numbers: dict[str, Any] = {
        "points": {start.name: operations for start, operations in points.items()},
        "cases": len(cases),
    }
    numbers["wrong"] = failures
    return Measured(len(outcomes) == len(cases) and not failures and len(points[before]) >= 12, text, numbers)


def _points(before: Path, workspace: Workspace) -> list[str]:
    """Return the file operations of a save that does not fail."""
    folder, seen = workspace.folder / f"{before.name}-whole", workspace.folder / "points.json"
    shutil.copytree(before, folder)
    code, output = children.call_in_process(_save, str(folder), None, "", log=seen)
    if code:
        raise RuntimeError(f"a save without faults has failed: {output}")
    operations: list[str] = json.loads(output)
    return operations


def _save(folder: str, point: int | None, kind: str) -> None:
    faults = Faults(point, kind).install()
    try:
        saver(Path(folder)).save(state(4), best=True)
    except StorageError:
        raise SystemExit(8) from None
    except RuntimeError:
        raise SystemExit(1) from None
    print(json.dumps(faults.seen))  # noqa: T201


def _failed_save(before: Path, point: int, kind: str, points: Sequence[str], workspace: Workspace) -> str:
    """Return what is wrong after a save that failed at an operation, or an empty string."""
    folder = workspace.folder / f"{before.name}-{point}-{kind}"
    shutil.copytree(before, folder)
    code, output = children.call_in_process(_save, str(folder), point, kind, log=workspace.folder / "output.txt")
    where = f"{kind} at {point} ({points[point]})"
    # Errors of `shutil.rmtree(..., ignore_errors=True)` are ignored, so the save succeeds.
    expected = {"SIGKILL": (-signal.SIGKILL,), "exception": (1,), "ENOSPC": (8, 0)}[kind]
    if code not in expected:
        return f"{where}: exit code {code}: {output[-200:]}"
    ckpt, earlier = folder / "ckpt", checkpoint.steps(before / "ckpt")[:1]
    steps_left = checkpoint.steps(ckpt)
    if steps_left[:1] not in ([4], earlier) or not all(is_whole(folder, step) for step in steps_left):
        return f"{where}: {steps_left} are left, valid: {[step for step in steps_left if is_whole(folder, step)]}"
    if checkpoint.best(ckpt) not in (steps_left if earlier else [*steps_left, None]):
        return f"{where}: the best, {checkpoint.best(ckpt)}, is missing"
    remove_leftovers(ckpt)
    if left := small_runs.leftovers(folder):
        return f"{where}: {left} is left"
    second_saver = saver(folder)
    second_saver.save(state(4), best=True)
    if not is_whole(folder, 4) or checkpoint.steps(ckpt) != [4, *earlier]:
        return f"{where}: after a second save there are {checkpoint.steps(ckpt)}"
    shutil.rmtree(folder)
    return ""


@row(
    4,
    "damaged checkpoints: truncated, a bit flipped, a block zeroed, JSON and manifest edited",
    goal="1,000 of 1,000 refused before any state changes; the message names the file; the previous one is used",
)
def damaged(workspace: Workspace, *, count: int = 1000, resumes: int = 10) -> Measured:
    """Damage the last of two checkpoints, `count` times; `resumes` times the run is also resumed."""
    file = small_runs.write_run_file(workspace.folder / "run.toml", small_runs.settings("maml", steps=6))
    children.run_successfully(
        ["train", "--config", str(file), "--out", str(workspace.folder / "run"), "--no-progress"],
        workspace.folder / "output.txt",
    )
    uninterrupted = small_runs.digest(workspace.folder / "run")
    before = {path: path.read_bytes() for path in (workspace.folder / "run" / "ckpt").rglob("*") if path.is_file()}
    generator, tried, failures = random.Random(4), Counter[str](), []
    kinds = [kind for kind, share in (("truncation", 3), ("bit", 4), ("block", 2), ("edit", 1)) for _ in range(share)]
    for index in workspace.indices(count):
        kind = kinds[index % len(kinds)]
        damage = _damage(workspace.folder / "run" / "ckpt" / "step-0000006", kind, generator)
        complaint = _refused(workspace.folder / "run" / "ckpt", damage)
        if not complaint and resumes and index % (count // resumes + 1) == 0:
            output = children.run_successfully(
                ["train", "--resume", str(workspace.folder / "run"), "--no-progress"], workspace.folder / "output.txt"
            )
            if f"Warning: The checkpoint file {damage.name}" not in output and damage.name != "MANIFEST.json":
                complaint = "the resumed run does not name the file"
            if small_runs.digest(workspace.folder / "run") != uninterrupted:
                complaint = "the result of the resumed run differs"
        failures += [f"{kind} of {damage.name}: {complaint}"] if complaint else []
        tried[kind] += 1
        shutil.rmtree(workspace.folder / "run" / "ckpt")
        for path, data in before.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    done = tried.total()
    text = (
        f"{done - len(failures)} of {count} refused, the previous checkpoint used ({resumes} of them in a resumed run)"
    )
    return Measured(done == count and not failures, text, {"tried": dict(tried), "wrong": failures[:20]})


def _damage(path: Path, kind: str, generator: random.Random) -> Path:
    """Damage one file of a checkpoint, and return its path."""
    names = ("model.safetensors", "train.safetensors", "state.json", "MANIFEST.json")
    file = path / generator.choice(names if kind != "edit" else names[2:])
    data = bytearray(file.read_bytes())
    if kind == "truncation":
        file.write_bytes(data[: generator.randrange(len(data))])
    elif kind == "bit":
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        file.write_bytes(data)
    elif kind == "block":
        # A block that is not zero already.
        start = generator.choice([place for place in range(0, len(data), 64) if any(data[place : place + 64])])
        data[start : start + 512] = bytes(len(data[start : start + 512]))
        file.write_bytes(data)
    else:
        content = json.loads(data)
        _edit(content, generator)
        file.write_text(json.dumps(content, indent=1))
    return file


def _edit(content: dict[str, Any], generator: random.Random) -> None:
    """Change a name or a value somewhere in a JSON object."""
    inner = [value for value in content.values() if isinstance(value, dict) and value]
    target = generator.choice([content, *inner])
    name = generator.choice(list(target))
    value = target.pop(name)
    if generator.random() < 0.3:
        target[f"{name}x"] = value
    elif generator.random() < 0.7:
        changes: list[Any] = [None, 0, -1, 1 << 60, 10**30, "x", [], {}, True, 1e308, "../x", [value]]
        target[name] = generator.choice([change for change in changes if change != value])


def _refused(folder: Path, file: Path) -> str:
    """Return what is wrong with how a damaged checkpoint is refused, or an empty string."""
    try:
        checkpoint.load(file.parent)
        return "it was loaded"
    except CheckpointError as error:
        if str(file.parent) not in error.where or (file.name not in str(error) and file.name != "MANIFEST.json"):
            return f"the message does not name the file: {error}"
    latest, bad = checkpoint.load_latest(folder)
    return "" if (latest.step, len(bad)) == (5, 1) else f"step {latest.step} would be used"


@row(27, "the cost of saving at the default interval", goal="at most 2 % of the training time")
def overhead(workspace: Workspace, *, saves: int = 10) -> Measured:
    """Compare the time of a save of MAML on its default network, with the state of Adam, to the default interval."""
    import metaforge

    config = {"train": {"tasks": 1, "steps": 2}, "engine": {"threads": 1}, "evaluate": {"tasks": 2}}
    config |= {"dataset": {"name": "glyphs", "train": 20, "val": 10, "test": 10}}
    run = metaforge.train("maml", settings=config, out=workspace.folder / "run")
    saved = checkpoint.load_latest(run.folder / "ckpt")[0]
    interval = CheckpointConfig().interval
    seconds, saving = [], Saver(workspace.subfolder("saved"), CheckpointConfig(), {})
    for index in workspace.indices(saves):
        start = time.perf_counter()
        saving.save(State(step=index + 1, values=saved.values, training=saved.training))
        seconds.append(time.perf_counter() - start)
    numbers = sum(value.numel() for value in saved.values.values())
    share = max(seconds) / interval
    text = (
        f"{share:.3%} of the time: the slowest of {len(seconds)} saves took {1e3 * max(seconds):.0f} ms"
        f" (median {1e3 * statistics.median(seconds):.0f} ms, {numbers:,} parameters and the state of Adam), one save"
        f" every {interval:.0f} s"
    )
    return Measured(len(seconds) == saves and share <= 0.02, text, {"seconds": seconds, "interval": interval})
