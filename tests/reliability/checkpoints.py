"""Rows about checkpoints: a save that fails at any point, damage, and what saving costs."""

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
from tests.reliability.rows import Measured, Room, row


def state(step: int, *, size: int = 64) -> State:
    """Return a state whose every number follows from its step."""
    values = {
        f"model.{name}": torch.arange(size, dtype=torch.float32) * step + place for place, name in enumerate("ab")
    }
    training = {f"exp_avg.{name}": value / 7 for name, value in values.items()}
    return State(
        step=step, seconds=step / 3, values=values, training=training, norms=(step / 11,), best=0.5, best_step=1
    )


def is_whole(folder: Path, step: int) -> bool:
    """Return whether the checkpoint of a step is what `state` gives, to the bit."""
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
    """Return what saves in these rows: one checkpoint is kept, beside the best."""
    return Saver(folder, CheckpointConfig(every=1, keep=keep), {"config": {}, "environment": {}})


@row(
    1,
    "a save fails at each of its file operations: killed, by an exception, by a full disk",
    goal="at least 12 points × 3, each leaves a loadable earlier or new checkpoint, equal to the bit",
)
def kill_points(room: Room, *, every: int = 1) -> Measured:
    """Save step 4 as the best, where steps 1 to 3 and `BEST` are there (1 and 2 go) and where nothing is.

    Fail at every `every`-th case.
    """
    before, nothing = room.sub("before"), room.sub("nothing")
    for step in (1, 2, 3):
        saver(before, keep=3).save(state(step), best=step == 1)
    points = {begun: _points(begun, room) for begun in (before, nothing)}
    cases = [(begun, point, kind) for begun in points for point in range(len(points[begun])) for kind in KINDS][::every]
    outcomes = [_failed_save(*cases[index], points[cases[index][0]], room) for index in room.counted(len(cases))]
    wrong = [outcome for outcome in outcomes if outcome]
    counts = f"{len(points[before])} points of a later save, {len(points[nothing])} of the first"
    text = f"{len(outcomes) - len(wrong)} of {len(cases)} cases ({counts}) left what was there, or the new one, to load"
    numbers = {"points": {begun.name: found for begun, found in points.items()}, "cases": len(cases), "wrong": wrong}
    return Measured(len(outcomes) == len(cases) and not wrong and len(points[before]) >= 12, text, numbers)


def _points(before: Path, room: Room) -> list[str]:
    """Return the operations of a save that does not fail."""
    folder, seen = room.folder / f"{before.name}-whole", room.folder / "points.json"
    shutil.copytree(before, folder)
    code, said = children.call(_save, str(folder), None, "", output=seen)
    if code:
        raise RuntimeError(f"a save without faults has failed: {said}")
    found: list[str] = json.loads(said)
    return found


def _save(folder: str, point: int | None, kind: str) -> None:
    faults = Faults(point, kind).install()
    try:
        saver(Path(folder)).save(state(4), best=True)
    except StorageError:
        raise SystemExit(8) from None
    except RuntimeError:
        raise SystemExit(1) from None
    print(json.dumps(faults.seen))  # noqa: T201


def _failed_save(before: Path, point: int, kind: str, points: Sequence[str], room: Room) -> str:
    """Return what is wrong after a save that failed at a point, an empty text if nothing is."""
    folder = room.folder / f"{before.name}-{point}-{kind}"
    shutil.copytree(before, folder)
    code, said = children.call(_save, str(folder), point, kind, output=room.folder / "said.txt")
    where = f"{kind} at {point} ({points[point]})"
    # A removal of what is no longer there may fail unnoticed.
    expected = {"SIGKILL": (-signal.SIGKILL,), "exception": (1,), "ENOSPC": (8, 0)}[kind]
    if code not in expected:
        return f"{where}: exit code {code}: {said[-200:]}"
    ckpt, earlier = folder / "ckpt", checkpoint.steps(before / "ckpt")[:1]
    found = checkpoint.steps(ckpt)
    if found[:1] not in ([4], earlier) or not all(is_whole(folder, step) for step in found):
        return f"{where}: {found} are there, whole: {[step for step in found if is_whole(folder, step)]}"
    if checkpoint.best(ckpt) not in (found if earlier else [*found, None]):
        return f"{where}: the best, {checkpoint.best(ckpt)}, is gone"
    remove_leftovers(ckpt)
    if left := small_runs.leftovers(folder):
        return f"{where}: {left} is left"
    again = saver(folder)
    again.save(state(4), best=True)
    if not is_whole(folder, 4) or checkpoint.steps(ckpt) != [4, *earlier]:
        return f"{where}: saved again, there are {checkpoint.steps(ckpt)}"
    shutil.rmtree(folder)
    return ""


