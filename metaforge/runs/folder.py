"""The run folder: everything that says what a run was, written as it happens.

`config.toml` (resolved), `command.txt`, `env.json`, `metrics.jsonl`, `status.json`, `run.lock`, `ckpt/`,
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaforge.errors import ConfigError, RunLockedError, StorageError
from metaforge.system.files import fsync, make_folder, remove_leftovers, write_atomically, write_errors, write_json
from metaforge.system.line_files import append_lines, kept_lines, write_lines
from metaforge.system.lock import RunLock
from metaforge.system.untrusted import UNREADABLE, parse_json, read_object

# What a folder holds before it is a run.
_BEGUN = frozenset({"run.lock", "pictures", "command.txt", "env.json", "metrics.jsonl"})


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run; raise `ConfigError` where it is missing or damaged."""
    try:
        return read_object(path)
    except UNREADABLE as error:
        raise ConfigError(
            f"{path.name} cannot be read: {error}.", where=str(path.parent), remedy="name the folder of a run"
        ) from error


def require_run(path: Path, *, where: str = "") -> None:
    """Raise `ConfigError` unless `path` is the folder of a run: of plain files and folders alone.

    A link could lead anywhere, and a pipe has no end; a stranger's folder is written where a run goes on.
    """
    if not (path / "config.toml").is_file():
        raise ConfigError(
            f"{path} is no run folder: it has no config.toml.",
            where=where,
            remedy="name the folder that `metaforge train` printed",
        )
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                mode = (one := Path(folder, name)).lstat().st_mode
            except FileNotFoundError:
                continue  # A run that is under way removes what it has written beside.
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ConfigError(
                    f"{one} is {'a link' if stat.S_ISLNK(mode) else 'no plain file'}, and a run folder holds none.",
                    where=where or str(path),
                    remedy="put the file itself there, or remove it",
                )


class RunFolder:
    """One run's folder; only the process that holds its lock writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RunLock(path)

    @classmethod
    def create(cls, path: Path, *, config: str, command: str, environment: Mapping[str, Any]) -> RunFolder:
        """Create the folder, and record what the run is; none may be there but what a creation cut short has left."""
        if not make_folder(path) and not _begun(path):
            raise _exists(path)
        try:
            folder = cls(path)
        except RunLockedError as error:
            raise _exists(path) from error
        try:
            # Again: another process may have been quicker, and be done.
            if not _begun(path):
                raise _exists(path)
            remove_leftovers(path)
            with write_errors(path):
                (path / "pictures").mkdir(exist_ok=True)
            write_lines(path / "metrics.jsonl", [])
            write_atomically(path / "command.txt", command + "\n")
            write_json(path / "env.json", {**environment, **_git_facts()})
            # The last one: a folder that has it is a run, with all that a resume reads.
            write_atomically(path / "config.toml", config)
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Take over the folder of a run that has ended, or whose process has died; raise `RunLockedError` otherwise."""
        require_run(path, where="--resume")
        folder = cls(path)
        try:
            remove_leftovers(path)
        except BaseException:
            folder.close()
            raise
        return folder

    def resumed(self, step: int, *, recorded: int, config: str, command: str, facts: Mapping[str, Any]) -> None:
        """Record that the run goes on after a step: records after `recorded` go, the configuration is the new one."""
        metrics, told, commands = (self.path / name for name in ("metrics.jsonl", "env.json", "command.txt"))
        write_lines(metrics, kept_lines(metrics, recorded, _step_of)[0] if recorded and metrics.is_file() else [])
        environment = read_json(told) if told.is_file() else {}
        before = environment.get("resumed", [])
        resumes = [*(before if isinstance(before, list) else [before]), {"step": step, "at": _now(), **facts}]
        earlier = commands.read_text("utf-8", errors="replace") if commands.is_file() else ""
        write_atomically(self.path / "config.toml", config)
        write_atomically(commands, earlier + command + "\n")
        write_json(told, {**environment, "resumed": resumes})

    def status(self, outcome: str, **facts: Any) -> None:
        """Record how the run stands."""
        write_json(self.path / "status.json", {"outcome": outcome, "updated": _now(), **_finite(facts)})

    def ended(self, outcome: str, error: BaseException | None, facts: Mapping[str, Any]) -> None:
        """Record how the run ended, with the exit code of the command that ran it."""
        if error is None:
            self.status(outcome, exit_code=0, **facts)
            return
        usual = 130 if isinstance(error, KeyboardInterrupt) else 1
        code = getattr(error, "exit_code", usual)
        self.status(outcome, exit_code=code, error=str(error) or type(error).__name__, **facts)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Append one line to the metrics; a figure that is not finite is null, because JSON has no such numbers."""
        append_lines(self.path / "metrics.jsonl", [json.dumps(_finite(metrics), allow_nan=False)])

    def sync_metrics(self) -> None:
        """Wait until the metrics are on the disk: a checkpoint must not outlive the records of its steps."""
        metrics = self.path / "metrics.jsonl"
        if metrics.is_file():
            with write_errors(metrics), metrics.open("ab") as file:
                fsync(file)

    def close(self) -> None:
        """Let others write the run."""
        self._lock.release()


class Bystander(RunFolder):
    """The folder of a run as those of its processes see it that write nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resumed(self, step: int, *, recorded: int, config: str, command: str, facts: Mapping[str, Any]) -> None:
        """Leave it to the leading process."""

    def status(self, outcome: str, **facts: Any) -> None:
        """Leave it to the leading process."""

    def record(self, metrics: Mapping[str, float]) -> None:
        """Leave it to the leading process."""

    def sync_metrics(self) -> None:
        """Leave it to the leading process."""

    def close(self) -> None:
        """Leave it to the leading process."""


class Stopwatch:
    """Seconds since it was made, and those that a run had taken before."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """Seconds so far, never zero."""
        return max(time.perf_counter() - self._start, 1e-9)


def missing_records(folder: Path, step: int) -> list[str]:
    """Return what is lost of a run's records up to a step; nothing is changed."""
    metrics = folder / "metrics.jsonl"
    if not step:
        return []
    if not metrics.is_file():
        return ["metrics.jsonl: it is gone"]
    damaged = kept_lines(metrics, step, _step_of)[1]
    return [f"metrics.jsonl: damaged lines left out: {len(damaged)} ({damaged[0]})"] if damaged else []


def default_folder(what: str, job: str | None = None) -> Path:
    """Return a name below `runs/` that says what the run is, and when it began or which job it is; no other has it."""
    unique = job or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path("runs") / f"{what}-{unique}"


def _finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in facts.items()}


def _step_of(line: str) -> int:
    return int(parse_json(line)["step"])


def _begun(path: Path) -> bool:
    """Return whether a folder holds nothing but what is written of a run before its `config.toml`."""
    if path.is_symlink() or not path.is_dir():
        return False
    with write_errors(path):
        found = [one for one in path.iterdir() if not (one.name.startswith(".") and one.name.endswith(".part"))]
    names = {one.name for one in found}
    plain = not any(one.is_symlink() for one in found) and not any((path / "pictures").glob("*"))
    # The lock comes first: without it the files are somebody else's.
    return plain and names <= _BEGUN and (not names or "run.lock" in names)


def _exists(path: Path) -> StorageError:
    return StorageError(
        f"The folder {path} exists already.",
        where="--out",
        remedy="name a new folder (a run never overwrites another), or go on with --resume",
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _git_facts() -> dict[str, Any]:
    """Return the commit of the folder that the command was given in, if it is a git checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {} if commit is None else {"git_commit": commit, "git_dirty": bool(git("status", "--porcelain"))}
