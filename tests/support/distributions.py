"""Distributions with plugins, installed into a temporary folder as pip would do it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

# install(distribution, entry_points, source="", requires="", module="") -> path of the module
Install = Callable[..., Path]

ADAPTER = '''
    """The module."""
    from metaforge.authoring.protocols import Adapter, Options

    class Mine(Adapter):
        """Mine, all mine.

        More words.
        """
        class Config(Options):
            pass
        def __init__(self, config): ...
        def update(self, meta, grads, state, params, step): ...
'''


def installer(folder: Path) -> Install:
    """Return a function that installs a distribution with one module into a folder, and returns the module's path."""

    def install(distribution: str, points: str, source: str = "", requires: str = "", module: str = "") -> Path:
        info = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        (info / "METADATA").write_text(metadata + (f"Requires-Dist: {requires}\n" if requires else ""), "utf-8")
        (info / "entry_points.txt").write_text(textwrap.dedent(points), "utf-8")
        path = folder / f"{module or distribution.replace('-', '_')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), "utf-8")
        return path

    return install
