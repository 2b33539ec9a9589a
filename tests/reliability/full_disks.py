"""The row about storage that fails during a run: full, limited, read-only, blocked by a file, or removed."""

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
from tests.reliability.faults import Faults
from tests.reliability.rows import Measured, Workspace, row


@row(
    5,
    "a limit on file sizes (10 values), a full disk, a quota, a read-only disk, a file in place of a folder, a removed"
    " folder",
    goal="exit code 8; the message states the bytes needed and free; existing checkpoints stay byte-identical",
)
def full_storage(workspace: Workspace, *, limits: int = 10) -> Measured:
    """Resume a run of four steps with a limit on the size of files, and with each other failure of the storage."""
    values = small_runs.settings("protonet", steps=4, log_every=1)
    # No checkpoint is pruned, so that all earlier checkpoints must still exist afterwards.
    values["checkpoint"]["keep"] = 100
    file = small_runs.write_run_file(workspace.folder / "run.toml", values)
    children.run_successfully(
        ["train", "--config", str(file), "--out", str(workspace.folder / "run"), "--no-progress"],
        workspace.folder / "output.txt",
    )
    sizes = [path.stat().st_size for path in (workspace.folder / "run" / "ckpt").rglob("*.safetensors")]
    cases: dict[str, tuple[Callable[..., None], Any]] = {
        f"files of at most {limit} bytes": (_with_file_limit, limit)
        for limit in (max(sizes) * index // limits for index in range(limits))
    }
    cases |= {
        "full disk": (_on_full_disk, 1000),
        "quota": (_with_quota, 0),
        "removed folder": (_with_removed_folder, 0),
    }
    cases |= {"a file where a folder should be": (_with_blocked_folder, 0)}
    failures, done = [], 0
    for index in workspace.indices(len(cases)):
        name, (function, argument) = list(cases.items())[index]
        complaint = _resume_without_storage(workspace, function, argument)
        failures += [f"{name}: {complaint}"] if complaint else []
        done += 1
    disks = {"a disk of 200 kB": _small_disk(workspace, file), "a read-only disk": _read_only_disk(workspace)}
    failures += [f"{name}: {complaint}" for name, complaint in disks.items() if complaint]
    mounted = [name for name, complaint in disks.items() if complaint is not None]
    disks_text = f", and so did runs on {' and '.join(mounted)}" if mounted else ""
    text = f"{done - len(failures)} of {len(cases)} cases ended with exit code 8 and left every checkpoint unchanged"
    numbers = {"ways": [*cases], "disks that were mounted": mounted, "wrong": failures}
    return Measured(done == len(cases) and not failures, text + disks_text, numbers)


def _resume_without_storage(workspace: Workspace, function: Callable[..., None], argument: int) -> str:
    """Return what is wrong with how a resumed run ends when the storage fails, or an empty string."""
    run = workspace.folder / "starved"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(workspace.folder / "run", run)
    before = _checkpoints(run)
    code, output = children.call_in_process(function, str(run), argument, log=workspace.folder / "output.txt")
    return _complaint_about(code, output) or ("" if function is _with_removed_folder else _changed(before))


def _complaint_about(code: int, output: str) -> str:
    """Return what is wrong with how a command ended whose storage failed, or an empty string.

    It must name the needed and the free bytes if, and only if, there was too little space.
    """
    reasons = ("No space left on device", "Disk quota exceeded", "File too large", "The disk is full")
    is_full = any(reason in output for reason in reasons)
    stated = [" bytes are needed." in output, " bytes are free." in output] == [is_full, is_full]
    return "" if code == 8 and stated and "Traceback" not in output else f"exit code {code}: {output[-300:]}"


def _checkpoints(run: Path) -> dict[Path, bytes]:
    """Return the contents of a run's checkpoint files, without `LATEST` and `BEST`, which may name a new checkpoint."""
    files = [path for path in (run / "ckpt").rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name not in ("LATEST", "BEST")}


def _changed(before: Mapping[Path, bytes]) -> str:
    changed = [path.name for path, data in before.items() if not (path.is_file() and path.read_bytes() == data)]
    return f"changed: {changed}" if changed else ""


def _run_main(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a command in this process; its output stays in memory, because it must not need storage."""
    from metaforge.cli.app import main

    sys.argv, sys.stderr, sys.stdout = ["metaforge", *arguments], io.StringIO(), io.StringIO()
    try:
        main()
        return 0, sys.stderr.getvalue()
    except SystemExit as stop:
        return int(stop.code or 0), sys.stderr.getvalue()


def _exit_with(code: int, output: str) -> None:
    os.write(2, output.encode())
    raise SystemExit(code)


def _resume_arguments(run: str) -> list[str]:
    return ["train", "--resume", run, "--steps", "8", "--no-progress"]


def _with_file_limit(run: str, limit: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    result = _run_main(_resume_arguments(run))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    _exit_with(*result)


def _on_full_disk(run: str, free: int) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - free, free)
    shutil.disk_usage = lambda path: usage
    _exit_with(*_run_main(_resume_arguments(run)))


def _with_quota(run: str, argument: int) -> None:
    # Operation 40 is in the middle of the writes of a resumed run.
    Faults(40, "EDQUOT").install()
    _exit_with(*_run_main(_resume_arguments(run)))


def _with_blocked_folder(run: str, argument: int) -> None:
    _exit_with(
        *_run_main(["train", "--config", f"{run}/config.toml", "--out", f"{run}/command.txt/run", "--no-progress"])
    )


class _RemoveFolder:
    """A hook that removes the run's folder during the run."""

    @hookimpl
    def metaforge_before_step(self, run: Any, step: int) -> None:
        if step == 3:
            shutil.rmtree(run.folder)


def _with_removed_folder(run: str, argument: int) -> None:
    try:
        config = small_runs.settings("maml", steps=6)
        metaforge.train("maml", settings=config | {"learner": {}}, out=f"{run}/inner", hooks=[_RemoveFolder()])
    except StorageError as error:
        _exit_with(error.exit_code, str(error))


@contextmanager
def _disk(folder: Path, options: str) -> Iterator[bool]:
    """Mount a file system in memory for the block; yield whether this process has the right to mount."""
    mounted = _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


def _small_disk(workspace: Workspace, file: Path) -> str | None:
    """Return what is wrong with a run on a small disk that becomes full, or an empty string; None if mounting fails."""
    with _disk(workspace.subfolder("disk"), "size=200k") as mounted:
        if not mounted:
            return None
        out = workspace.folder / "disk" / "run"
        arguments = ["train", "--config", str(file), "--out", str(out), "--steps", "400", "--no-progress"]
        result = children.run_command(arguments, workspace.folder / "output.txt")
        try:
            saved, bad = checkpoint.load_latest(out / "ckpt")
        except CheckpointError as error:
            return str(error)
        left = "" if saved.step > 0 and not bad else f"step {saved.step} is left, {len(bad)} are damaged"
        return _complaint_about(*result) or left


def _read_only_disk(workspace: Workspace) -> str | None:
    """Return what is wrong with commands on a read-only disk, or an empty string; None if mounting fails."""
    with _disk(workspace.subfolder("locked"), "size=4m") as mounted:
        run = workspace.folder / "locked" / "run"
        shutil.copytree(workspace.folder / "run", run)
        if not mounted or not _mount("-o", "remount,ro", str(workspace.folder / "locked")):
            return None
        before = _checkpoints(run)
        output = workspace.folder / "output.txt"
        # The evaluation must fail before it computes anything: this many tasks would take hours.
        evaluate = ["evaluate", str(run), "--tasks", "10000000", "--no-progress"]
        train = ["train", "--config", str(run / "config.toml"), "--out", str(run.with_name("new")), "--no-progress"]
        complaints = [
            _complaint_about(*children.run_command(arguments, output))
            for arguments in (_resume_arguments(str(run)), evaluate, train)
        ]
        return next((one for one in complaints if one), _changed(before))