@row(
    4,
    "damaged checkpoints: truncated, a bit flipped, a block zeroed, JSON and manifest edited",
    goal="1,000 of 1,000 refused before any state changes; the message names the file; the one before serves",
)
def damaged(room: Room, *, count: int = 1000, resumes: int = 10) -> Measured:
    """Damage the last of two checkpoints, `count` times; `resumes` times a run is resumed from what is left."""
    file = small_runs.write_run_file(room.folder / "run.toml", small_runs.settings("maml", steps=6))
    finished(["train", "--config", str(file), "--out", str(room.folder / "run"), "--no-progress"], room)
    whole = small_runs.digest(room.folder / "run")
    before = {path: path.read_bytes() for path in (room.folder / "run" / "ckpt").rglob("*") if path.is_file()}
    draw, tried, wrong = random.Random(4), Counter[str](), []
    kinds = [kind for kind, share in (("truncation", 3), ("bit", 4), ("block", 2), ("edit", 1)) for _ in range(share)]
    for index in room.counted(count):
        kind = kinds[index % len(kinds)]
        damage = _damage(room.folder / "run" / "ckpt" / "step-0000006", kind, draw)
        complaint = _refused(room.folder / "run" / "ckpt", damage)
        if not complaint and resumes and index % (count // resumes + 1) == 0:
            said = finished(["train", "--resume", str(room.folder / "run"), "--no-progress"], room)
            if f"Warning: The checkpoint file {damage.name}" not in said and damage.name != "MANIFEST.json":
                complaint = "the resumed run does not name it"
            if small_runs.digest(room.folder / "run") != whole:
                complaint = "the resumed run came to something else"
        wrong += [f"{kind} of {damage.name}: {complaint}"] if complaint else []
        tried[kind] += 1
        shutil.rmtree(room.folder / "run" / "ckpt")
        for path, data in before.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    done = tried.total()
    text = f"{done - len(wrong)} of {count} refused, the one before served ({resumes} of them in a resumed run)"
    return Measured(done == count and not wrong, text, {"tried": dict(tried), "wrong": wrong[:20]})


def _damage(path: Path, kind: str, draw: random.Random) -> Path:
    """Damage one file of a checkpoint, and return its path."""
    names = ("model.safetensors", "train.safetensors", "state.json", "MANIFEST.json")
    file = path / draw.choice(names if kind != "edit" else names[2:])
    data = bytearray(file.read_bytes())
    if kind == "truncation":
        file.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "bit":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
    elif kind == "block":
        # One that is not zero already.
        start = draw.choice([place for place in range(0, len(data), 64) if any(data[place : place + 64])])
        data[start : start + 512] = bytes(len(data[start : start + 512]))
        file.write_bytes(data)
    else:
        content = json.loads(data)
        _edit(content, draw)
        file.write_text(json.dumps(content, indent=1))
    return file


def _edit(content: dict[str, Any], draw: random.Random) -> None:
    """Change a name or a value somewhere in a JSON object."""
    inner = [value for value in content.values() if isinstance(value, dict) and value]
    target = draw.choice([content, *inner])
    name = draw.choice(list(target))
    value = target.pop(name)
    if draw.random() < 0.3:
        target[f"{name}x"] = value
    elif draw.random() < 0.7:
        changes: list[Any] = [None, 0, -1, 1 << 60, 10**30, "x", [], {}, True, 1e308, "../x", [value]]
        target[name] = draw.choice([change for change in changes if change != value])


def _refused(folder: Path, file: Path) -> str:
    """Return what is wrong with how a damaged checkpoint is refused, an empty text if nothing is."""
    try:
        checkpoint.load(file.parent)
        return "it was loaded"
    except CheckpointError as error:
        if str(file.parent) not in error.where or (file.name not in str(error) and file.name != "MANIFEST.json"):
            return f"the message does not name it: {error}"
    latest, bad = checkpoint.load_latest(folder)
    return "" if (latest.step, len(bad)) == (5, 1) else f"step {latest.step} would serve"


def finished(words: Sequence[str], room: Room) -> str:
    """Return what a command said that must not fail."""
    code, said = children.finish(words, room.folder / "said.txt")
    if code:
        raise RuntimeError(f"exit code {code}: {said[-300:]}")
    return said


@row(27, "what saving costs at the default interval", goal="at most 2 % of the time of training")
def overhead(room: Room, *, saves: int = 10) -> Measured:
    """Time saves of MAML on its default network, Adam's memory included, against the interval between them."""
    import metaforge

    config = {"train": {"tasks": 1, "steps": 2}, "engine": {"threads": 1}, "evaluate": {"tasks": 2}}
    config |= {"dataset": {"name": "glyphs", "train": 20, "val": 10, "test": 10}}
    run = metaforge.train("maml", settings=config, out=room.folder / "run")
    saved = checkpoint.load_latest(run.folder / "ckpt")[0]
    one = State(step=0, values=saved.values, training=saved.training)
    interval = CheckpointConfig().interval
    seconds, keep = [], Saver(room.sub("saved"), CheckpointConfig(), {})
    for index in room.counted(saves):
        begun = time.perf_counter()
        keep.save(State(step=index + 1, values=one.values, training=one.training))
        seconds.append(time.perf_counter() - begun)
    numbers = sum(value.numel() for value in saved.values.values())
    share = max(seconds) / interval
    text = (
        f"{share:.3%} of the time: the slowest of {len(seconds)} saves took {1e3 * max(seconds):.0f} ms"
        f" (median {1e3 * statistics.median(seconds):.0f} ms, {numbers:,} parameters and Adam's memory), one each"
        f" {interval:.0f} s"
    )
    return Measured(len(seconds) == saves and share <= 0.02, text, {"seconds": seconds, "interval": interval})
