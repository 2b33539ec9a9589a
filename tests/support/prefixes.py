"""A folder with installed distributions, as pip creates it, and child processes that find them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from textwrap import dedent


class Prefix:
    """A folder that comes first on the path of modules."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, distribution: str, points: str, source: str = "", *, requires: str = "", metadata: str = "") -> Path:
        """Install a distribution with one module, which records that it was imported; return the path of the module."""
        module = distribution.replace("-", "_")
        info = self.folder / f"{module}-1.2.dist-info"
        info.mkdir(parents=True)
        text = metadata or f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        (info / "METADATA").write_text(text + (f"Requires-Dist: {requires}\n" if requires else ""), "utf-8")
        (info / "entry_points.txt").write_text(dedent(points), "utf-8")
        path = self.folder / f"{module}.py"
        marker = f'open({str(self.folder / f"{module}.imported")!r}, "w").close()\n'
        path.write_text(marker + dedent(source), "utf-8")
        return path

    def imported(self) -> list[str]:
        """Return the modules that were imported since the last call."""
        marks = sorted(self.folder.glob("*.imported"))
        for mark in marks:
            mark.unlink()
        return [mark.stem for mark in marks]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `metaforge` with these arguments and environment variables, and return the process."""
        return subprocess.run(
            [sys.executable, "-m", "metaforge", *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.folder), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def cost(self, *arguments: str, times: int = 3) -> float:
        """Return the least processor time of a command in several runs, in seconds; the command must succeed."""
        costs = []
        for _ in range(times):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            process = self.run(*arguments)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert process.returncode == 0, process.stderr
            costs.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        return min(costs)
