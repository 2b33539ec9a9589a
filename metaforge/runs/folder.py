"""The run folder: the complete record of a run, written while the run proceeds.

`config.toml` (resolved), `command.txt`, `env.json`, `data.json`, `metrics.jsonl`, `status.json`, `run.lock`, `ckpt/`,
`evaluation/`, `pictures/`, `report.md`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaforge.errors import ConfigError, MetaForgeError, RunLockedError, StorageError, exit_code
from metaforge.runs import checkpoint
from metaforge.system.files import fsync, make_folder, remove_leftovers, write_atomically, write_errors, write_json
from metaforge.system.line_files import append_lines, kept_lines, write_lines
from metaforge.system.lock import RunLock
from metaforge.system.untrusted import UNREADABLE, parse_json, read_object

# What a folder may contain while it is created, before `config.toml` makes it a run folder.
_BEGUN = frozenset({"run.lock", "pictures", "command.txt", "env.json", "data.json", "metrics.jsonl", "ckpt"})
# The most resumes that `env.json` lists, the last ones: a job that is restarted for months must not make it too large.
_MOST_RESUMES = 100


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run; raise `ConfigError` if it is missing or damaged."""
    try:
        return read_object(path)
    except UNREADABLE as error:
        raise ConfigError(
            f"{path.name} cannot be read: {error}.", where=str(path.parent), remedy="name the folder of a run"
        ) from error


def require_run(path: Path, *, where: str = "") -> None:
    """Raise `ConfigError` unless `path` is a run folder that contains only regular files and folders.

    A run folder may come from an untrusted source, and resuming writes to it: a symbolic link could point anywhere, and
    reading a pipe could block forever.
    """
    if not (path / "config.toml").is_file():
        raise ConfigError(
            f"{path} is no run folder: it has no config.toml.",
            where=where,
            remedy="give the folder that `metaforge train` printed",
        )
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                mode = (found := Path(folder, name)).lstat().st_mode
            except FileNotFoundError:
                continue  # A run in progress removes its temporary files.
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
                raise ConfigError(
                    f"{found} is {kind}, which a run folder must not contain.",
                    where=where or str(path),
                    remedy="replace it by the file itself, or remove it",
                )


