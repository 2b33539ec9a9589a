"""The run folder: everything that says what a run was, written as it happens.

`config.toml` (resolved), `command.txt`, `env.json`, `metrics.jsonl`, `status.json`, `ckpt/`, `evaluation/`,
`pictures/`, `report.md`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from metaforge.errors import ConfigError, StorageError


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write below `path` into one sentence."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Cannot write {error.filename or path}: {error.strerror}.",
            where=str(path),
            remedy="choose another folder with --out, or free space and check its permissions",
        ) from error


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write a file beside its name, then rename it: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with storage(path):
        try:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write an object as JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a run; raise `ConfigError` where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path.name} cannot be read: {error}.", where=str(path.parent), remedy="name the folder of a run"
        ) from error


class RunFolder:
    """One run's folder; only the process that created it writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
                    remedy="name a new folder: a run never overwrites another",
                ) from error
            (path / "pictures").mkdir()
        write_atomically(path / "config.toml", config)
        write_atomically(path / "command.txt", command + "\n")
        write_json(path / "env.json", {**environment, **_git_facts()})
        return cls(path)

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
        with storage(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): like Ctrl-C, but with an exit code of its own."""

    exit_code = 143


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what runs inside as Ctrl-C would, so that a run saves what it has; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> NoReturn:
        # A second signal must not cut short what the first one lets the run save.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated("terminated (SIGTERM)")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far, never zero."""
        return max(time.perf_counter() - self._start, 1e-9)


def default_folder(what: str) -> Path:
    """Return a new name below `runs/` that says what the run is and when it began."""
    stem = Path("runs") / f"{what}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}")
    return path


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
