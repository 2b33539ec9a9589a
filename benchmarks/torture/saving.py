"""Rows about checkpoints: a save that fails at any point, damage, a full disk, and what saving costs."""

from __future__ import annotations

import json
import random
import shutil
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.torture import children, small
from benchmarks.torture.faults import KINDS, Faults
from benchmarks.torture.rows import Measured, Room, row
from metaforge import checkpoint
from metaforge.errors import CheckpointError, StorageError
from metaforge.sections import CheckpointConfig
from metaforge.state import Saver, State


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
    """Save step 4 as the best (steps 1 to 3 and `BEST` are there, 1 and 2 go), and fail at every `every`-th case."""
    before = room.sub("before")
    for step in (1, 2, 3):
        saver(before, keep=3).save(state(step), best=step == 1)
    points = _points(before, room)
    cases = [(point, kind) for point in range(len(points)) for kind in KINDS][::every]
    outcomes = [_failed_save(before, room, *cases[index], points) for index in room.counted(len(cases))]
    wrong = [outcome for outcome in outcomes if outcome]
    text = f"{len(outcomes) - len(wrong)} of {len(cases)} cases ({len(points)} points) left a checkpoint to load"
    numbers = {"points": points, "cases": len(cases), "wrong": wrong}
    return Measured(len(outcomes) == len(cases) and not wrong and len(points) >= 12, text, numbers)


def _points(before: Path, room: Room) -> list[str]:
    """Return the operations of a save that does not fail."""
    folder, seen = room.folder / "whole", room.folder / "points.json"
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


