"""The run folder: everything that says what a run was, written as it happens.

`config.toml` (resolved), `command.txt`, `env.json`, `metrics.jsonl`, `status.json`, `run.lock`, `ckpt/`,
`evaluation/`, `pictures/`, `report.md`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaforge.errors import ConfigError, StorageError
from metaforge.lines import append_lines, begin_lines
from metaforge.locks import RunLock
from metaforge.storage import storage, synced, write_atomically, write_json


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run; raise `ConfigError` where it is missing or damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path.name} cannot be read: {error}.", where=str(path.parent), remedy="name the folder of a run"
        ) from error
    return found


def require_run(path: Path, *, where: str = "") -> None:
    """Raise `ConfigError` unless `path` is the folder of a run, without links, which could lead anywhere.

    A stranger's folder is written where a run is resumed or evaluated.
    """
    if not (path / "config.toml").is_file():
        raise ConfigError(
            f"{path} is no run folder: it has no config.toml.",
            where=where,
            remedy="name the folder that `metaforge train` printed",
        )
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if (link := Path(folder, name)).is_symlink():
                raise ConfigError(
                    f"{link} is a link, and a run folder holds none.",
                    where=where or str(path),
                    remedy="put the file itself there, or remove the link",
                )


class RunFolder:
    """One run's folder; only the process that holds its lock writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RunLock(path)

    @classmethod
    def create(cls, path: Path, *, config: str, command: str, environment: Mapping[str, Any]) -> RunFolder:
        """Create the folder, which must not exist, and record what the run is."""
        with storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError as error:
                raise StorageError(
                    f"The folder {path} exists already.",
                    where="--out",
                    remedy="name a new folder (a run never overwrites another), or go on with --resume",
                ) from error
            (path / "pictures").mkdir()
        folder = cls(path)
        try:
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
        with storage(path):
            for leftover in path.glob(".*.part"):
                leftover.unlink(missing_ok=True)
        return folder

    def resumed(self, step: int, *, config: str, command: str, facts: Mapping[str, Any]) -> None:
        """Record that the run goes on after a step: later records go, the configuration is the present one."""
        begin_lines(self.path / "metrics.jsonl", start=step, step_of=lambda line: int(json.loads(line)["step"]))
        environment, commands = read_json(self.path / "env.json"), self.path / "command.txt"
        before = environment.get("resumed", [])
        resumes = [*(before if isinstance(before, list) else [before]), {"step": step, "at": _now(), **facts}]
        earlier = commands.read_text("utf-8", errors="replace") if commands.is_file() else ""
        write_atomically(self.path / "config.toml", config)
        write_atomically(commands, earlier + command + "\n")
        write_json(self.path / "env.json", {**environment, "resumed": resumes})

    def status(self, outcome: str, **facts: Any) -> None:
        """Record how the run stands."""
        write_json(self.path / "status.json", {"outcome": outcome, "updated": _now(), **facts})

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
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_lines(self.path / "metrics.jsonl", [json.dumps(finite, allow_nan=False)])

    def settle(self) -> None:
        """Wait until the metrics are on the disk: a checkpoint must not outlive the records of its steps."""
        metrics = self.path / "metrics.jsonl"
        if metrics.is_file():
            with storage(metrics), metrics.open("ab") as file:
                synced(file)

    def close(self) -> None:
        """Let others write the run."""
        self._lock.release()


class Bystander(RunFolder):
    """The folder of a run as those of its processes see it that write nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resumed(self, step: int, *, config: str, command: str, facts: Mapping[str, Any]) -> None:
        """Leave it to the leading process."""

    def status(self, outcome: str, **facts: Any) -> None:
        """Leave it to the leading process."""

    def record(self, metrics: Mapping[str, float]) -> None:
        """Leave it to the leading process."""

    def settle(self) -> None:
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


def default_folder(what: str, job: str | None = None) -> Path:
    """Return a name below `runs/` that says what the run is, and when it began or which job it is; no other has it."""
    unique = job or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return Path("runs") / f"{what}-{unique}"


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
