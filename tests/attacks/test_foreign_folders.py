"""The run folder of another user, which may be read but not written, or not even read in full."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quick_runs import trained

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="root loses its rights by a call of Linux")
# prctl(PR_CAPBSET_DROP, ...) of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root ignores permissions.
_DROP, _CAPABILITIES = 24, (1, 2)


def metaforge(*words: str) -> tuple[int, str]:
    """Run a command as a user to whom the permissions of files apply; return its exit code and its output."""
    libc = ctypes.CDLL(None)

    def drop() -> None:
        if os.geteuid() == 0:
            for capability in _CAPABILITIES:
                libc.prctl(_DROP, capability, 0, 0, 0)

    command = [sys.executable, "-m", "metaforge", *words]
    done = subprocess.run(command, preexec_fn=drop, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    folder: Path = trained(tmp_path / "run", steps=2).folder
    yield folder
    for path in (folder, folder / "ckpt"):
        path.chmod(0o755)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("evaluate {run} --tasks 2", 8),
        ("train --resume {run} --steps 4 --no-progress", 8),
        ("train --learner maml --steps 1 --out {run}/inner", 8),
        ("ckpt verify {run}", 0),
        ("config --config {run}/config.toml", 0),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_and_left_as_it_is(run: Path, words: str, code: int) -> None:
    before = contents(run)
    run.chmod(0o555)
    result, output = metaforge(*words.format(run=run).split())
    assert result == code, output
    assert "Traceback" not in output
    assert "bytes are free" not in output
    if code:
        assert "Permission denied" in output
        assert "check the path and its permissions" in output
    assert contents(run) == before


@pytest.mark.parametrize(
    "words",
    ["evaluate {run} --tasks 2", "train --resume {run} --steps 4 --no-progress", "ckpt verify {run}"],
)
def test_checkpoints_that_cannot_be_read_are_not_taken_for_missing(run: Path, words: str) -> None:
    before = contents(run / "ckpt")
    (run / "ckpt").chmod(0o000)
    code, output = metaforge(*words.format(run=run).split())
    assert (code, "Traceback" in output) == (5, False), output
    assert "The folder of the checkpoints cannot be read: Permission denied." in output
    (run / "ckpt").chmod(0o755)
    assert contents(run / "ckpt") == before