def _failed_save(before: Path, room: Room, point: int, kind: str, points: Sequence[str]) -> str:
    """Return what is wrong after a save that failed at a point, an empty text if nothing is."""
    folder = room.folder / f"{point}-{kind}"
    shutil.copytree(before, folder)
    code, said = children.call(_save, str(folder), point, kind, output=room.folder / "said.txt")
    where = f"{kind} at {point} ({points[point]})"
    # A removal of what is no longer there may fail unnoticed.
    expected = {"SIGKILL": (-signal.SIGKILL,), "exception": (1,), "ENOSPC": (8, 0)}[kind]
    if code not in expected:
        return f"{where}: exit code {code}: {said[-200:]}"
    ckpt = folder / "ckpt"
    latest, bad = checkpoint.load_latest(ckpt)
    if latest.step not in (3, 4) or bad or not all(is_whole(folder, step) for step in checkpoint.steps(ckpt)):
        return f"{where}: step {latest.step} is the last one, {len(bad)} are damaged"
    if checkpoint.best(ckpt) not in checkpoint.steps(ckpt):
        return f"{where}: the best, {checkpoint.best(ckpt)}, is gone"
    checkpoint.sweep(ckpt)
    if left := small.leftovers(folder):
        return f"{where}: {left} is left"
    again = saver(folder)
    again.save(state(4), best=True)
    if not is_whole(folder, 4) or checkpoint.steps(ckpt) != [4, 3]:
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
    file = small.write_run_file(room.folder / "run.toml", small.settings("maml", steps=6))
    _done(["train", "--config", str(file), "--out", str(room.folder / "run"), "--no-progress"], room)
    whole = small.digest(room.folder / "run")
    before = {path: path.read_bytes() for path in (room.folder / "run" / "ckpt").rglob("*") if path.is_file()}
    draw, tried, wrong = random.Random(4), Counter[str](), []
    kinds = [kind for kind, share in (("truncation", 3), ("bit", 4), ("block", 2), ("edit", 1)) for _ in range(share)]
    for index in room.counted(count):
        kind = kinds[index % len(kinds)]
        damage = _damage(room.folder / "run" / "ckpt" / "step-0000006", kind, draw)
        complaint = _refused(room.folder / "run" / "ckpt", damage)
        if not complaint and resumes and index % (count // resumes + 1) == 0:
            said = _done(["train", "--resume", str(room.folder / "run"), "--no-progress"], room)
            if f"Warning: The checkpoint file {damage.name}" not in said and damage.name != "MANIFEST.json":
                complaint = "the resumed run does not name it"
            if small.digest(room.folder / "run") != whole:
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
        changes: list[Any] = [None, 0, -1, "x", [], {}, True, 1e308, "../x", [value]]
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


def _done(words: Sequence[str], room: Room) -> str:
    """Return what a command said that must not fail."""
    code, said = children.finish(words, room.folder / "said.txt")
    if code:
        raise RuntimeError(f"exit code {code}: {said[-300:]}")
    return said


@row(
    5,
    "storage full at 10 byte limits, full disk, quota, no folder where one should be, vanished folder",
    goal="exit code 8, bytes needed and free are told, checkpoints that were there byte-identical",
)
def full_storage(room: Room, *, limits: int = 10) -> Measured:
    """Resume a run of four steps while no file may get larger than a limit, and in the other ways that storage ends."""
    values = small.settings("protonet", steps=4, log_every=1)
    # Nothing is pruned: what is there before has to be there afterwards.
    values["checkpoint"]["keep"] = 100
    file = small.write_run_file(room.folder / "run.toml", values)
    _done(["train", "--config", str(file), "--out", str(room.folder / "run"), "--no-progress"], room)
    sizes = [path.stat().st_size for path in (room.folder / "run" / "ckpt").rglob("*.safetensors")]
    cases: dict[str, tuple[Callable[..., None], Any]] = {
        f"files of at most {limit} bytes": (_limited, limit)
        for limit in (max(sizes) * index // limits for index in range(limits))
    }
    cases |= {"full disk": (_full, 1000), "quota": (_quota, 0), "vanished folder": (_vanishing, 0)}
    cases |= {"a file where a folder should be": (_blocked, 0)}
    wrong, done = [], 0
    for index in room.counted(len(cases)):
        name, (function, argument) = list(cases.items())[index]
        complaint = _starved(room, function, argument)
        wrong += [f"{name}: {complaint}"] if complaint else []
        done += 1
    mounted = _small_disk(room, file)
    wrong += [f"small disk: {mounted}"] if mounted else []
    ways = "" if mounted is None else ", and a run on a disk of 200 kB"
    text = f"{done - len(wrong)} of {len(cases)} ways ended with exit code 8 and every checkpoint as it was{ways}"
    numbers = {"ways": [*cases], "small disk": "could not be mounted" if mounted is None else "ran", "wrong": wrong}
    return Measured(done == len(cases) and not wrong, text, numbers)


def _starved(room: Room, function: Callable[..., None], argument: int) -> str:
    """Return what is wrong with how a resumed run ends without storage, an empty text if nothing is."""
    run = room.folder / "starved"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(room.folder / "run", run)
    before = {path: path.read_bytes() for path in sorted((run / "ckpt").rglob("*")) if path.is_file()}
    code, said = children.call(function, str(run), argument, output=room.folder / "said.txt")
    if code != 8:
        return f"exit code {code}: {said[-300:]}"
    if "Traceback" in said or " are free." not in said:
        return f"it says {said[-300:]}"
    gone = function is _vanishing
    changed = [
        path.name for path, data in before.items() if not gone and not (path.is_file() and path.read_bytes() == data)
    ]
    # `LATEST` and `BEST` may name a new one.
    return f"changed: {changed}" if [name for name in changed if name not in ("LATEST", "BEST")] else ""


def _run(words: Sequence[str]) -> tuple[int, str]:
    """Run a command in this process, its words for people in memory: they need no storage."""
    import io
    import sys

    from metaforge.cli.app import main

    sys.argv, sys.stderr, sys.stdout = ["metaforge", *words], io.StringIO(), io.StringIO()
    try:
        main()
        return 0, sys.stderr.getvalue()
    except SystemExit as stop:
        return int(stop.code or 0), sys.stderr.getvalue()


def _ended(code: int, said: str) -> None:
    import os

    os.write(2, said.encode())
    raise SystemExit(code)


def _longer(run: str) -> list[str]:
    return ["train", "--resume", run, "--steps", "8", "--no-progress"]


def _limited(run: str, limit: int) -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    ended = _run(_longer(run))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    _ended(*ended)


def _full(run: str, free: int) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - free, free)
    shutil.disk_usage = lambda path: usage
    _ended(*_run(_longer(run)))


def _quota(run: str, argument: int) -> None:
    # Operation 40 is in the midst of what a resumed run writes.
    Faults(40, "EDQUOT").install()
    _ended(*_run(_longer(run)))


def _blocked(run: str, argument: int) -> None:
    _ended(*_run(["train", "--config", f"{run}/config.toml", "--out", f"{run}/command.txt/run", "--no-progress"]))


class _Vanish:
    """Removes the run's folder in the midst of the run, as somebody who tidies up would."""

    from metaforge import hookimpl

    @hookimpl
    def metaforge_before_step(self, run: Any, step: int) -> None:
        if step == 3:
            shutil.rmtree(run.folder)


def _vanishing(run: str, argument: int) -> None:
    import metaforge

    try:
        config = small.settings("maml", steps=6)
        metaforge.train("maml", settings=config | {"learner": {}}, out=f"{run}/inner", hooks=[_Vanish()])
    except StorageError as error:
        _ended(error.exit_code, str(error))


def _small_disk(room: Room, file: Path) -> str | None:
    """Return what is wrong with a run on a disk that gets full, an empty text if nothing is; None without the right."""
    import subprocess

    disk = room.sub("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return None
    try:
        words = ["train", "--config", str(file), "--out", str(disk / "run"), "--steps", "400", "--no-progress"]
        code, said = children.finish(words, room.folder / "said.txt")
        saved, bad = checkpoint.load_latest(disk / "run" / "ckpt")
        right = code == 8 and " are free." in said and saved.step > 0 and not bad
        return "" if right else f"exit code {code}, step {saved.step}, {len(bad)} damaged: {said[-300:]}"
    except CheckpointError as error:
        return str(error)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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