class RunFolder:
    """The folder of one run; only the process that holds its lock writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RunLock(path)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        config: str,
        command: str,
        environment: Mapping[str, Any],
        data: Mapping[str, Any] | None = None,
        begin: Callable[[], object] | None = None,
    ) -> RunFolder:
        """Create the folder and record the run in it.

        Args:
            path: The folder; it must not exist, unless its creation was interrupted earlier.
            config: The resolved configuration as TOML.
            command: The command line.
            environment: The content of `env.json`, to which the git commit is added.
            data: The content of `data.json`.
            begin: Called last before the folder becomes that of a run, with whatever that run must not lack.

        Raises:
            StorageError: The folder exists or cannot be written.
        """
        if not make_folder(path) and not _begun(path):
            raise _exists(path)
        try:
            folder = cls(path)
        except RunLockedError as error:
            raise _exists(path) from error
        try:
            # Checked again under the lock: another process may have created the run in the meantime.
            if not _begun(path):
                raise _exists(path)
            remove_leftovers(path)
            with write_errors(path):
                (path / "pictures").mkdir(exist_ok=True)
            write_lines(path / "metrics.jsonl", [])
            write_atomically(path / "command.txt", command + "\n")
            write_json(path / "env.json", {**environment, **_git_facts()})
            folder.write_data(data)
            # Left by a creation that was interrupted, perhaps of another run.
            checkpoint.discard(path / "ckpt")
            if begin is not None:
                begin()
            # Written last: a folder with a config.toml is a complete run folder, which can be resumed.
            write_atomically(path / "config.toml", config)
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open the folder of a run that has ended or whose process has died; raise `RunLockedError` if it is in use."""
        require_run(path, where="--resume")
        folder = cls(path)
        try:
            remove_leftovers(path)
        except BaseException:
            folder.close()
            raise
        return folder

    def write_data(self, data: Mapping[str, Any] | None) -> None:
        """Write `data.json`, unless there is nothing to write."""
        if data is not None:
            write_json(self.path / "data.json", data)

    def resumed(self, step: int, *, recorded: int, config: str, command: str, facts: Mapping[str, Any]) -> None:
        """Record that the run is resumed.

        Args:
            step: The step from which it continues.
            recorded: The last step whose metrics are kept; later records are removed.
            config: The configuration that it continues with; it replaces the recorded one.
            command: The command line, appended to the recorded ones.
            facts: Facts about the resume, appended to the list `resumed` in `env.json`, which keeps the last 100.
        """
        metrics, env, commands = (self.path / name for name in ("metrics.jsonl", "env.json", "command.txt"))
        write_lines(metrics, kept_lines(metrics, recorded, _step_of)[0] if recorded and metrics.is_file() else [])
        environment = read_json(env) if env.is_file() else {}
        before = environment.get("resumed", [])
        resumes = [*(before if isinstance(before, list) else [before]), {"step": step, "at": _now(), **facts}]
        resumes = resumes[-_MOST_RESUMES:]
        earlier = commands.read_text("utf-8", errors="replace") if commands.is_file() else ""
        write_atomically(self.path / "config.toml", config)
        write_atomically(commands, earlier + command + "\n")
        write_json(env, {**environment, "resumed": resumes})

    def status(self, outcome: str, **facts: Any) -> None:
        """Write the status of the run."""
        write_json(self.path / "status.json", {"outcome": outcome, "updated": _now(), **_finite(facts)})

    def ended(self, outcome: str, error: BaseException | None, facts: Mapping[str, Any]) -> None:
        """Write the final status of the run, with the exit code of its command."""
        if error is None:
            self.status(outcome, exit_code=0, **facts)
            return
        self.status(outcome, **_failure(error), **facts)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl`; non-finite numbers, which JSON does not have, are written as null."""
        append_lines(self.path / "metrics.jsonl", [json.dumps(_finite(metrics), allow_nan=False)])

    def sync_metrics(self) -> None:
        """Flush the metrics to disk: after a crash there must be no checkpoint without the records of its steps."""
        metrics = self.path / "metrics.jsonl"
        if metrics.is_file():
            with write_errors(metrics), metrics.open("ab") as file:
                fsync(file)

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()


class Stopwatch:
    """Measures the duration of a run: the time since it was created, plus `before` seconds of earlier processes."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """The duration so far in seconds, never zero."""
        return max(time.perf_counter() - self._start, 1e-9)


def record_failure(path: Path, error: BaseException) -> None:
    """Record in the status of a run that has ended that its command fails after the training.

    The status keeps the outcome of the training, and gets the exit code of the command. If it cannot be written, or
    another process has the run by now, the error gets a note instead.

    Args:
        path: The run folder.
        error: The error that ends the command.
    """
    try:
        folder = RunFolder.reopen(path)
        try:
            status = read_json(path / "status.json")
            write_json(path / "status.json", {**status, **_failure(error)})
        finally:
            folder.close()
    except MetaForgeError as unwritten:
        error.add_note(f"The status of the run could not be written: {unwritten}")


def missing_records(folder: Path, step: int) -> list[str]:
    """Return a line about each problem with the metrics up to a step: the file is missing, or lines are damaged."""
    metrics = folder / "metrics.jsonl"
    if not step:
        return []
    if not metrics.is_file():
        return ["metrics.jsonl: the file is missing"]
    damaged = kept_lines(metrics, step, _step_of)[1]
    return [f"metrics.jsonl: damaged lines skipped: {len(damaged)} ({damaged[0]})"] if damaged else []


def default_folder(description: str, job: str | None = None) -> Path:
    """Return a unique path below `runs/`: a description of the run, and its start time or its torchrun job id."""
    unique = job or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path("runs") / f"{description}-{unique}"


def _failure(error: BaseException) -> dict[str, Any]:
    return {"exit_code": exit_code(error), "error": str(error) or type(error).__name__}


def _finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in facts.items()}


def _step_of(line: str) -> int:
    return int(parse_json(line)["step"])


def _begun(path: Path) -> bool:
    """Return whether a path is a folder with nothing but what is written to a run folder before its `config.toml`."""
    if path.is_symlink() or not path.is_dir():
        return False
    with write_errors(path):
        entries = [entry for entry in path.iterdir() if not (entry.name[0] == "." and entry.name.endswith(".part"))]
    names = {entry.name for entry in entries}
    regular = not any(entry.is_symlink() for entry in entries) and not any((path / "pictures").glob("*"))
    # A checkpoint of step 0 may have been saved, but a trained one is never removed.
    regular = regular and {*checkpoint.steps(path / "ckpt")} <= {0}
    # The lock is created first: files without a lock are not from an interrupted creation.
    return regular and names <= _BEGUN and (not names or "run.lock" in names)


def _exists(path: Path) -> StorageError:
    return StorageError(
        f"The folder {path} already exists.",
        where="--out",
        remedy="name a new folder (a run never overwrites another), or resume the run with --resume",
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _git_facts() -> dict[str, Any]:
    """Return the commit of the working directory and whether it is modified, `{}` outside a git checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {} if commit is None else {"git_commit": commit, "git_dirty": bool(git("status", "--porcelain"))}
