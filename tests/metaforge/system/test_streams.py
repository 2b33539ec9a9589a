"""Notes on stderr never end a run, whatever happens to stderr, and stdout has only the answer of a command."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metaforge.system.streams import NoteStream, best_effort_stderr, note_stream, stdout_to_stderr

TRAIN = ["train", "--learner", "maml", "--dataset", "sinusoid", "--steps", "3", "--set", "train.tasks=2", "--json"]
TRAIN += ["--set", "engine.threads=1", "--set", "train.validate_every=2", "--set", "train.validate_tasks=2"]
NOISY = ["--set", "hooks=progress,early-stop", "--set", "hooks.early-stop.patience=1"]


class Refusing(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Refusing(), closed(), None])
def test_a_note_that_cannot_be_written_is_dropped(stream: io.StringIO | None) -> None:
    notes = NoteStream(stream)
    assert notes.write("text") == 4
    notes.writelines(["a", "b"])
    notes.flush()
    notes.close()
    assert not notes.isatty()


def test_notes_pass_on_everything_and_stay_open() -> None:
    stream = io.StringIO()
    notes = NoteStream(stream)
    notes.close()
    notes.write("a note\n")
    assert stream.getvalue() == "a note\n"
    assert notes.getvalue() == "a note\n"


def test_a_note_stream_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    note_stream().write("a note\n")
    before = sys.stderr
    with best_effort_stderr():
        assert note_stream() is sys.stderr
        sys.stderr.write("another\n")
    assert sys.stderr is before
    assert capsys.readouterr().err == "a note\nanother\n"


def test_what_is_printed_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with stdout_to_stderr():
        sys.stdout.write("by Python\n")
        os.write(1, b"by C\n")
    sys.stdout.write("the answer\n")
    captured = capfd.readouterr()
    assert captured.out == "the answer\n"
    assert sorted(captured.err.splitlines()) == ["by C", "by Python"]


def test_closed_descriptors_and_missing_streams_are_replaced() -> None:
    code = """
import os, sys
from metaforge.system.streams import open_standard_streams
os.write(int(sys.argv[1]), repr([sys.stdin, sys.stdout, sys.stderr]).encode())
open_standard_streams()
print("lost")
print("lost", file=sys.stderr)
opened = os.open("/dev/null", os.O_RDONLY)
child = os.system("true <&0 && echo x >&1 && echo x >&2")
os.write(int(sys.argv[1]), repr((opened > 2, child)).encode())
"""
    reader, writer = os.pipe()
    command = f'"$0" -c "$1" {writer} <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, sys.executable, code], pass_fds=[writer], check=False)
    os.close(writer)
    assert os.read(reader, 1000) == b"[None, None, None](True, 0)"
    os.close(reader)
    assert done.returncode == 0


def shell(redirection: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = f'"$@" {redirection}'
    words = [sys.executable, "-m", "metaforge", *TRAIN, *NOISY, "--out", str(folder)]
    return subprocess.run(["sh", "-c", command, "sh", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("redirection", "answers", "code"),
    [("2>/dev/full", True, 0), ("2>&-", True, 0), (">&- 2>&-", False, 0), (">/dev/full", False, 8)],
)
def test_a_run_is_finished_whatever_its_streams_are(tmp_path: Path, redirection: str, answers: bool, code: int) -> None:
    done = shell(redirection, tmp_path / "run")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 0
    if answers:
        assert json.loads(done.stdout)["outcome"] == "finished"
    else:
        assert done.stdout == ""


CLOSING = """
import os, sys
from metaforge import hookimpl
from metaforge.authoring import Hook, Options
from metaforge.registry import scan

class Closing(Hook):
    "Prints, and closes the standard streams in every way."
    Config = Options
    def __init__(self, config): ...
    @hookimpl
    def metaforge_run_start(self, run):
        print("in the way of the answer")
        os.write(1, b"in the way too")
        sys.stdout.close()
        sys.stderr.close()
        for descriptor in range(3):
            os.close(descriptor)
    @hookimpl
    def metaforge_after_step(self, step):
        assert os.open(os.devnull, os.O_RDONLY) > 2
        print("a note", file=sys.stderr)

registry = scan.scan().with_plugin("hook", "closing", Closing)
scan.scan = lambda: registry
from metaforge.__main__ import main
main()
"""


def test_a_hook_that_prints_and_closes_the_streams_ends_neither_the_run_nor_its_answer(tmp_path: Path) -> None:
    words = [*TRAIN, "--set", "hooks=closing,progress", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", CLOSING, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "finished"


def test_an_answer_to_a_full_disk_is_an_error_of_every_command() -> None:
    for words in ("--help", "list-plugins"):
        command = f'"$0" -m metaforge {words} > /dev/full'
        done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True, check=False)
        assert done.returncode == 8, done.stderr
        assert done.stderr.startswith("Error: The answer cannot be written to stdout: No space left on device.")
