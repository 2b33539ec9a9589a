"""The row about storage that ends: full, limited, read-only, in the way, or gone."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import metaforge
from metaforge import hookimpl
from metaforge.errors import CheckpointError, StorageError
from metaforge.runs import checkpoint
from tests.reliability import children, small_runs
from tests.reliability.checkpoints import finished
from tests.reliability.faults import Faults
from tests.reliability.rows import Measured, Room, row


@row(
    5,
    "storage full at 10 byte limits, full disk, quota, read-only disk, no folder where one should be, vanished folder",
    goal="exit code 8, bytes needed and free are told, checkpoints that were there byte-identical",
)
def full_storage(room: Room, *, limits: int = 10) -> Measured:
    """Resume a run of four steps while no file may get larger than a limit, and in the other ways that storage ends."""
    values = small_runs.settings("protonet", steps=4, log_every=1)
    # Nothing is pruned: what is there before has to be there afterwards.
    values["checkpoint"]["keep"] = 100
    file = small_runs.write_run_file(room.folder / "run.toml", values)
    finished(["train", "--config", str(file), "--out", str(room.folder / "run"), "--no-progress"], room)
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
    disks = {"a disk of 200 kB": _small_disk(room, file), "a read-only disk": _read_only_disk(room)}
    wrong += [f"{name}: {complaint}" for name, complaint in disks.items() if complaint]
    mounted = [name for name, complaint in disks.items() if complaint is not None]
    ways = f", and so did runs on {' and '.join(mounted)}" if mounted else ""
    text = f"{done - len(wrong)} of {len(cases)} ways ended with exit code 8 and every checkpoint as it was"
    numbers = {"ways": [*cases], "disks that were mounted": mounted, "wrong": wrong}
    return Measured(done == len(cases) and not wrong, text + ways, numbers)


def _starved(room: Room, function: Callable[..., None], argument: int) -> str:
    """Return what is wrong with how a resumed run ends without storage, an empty text if nothing is."""
    run = room.folder / "starved"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(room.folder / "run", run)
    before = _checkpoints(run)
    code, said = children.call(function, str(run), argument, output=room.folder / "said.txt")
    return _refused(code, said) or ("" if function is _vanishing else _changed(before))


def _refused(code: int, said: str) -> str:
    """Return what is wrong with how a command ends without storage, an empty text if nothing is."""
    told = " bytes are needed." in said and " bytes are free." in said and "Traceback" not in said
    return "" if code == 8 and told else f"exit code {code}: {said[-300:]}"


def _checkpoints(run: Path) -> dict[Path, bytes]:
    """Return the files of a run's checkpoints; `LATEST` and `BEST` may name a new one."""
    files = [path for path in (run / "ckpt").rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name not in ("LATEST", "BEST")}


def _changed(before: Mapping[Path, bytes]) -> str:
    changed = [path.name for path, data in before.items() if not (path.is_file() and path.read_bytes() == data)]
    return f"changed: {changed}" if changed else ""


def _run(words: Sequence[str]) -> tuple[int, str]:
    """Run a command in this process, its words for people in memory: they need no storage."""
    from metaforge.cli.app import main

    sys.argv, sys.stderr, sys.stdout = ["metaforge", *words], io.StringIO(), io.StringIO()
    try:
        main()
        return 0, sys.stderr.getvalue()
    except SystemExit as stop:
        return int(stop.code or 0), sys.stderr.getvalue()


def _ended(code: int, said: str) -> None:
    os.write(2, said.encode())
    raise SystemExit(code)


def _longer(run: str) -> list[str]:
    return ["train", "--resume", run, "--steps", "8", "--no-progress"]


def _limited(run: str, limit: int) -> None:
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

    @hookimpl
    def metaforge_before_step(self, run: Any, step: int) -> None:
        if step == 3:
            shutil.rmtree(run.folder)


def _vanishing(run: str, argument: int) -> None:
    try:
        config = small_runs.settings("maml", steps=6)
        metaforge.train("maml", settings=config | {"learner": {}}, out=f"{run}/inner", hooks=[_Vanish()])
    except StorageError as error:
        _ended(error.exit_code, str(error))


@contextmanager
def _disk(folder: Path, options: str) -> Iterator[bool]:
    """Mount a disk in memory inside; yield whether that is allowed here."""
    mounted = _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


def _small_disk(room: Room, file: Path) -> str | None:
    """Return what is wrong with a run on a disk that gets full, an empty text if nothing is; None without the right."""
    with _disk(room.sub("disk"), "size=200k") as mounted:
        if not mounted:
            return None
        out = room.folder / "disk" / "run"
        words = ["train", "--config", str(file), "--out", str(out), "--steps", "400", "--no-progress"]
        ended = children.finish(words, room.folder / "said.txt")
        try:
            saved, bad = checkpoint.load_latest(out / "ckpt")
        except CheckpointError as error:
            return str(error)
        left = "" if saved.step > 0 and not bad else f"step {saved.step} is left, {len(bad)} are damaged"
        return _refused(*ended) or left


def _read_only_disk(room: Room) -> str | None:
    """Return what is wrong on a disk that became read-only, an empty text if nothing is; None without the right."""
    with _disk(room.sub("locked"), "size=4m") as mounted:
        run = room.folder / "locked" / "run"
        shutil.copytree(room.folder / "run", run)
        if not mounted or not _mount("-o", "remount,ro", str(room.folder / "locked")):
            return None
        before = _checkpoints(run)
        said = room.folder / "said.txt"
        # What cannot be kept is not computed: so many tasks would take hours.
        in_vain = ["evaluate", str(run), "--tasks", "10000000", "--no-progress"]
        anew = ["train", "--config", str(run / "config.toml"), "--out", str(run.with_name("new")), "--no-progress"]
        complaints = [_refused(*children.finish(words, said)) for words in (_longer(str(run)), in_vain, anew)]
        return next((one for one in complaints if one), _changed(before))
