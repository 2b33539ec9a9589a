"""Fixtures for all tests: a temporary cache folder, and the real Omniglot images if they are present."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def temporary_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Replace the user's cache by a temporary one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAFORGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """Return the folder that holds `omniglot/` with the real images; skip the test if there is none."""
    root = Path(os.environ.get("METAFORGE_DATA", ""))
    if "METAFORGE_DATA" not in os.environ or not (root / "omniglot").is_dir():
        pytest.skip(
            "needs the real Omniglot images: run `metaforge data fetch omniglot`, or put images_background.zip and "
            "images_evaluation.zip into <data>/omniglot, and set METAFORGE_DATA to <data>"
        )
    return root.resolve()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print whether each check of the conformance kit has found the fault of its faulty plugin."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    recorded = [dict(report.user_properties)["fault"] for report in reports if "fault" in dict(report.user_properties)]
    rows = sorted({tuple(row) for row in recorded})
    if rows:
        terminalreporter.section("checks, and the faulty plugins that they must find")
        for check, plugin, caught in rows:
            terminalreporter.write_line(f"{check:15} {plugin:26} {caught}")
