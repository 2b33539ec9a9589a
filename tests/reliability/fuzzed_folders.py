"""The row about run folders with a file mutated at random: what reads them ends in order and writes only there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.reliability import children, small_runs
from tests.reliability.mutations import mutated
from tests.reliability.rows import Measured, Workspace, row

# The exit codes that `metaforge --help` lists, without 1 (an unexpected error).
DOCUMENTED = frozenset({0, 2, 3, 4, 5, 6, 7, 8, 9})
SUFFIXES = frozenset({".json", ".jsonl", ".toml", ".safetensors"})
# The commands that read a run, each with its share of the cases.
COMMANDS: Mapping[tuple[str, ...], int] = {
    ("evaluate", "--tasks", "2", "--no-progress"): 4,
    ("train", "--steps", "6", "--no-progress", "--resume"): 3,
    ("ckpt", "verify"): 2,
    ("ckpt", "show"): 1,
}
# Bounds of one command: processor time in seconds and memory in bytes.
_SECONDS, _MEMORY = 20, 12 << 30


class Case(NamedTuple):
    """What happened in a case: the mutation, the exit code (None if it took too long), and what is wrong."""

    what: str
    code: int | None
    problems: list[str]


@row(
    28,
    "every JSON, JSONL, TOML and safetensors file of a run folder mutated at random, fixed seeds",
    goal="5,000 cases: no file touched outside the folder, no traceback, exit codes from the documented set only",
)
def fuzzed(workspace: Workspace, *, count: int = 5000, first: int = 0) -> Measured:
    """Evaluate, resume and verify copies of a small run, in each of which one file is mutated."""
    run, results = _small_run(workspace), workspace.folder / "cases.jsonl"
    log, seconds = workspace.folder / "output.txt", 60.0 + count * 3 * _SECONDS
    code, output = children.call_in_process(
        _try_cases, run, range(first, first + count), workspace.deadline, results, log=log, seconds=seconds
    )
    if code:
        raise RuntimeError(f"exit code {code}: {output[-1000:]}")
    cases = [Case(*json.loads(line)) for line in results.read_text("utf-8").splitlines()]
    codes = Counter(case.code for case in cases if case.code is not None)
    wrong = [f"{first + n}: {case.what}: {text}" for n, case in enumerate(cases) for text in case.problems]
    listed = ", ".join(f"{code} ({codes[code]} times)" for code in sorted(codes))
    slow = sum(case.code is None for case in cases)
    stopped = f", {slow} stopped because their settings ask for more than {_SECONDS} s of work" if slow else ""
    text = f"{len(cases)} of {count} cases: exit codes {listed}{stopped}; {len(wrong)} faults"
    return Measured(len(cases) == count and not wrong, text, {"wrong": wrong[:100], "first": first})


def _small_run(workspace: Workspace) -> Path:
    """Return a folder with a run of four steps that was evaluated; its checkpoints are those of steps 3 and 4."""
    values = small_runs.settings("maml", steps=4)
    file = small_runs.write_run_file(workspace.folder / "run.toml", values | {"checkpoint": {"every": 3, "keep": 2}})
    run, log = workspace.folder / "first", workspace.folder / "output.txt"
    children.run_successfully(["train", "--config", str(file), "--out", str(run), "--evaluate"], log)
    return run


def _try_cases(run: Path, indices: Sequence[int], deadline: float, results: Path) -> None:
    """Try the cases with these numbers, each in a fork of this process, and append a line for each to a file."""
    # What a first command imports and caches is then there in every fork.
    for command in COMMANDS:
        shutil.copytree(run, copied := run.with_name("warm"))
        _exit_code([*command, str(copied)], draw=True)
        shutil.rmtree(copied)
    with results.open("w", encoding="utf-8") as file:
        for index in indices:
            if time.monotonic() > deadline:
                break
            print(json.dumps(_case(run, index)), file=file, flush=True)


def _case(first: Path, index: int) -> Case:
    """Mutate one file in a copy of the run, and run one command on it."""
    rng = random.Random(f"fuzzed {index}")
    around = first.with_name("around")
    run, outside, current = (around / name for name in ("run", "precious", "current"))
    shutil.rmtree(around, ignore_errors=True)
    for folder in (outside, current):
        folder.mkdir(parents=True)
    (outside / "file.txt").write_text("precious")
    shutil.copytree(first, run)
    files = sorted(path for path in run.rglob("*") if path.suffix in SUFFIXES)
    path = rng.choice(files)
    how = mutated(path, rng, canary=str(outside / "file.txt"), others=files)
    if path.parent.parent.name == "ckpt" and path.name != "MANIFEST.json" and rng.random() < 0.7:
        _update_manifest(path)
    command = rng.choices([*COMMANDS], [*COMMANDS.values()])[0]
    before, status = _files(around, without=run), _bytes(run / "status.json")
    code, output = _fork([*command, str(run)], current, first.with_name("log.txt"), draw=rng.random() < 0.25)
    what = f"{' '.join(command)} with {path.relative_to(run)}: {how}"
    if code == -signal.SIGXCPU and path.name == "config.toml":
        return Case(what, None, [])
    problems = [] if code in DOCUMENTED else [f"exit code {code}: {output[-700:]}"]
    problems += ["a traceback"] if "Traceback" in output else []
    problems += [] if output.replace("\n", "").isprintable() else [f"control characters: {output[-300:]!r}"]
    problems += [] if _files(around, without=run) == before else ["a file outside the folder was touched"]
    if command[0] == "train" and status != (now := _bytes(run / "status.json")):
        recorded = json.loads(now).get("exit_code")
        problems += [] if recorded == code else [f"exit code {code}, but the status has {recorded}: {output[-500:]}"]
    return Case(what, code, problems)


def _update_manifest(path: Path) -> None:
    """Record the size and digest of a mutated file of a checkpoint, as an attacker can."""
    manifest = path.with_name("MANIFEST.json")
    data = path.read_bytes()
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(json.loads(manifest.read_text("utf-8")) | {path.name: entry}), "utf-8")


def _files(folder: Path, *, without: Path) -> dict[str, tuple[int, bytes]]:
    """Return time of change and content of what is in a folder and beside it, except one folder and logs."""
    inner = {path for path in folder.rglob("*") if without not in (path, *path.parents)}
    beside = {path for path in folder.parent.glob("*") if path != folder and path.suffix not in (".txt", ".jsonl")}
    return {str(path): (path.stat().st_mtime_ns, _bytes(path)) for path in sorted(inner | beside)}


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _fork(arguments: Sequence[str], current: Path, log: Path, *, draw: bool) -> tuple[int, str]:
    """Run a command in a fork of this process, and return its exit code and its output."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            children.redirect(str(log))
            os.chdir(current)
            # A command that waits uses no processor time.
            signal.alarm(10 * _SECONDS)
            resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, 2 * _SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            code = _exit_code(arguments, draw=draw)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), log.read_text("utf-8", errors="replace")


def _exit_code(arguments: Sequence[str], *, draw: bool) -> int:
    """Run a command and return its exit code; its pictures are coarse, or with `draw` false laid out but not drawn."""
    from matplotlib.figure import Figure

    from metaforge.cli.app import main

    savefig: Callable[..., Any] = Figure.savefig

    def quick(figure: Figure, out: Any, **options: Any) -> None:
        if draw:
            savefig(figure, out, **{**options, "dpi": 20})
        else:
            out.write(b"png")

    sys.argv = ["metaforge", *arguments]
    Figure.savefig = quick  # type: ignore[method-assign,assignment]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        Figure.savefig = savefig  # type: ignore[method-assign]
    return 0
