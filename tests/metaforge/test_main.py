"""The command before it has begun: Ctrl-C while it is being imported."""

from __future__ import annotations

import subprocess
import sys

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


def test_ctrl_c_while_the_command_is_imported_leaves_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
