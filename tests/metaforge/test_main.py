"""The entry point of the command: Ctrl-C during its first imports."""

from __future__ import annotations

import subprocess
import sys

import metaforge

INTERRUPTED = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "metaforge.cli.output":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from metaforge.__main__ import main
main()
"""


def test_ctrl_c_during_the_imports_prints_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_module_runs_the_command() -> None:
    command = [sys.executable, "-m", "metaforge", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert metaforge.__version__ in done.stdout
